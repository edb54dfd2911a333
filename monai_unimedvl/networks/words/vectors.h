// SPDX-License-Identifier: Apache-2.0
// Vectors as wide as the machine's, of float or double, and what they are loaded from.

#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <utility>

using std::int64_t;

#if defined(__AVX512F__)
#include <immintrin.h>
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int REGISTERS = 24;  // for sums; the machine has 32
#else
constexpr int REGISTERS = 8;
#endif

#if BYTES == 64
#define KEEP(x) asm("" : "+v"(x))
#else
#define KEEP(x)
#endif
#define INLINED __attribute__((always_inline))
#define INLINE inline INLINED

namespace {

struct Half {  // a bfloat16
  uint16_t bits;
};

template <class R>
struct Wide {
  static constexpr int lanes = BYTES / sizeof(R);
  typedef R type __attribute__((vector_size(BYTES)));
};
template <class R>
using Vec = typename Wide<R>::type;

template <class R>
inline Vec<R> load(const R *p) {
  Vec<R> x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
template <class R>
inline void store(R *p, Vec<R> x) {
  std::memcpy(p, &x, sizeof x);
}
template <class R>
inline Vec<R> load(const Half *p) {
  typedef uint32_t wide __attribute__((vector_size(BYTES)));
#if BYTES == 64
  wide y = (wide)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)) << 16;
#else
  wide y;
  for (int i = 0; i < BYTES / 4; i++) y[i] = uint32_t(p[i].bits) << 16;
#endif
  return (Vec<float>)y;
}
template <class R>
inline Vec<R> load(const int8_t *p) {
#if BYTES == 64
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#else
  Vec<R> y;
  for (int i = 0; i < Wide<R>::lanes; i++) y[i] = p[i];
  return y;
#endif
}

template <class R>
inline R number(R x) { return x; }
template <class R>
inline R number(Half x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
template <class R>
inline R number(int8_t x) { return x; }

inline void round_to(float x, float *to) { *to = x; }
inline void round_to(double x, double *to) { *to = x; }
inline void round_to(float x, Half *to) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  to->bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // to the nearest even
}
// Sums of neighbours: lanes of a, then lanes of b.
template <class V>
inline V pair(V a, V b) {
  constexpr int lanes = sizeof(V) / sizeof(a[0]);
  if constexpr (lanes == 16)
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  else if constexpr (lanes == 8)
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14) +
           __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
  else if constexpr (lanes == 4)
    return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
  else
    return __builtin_shufflevector(a, b, 0, 2) + __builtin_shufflevector(a, b, 1, 3);
}

// f(0), f(1) ... f(N - 1) with numbers known while compiling, so that arrays of sums stay in registers.
template <class F, int... I>
INLINE void each(F f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>()), ...);
}
template <int N, class F>
INLINE void each(F f) {
  each(f, std::make_integer_sequence<int, N>());
}

// A vector of the sums of N vectors.
template <int N, class V>
INLINE V folded(const V (&x)[N]) {
  if constexpr (N == 1) {
    return x[0];
  } else {
    V y[N / 2];
    each<N / 2>([&](auto i) INLINED { y[i] = pair(x[2 * i], x[2 * i + 1]); });
    return folded<N / 2>(y);
  }
}

// The sums over the lanes of each of N vectors.
template <int N, class R>
INLINE void across(const Vec<R> (&x)[N], R *sums) {
  constexpr int lanes = Wide<R>::lanes;
  if constexpr (N > lanes) {
    each<N / lanes>([&](auto n) INLINED {
      Vec<R> some[lanes];
      each<lanes>([&](auto i) INLINED { some[i] = x[n * lanes + i]; });
      across<lanes, R>(some, sums + n * lanes);
    });
  } else {
    Vec<R> y = folded<N>(x);
    for (int left = lanes / N; left > 1; left /= 2) y = pair(y, y);
    std::memcpy(sums, &y, N * sizeof(R));
  }
}

inline Vec<double> exponential(Vec<double> x) {
  for (int i = 0; i < Wide<double>::lanes; i++) x[i] = std::exp(x[i]);
  return x;
}
// e^x by 2^n e^r, |r| <= ln 2 / 2, and Taylor's series of e^r: within 2e-7 of it. What is no number stays so.
inline Vec<float> exponential(Vec<float> x) {
  typedef int32_t whole __attribute__((vector_size(BYTES)));
  Vec<float> zero = {};
  x = x < -87.0f ? zero - 87.0f : x;
  x = x > 88.0f ? zero + 88.0f : x;
  Vec<float> shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;  // to the nearest whole
  Vec<float> r = x - n * 0.693359375f + n * 2.12194440e-4f, y = r * (1 / 5040.0f) + 1 / 720.0f;
  for (float c : {1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 0.5f, 1.0f, 1.0f}) y = y * r + c;
  whole power;
  std::memcpy(&power, &shifted, sizeof power);
  power = (power + 127) << 23;  // the low bits of `shifted` are n
  Vec<float> scale;
  std::memcpy(&scale, &power, sizeof scale);
  return y * scale;
}

}  // namespace

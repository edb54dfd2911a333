// SPDX-License-Identifier: Apache-2.0
// Products of a few rows with a weight that is read once, as it lies: outputs (N) by inputs (K).

#pragma once
#include "vectors.h"

#include <memory>

enum Kind : int64_t { WHOLE, HALF, INT8 };  // as R itself; bfloat16; codes with a scale an output

extern "C" {
struct Linear {  // weight (N, K), scale (N,) of R or null, bias (N,) of R or null
  const void *weight, *scale, *bias;
  int64_t kind, outputs, inputs;
};
}

namespace {

// y[t * M + m] = the product of row t of the weight and row m of x: T rows by M rows, a power of two.
// x is packed: M times as many numbers as a vector holds follow each other, what is left at the end likewise.
template <class R, class W, int M, int T>
INLINE void tile(const W *weight, const R *x, int64_t inputs, R *y) {
  constexpr int lanes = Wide<R>::lanes, U = M == 1 ? 2 : 1;  // U steps at once, so that sums are enough
  Vec<R> sums[U * T * M];
  each<U * T * M>([&](auto i) INLINED { sums[i] = Vec<R>{}; });
  int64_t k = 0;
  for (; k + U * lanes <= inputs; k += U * lanes) {
    // Memory is what all wait for: what comes 4 KB behind these rows is called into the second cache now.
    const W *next = weight + T * (inputs + k) + 4096 / sizeof(W);
    each<U>([&](auto u) INLINED {
      Vec<R> w[T];
      each<T>([&](auto t) INLINED {
        w[t] = load<R>(weight + t * inputs + k + u * lanes);
        if constexpr (t * lanes * sizeof(W) % 64 == 0)
          __builtin_prefetch(next + (u * T + t) * lanes, 0, 2);
      });
      each<M>([&](auto m) INLINED {
        Vec<R> one = load<R>(x + (k + u * lanes) * M + m * lanes);
        KEEP(one);  // loaded once, not at each product
        each<T>([&](auto t) INLINED { sums[(u * T + t) * M + m] += w[t] * one; });
      });
    });
  }
  if constexpr (U == 2) each<T * M>([&](auto i) INLINED { sums[i] += sums[T * M + i]; });
  constexpr int some = T % 2 ? M : T % 4 ? 2 * M : 4 * M;  // a power of two
  each<T * M / some>([&](auto n) INLINED {
    Vec<R> part[some];
    each<some>([&](auto i) INLINED { part[i] = sums[n * some + i]; });
    across<some, R>(part, y + n * some);
  });
  for (; k < inputs; k++)
    for (int t = 0; t < T; t++)
      for (int m = 0; m < M; m++) y[t * M + m] += number<R>(weight[t * inputs + k]) * x[k * M + m];
}

template <class R, class W, int M, int T>
INLINE void outputs(const Linear &linear, const R *x, R *y, int64_t from, int64_t rows) {
  auto scale = static_cast<const R *>(linear.scale), bias = static_cast<const R *>(linear.bias);
  R found[T * M];
  tile<R, W, M, T>(static_cast<const W *>(linear.weight) + from * linear.inputs, x, linear.inputs, found);
  y += from;
  if (rows == M && !scale && !bias)
    each<T * M>([&](auto i) INLINED { y[i % M * linear.outputs + i / M] = found[i]; });
  else
    for (int t = 0; t < T; t++) {
      R factor = scale ? scale[from + t] : R(1), more = bias ? bias[from + t] : R(0);
      for (int m = 0; m < rows; m++) y[m * linear.outputs + t] = found[t * M + m] * factor + more;
    }
}

constexpr int ROWS = 8, STRETCH = 48;  // rows at once; outputs between which threads may change

template <class R, class W, int M>
void some(const Linear &linear, const R *x, R *y, int64_t from, int64_t to, int64_t rows) {
  constexpr int T = M == ROWS ? REGISTERS / ROWS : 4;
  for (; from + T <= to; from += T) outputs<R, W, M, T>(linear, x, y, from, rows);
  for (; from < to; from++) outputs<R, W, M, 1>(linear, x, y, from, rows);
}

// So many rows are multiplied at once when so many are left; those that are missing are zeros.
inline int64_t at_once(int64_t left) { return left < 3 ? left : ROWS; }

template <class R>
void pack(const R *x, int64_t rows, int64_t inputs, R *packed) {
  constexpr int64_t lanes = Wide<R>::lanes;
  for (int64_t r = 0; r < rows; r += ROWS, packed += ROWS * inputs) {
    int64_t many = at_once(rows - r), k = 0;
    std::memset(packed, 0, many * inputs * sizeof(R));
    for (int64_t m = 0; m < many && r + m < rows; m++) {
      const R *row = x + (r + m) * inputs;
      for (k = 0; k + lanes <= inputs; k += lanes) store<R>(packed + k * many + m * lanes, load<R>(row + k));
      for (; k < inputs; k++) packed[k * many + m] = row[k];
    }
  }
}

template <class R, class W>
void stretch(const Linear &linear, const R *packed, R *y, int64_t from, int64_t to, int64_t rows) {
  for (int64_t r = 0; r < rows; r += ROWS) {
    const R *x = packed + r * linear.inputs;
    R *found = y + r * linear.outputs;
    int64_t left = rows - r < ROWS ? rows - r : ROWS, many = at_once(left);
    if (many == 1) some<R, W, 1>(linear, x, found, from, to, left);
    else if (many == 2) some<R, W, 2>(linear, x, found, from, to, left);
    else some<R, W, ROWS>(linear, x, found, from, to, left);
  }
}

template <class R>
struct Product {
  const Linear *linear;
  R *y;
};

// Products of the same rows, x (B, K): each y is (B, N).
template <class R, int COUNT>
void multiply(const Product<R> (&products)[COUNT], const R *x, int64_t rows, int threads) {
  int64_t ends[COUNT], all = 0, inputs = products[0].linear->inputs;
  for (int i = 0; i < COUNT; i++) ends[i] = all += (products[i].linear->outputs + STRETCH - 1) / STRETCH;
  std::unique_ptr<R[]> packed(new R[(rows + ROWS) * inputs]);
  pack(x, rows, inputs, packed.get());
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t n = 0; n < all; n++) {
    int i = 0;
    while (n >= ends[i]) i++;
    const Linear &linear = *products[i].linear;
    int64_t from = (n - (i ? ends[i - 1] : 0)) * STRETCH, to = from + STRETCH;
    if (to > linear.outputs) to = linear.outputs;
    if (linear.kind == WHOLE) {
      stretch<R, R>(linear, packed.get(), products[i].y, from, to, rows);
    } else if constexpr (sizeof(R) == 4) {  // doubles are for laws
      if (linear.kind == INT8) stretch<R, int8_t>(linear, packed.get(), products[i].y, from, to, rows);
      else stretch<R, Half>(linear, packed.get(), products[i].y, from, to, rows);
    }
  }
}

}  // namespace

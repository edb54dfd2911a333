// SPDX-License-Identifier: Apache-2.0
// The queries of a group of heads over the keys and values of one sample, which are read once.
//   E head size   G heads of the group   N tokens

#pragma once
#include "vectors.h"

#include <limits>
#include <memory>

namespace {

constexpr int BLOCK = 16;  // tokens at once; the next as many are on their way meanwhile

// The same number of the next block is called into the second cache.
template <int V, class R, class C>
INLINE void call(const C *row) {
  constexpr int lanes = Wide<R>::lanes, size = V * lanes;
  each<V>([&](auto v) INLINED {
    if constexpr (v * lanes * sizeof(C) % 64 == 0) __builtin_prefetch(row + BLOCK * size + v * lanes, 0, 2);
  });
}

// Scores s[g * BLOCK + n] of Q queries (Q, E) and up to BLOCK keys.
template <class R, class C, int Q, int V>
void scores(const R *q, const C *keys, int64_t count, R scale, R *s) {
  constexpr int lanes = Wide<R>::lanes, size = V * lanes;
  Vec<R> own[Q * V];
  each<Q * V>([&](auto i) INLINED { own[i] = load<R>(q + i * lanes) * scale; });
  for (int64_t n = 0; n < count; n++) {
    const C *row = keys + n * size;
    call<V, R>(row);
    Vec<R> sums[Q];
    each<V>([&](auto v) INLINED {
      Vec<R> key = load<R>(row + v * lanes);
      KEEP(key);
      each<Q>([&](auto g) INLINED {
        if constexpr (v == 0) sums[g] = own[g * V] * key;
        else sums[g] += own[g * V + v] * key;
      });
    });
    R found[Q];
    across<Q, R>(sums, found);
    each<Q>([&](auto g) INLINED { s[g * BLOCK + n] = found[g]; });
  }
}

// y[g] = y[g] * kept[g] + the sum of p[g * BLOCK + n] times value n, for Q queries.
template <class R, class C, int Q, int V>
void gather(const R *p, const C *values, int64_t count, const R *kept, R *y) {
  constexpr int lanes = Wide<R>::lanes, size = V * lanes;
  Vec<R> sums[Q * V];
  each<Q * V>([&](auto i) INLINED { sums[i] = load<R>(y + i * lanes) * kept[i / V]; });
  for (int64_t n = 0; n < count; n++) {
    const C *row = values + n * size;
    call<V, R>(row);
    Vec<R> value[V];
    each<V>([&](auto v) INLINED { value[v] = load<R>(row + v * lanes); });
    each<Q>([&](auto g) INLINED {
      R weight = p[g * BLOCK + n];
      each<V>([&](auto v) INLINED { sums[g * V + v] += weight * value[v]; });
    });
  }
  each<Q * V>([&](auto i) INLINED { store<R>(y + i * lanes, sums[i]); });
}

// Both for any head size.
template <class R, class C>
inline void plain_scores(const R *q, const C *keys, int64_t count, int64_t size, R scale, R *s) {
  for (int64_t n = 0; n < count; n++) {
    R sum = 0;
    for (int64_t i = 0; i < size; i++) sum += q[i] * number<R>(keys[n * size + i]);
    s[n] = sum * scale;
  }
}
template <class R, class C>
inline void plain_gather(const R *p, const C *values, int64_t count, int64_t size, R kept, R *y) {
  for (int64_t i = 0; i < size; i++) y[i] *= kept;
  for (int64_t n = 0; n < count; n++)
    for (int64_t i = 0; i < size; i++) y[i] += p[n] * number<R>(values[n * size + i]);
}

// s (BLOCK,) becomes e^(s - best), with the best score and the sum so far; what old sums still weigh.
template <class R>
inline R weigh(R *s, int64_t count, R &best, R &sum) {
  constexpr int lanes = Wide<R>::lanes;
  R highest = best;
  for (int64_t n = 0; n < count; n++) highest = s[n] > highest ? s[n] : highest;
  for (int64_t n = count; n % lanes; n++) s[n] = -std::numeric_limits<R>::infinity();
  Vec<R> sums[1] = {};
  for (int64_t n = 0; n < count; n += lanes) {
    Vec<R> p = exponential(load<R>(s + n) - highest);
    for (int i = 0; i < lanes && n + lanes > count; i++)
      if (n + i >= count) p[i] = 0;
    store<R>(s + n, p);
    sums[0] += p;
  }
  R more;
  across<1, R>(sums, &more);
  R kept = std::exp(best - highest);
  best = highest;
  sum = sum * kept + more;
  return kept;
}

// The queries of one group (G, E) over its keys and values (N, E) -> y (G, E), block by block.
template <class R, class C, int V>
void attend(const R *q, const C *keys, const C *values, int64_t tokens, int64_t group, int64_t size, R *y) {
  constexpr int room = V ? 2 * REGISTERS / 3 / (V ? V : 1) : 1, Q = room >= 4 ? 4 : room >= 2 ? 2 : 1;
  R scale = 1 / std::sqrt(R(size));
  std::unique_ptr<R[]> s(new R[group * (BLOCK + 3)]);
  R *best = s.get() + group * BLOCK, *sum = best + group, *kept = sum + group;
  for (int64_t g = 0; g < group; g++) best[g] = -std::numeric_limits<R>::infinity(), sum[g] = 0;
  std::memset(y, 0, group * size * sizeof(R));
  for (int64_t n = 0; n < tokens; n += BLOCK) {
    int64_t count = tokens - n < BLOCK ? tokens - n : BLOCK, g = 0;
    const C *k = keys + n * size, *v = values + n * size;
    if constexpr (V > 0) {
      for (; g + Q <= group; g += Q) scores<R, C, Q, V>(q + g * size, k, count, scale, &s[g * BLOCK]);
      for (; g < group; g++) scores<R, C, 1, V>(q + g * size, k, count, scale, &s[g * BLOCK]);
    } else
      for (; g < group; g++) plain_scores<R, C>(q + g * size, k, count, size, scale, &s[g * BLOCK]);
    for (g = 0; g < group; g++) kept[g] = weigh<R>(&s[g * BLOCK], count, best[g], sum[g]);
    g = 0;
    if constexpr (V > 0) {
      for (; g + Q <= group; g += Q) gather<R, C, Q, V>(&s[g * BLOCK], v, count, kept + g, y + g * size);
      for (; g < group; g++) gather<R, C, 1, V>(&s[g * BLOCK], v, count, kept + g, y + g * size);
    } else
      for (; g < group; g++) plain_gather<R, C>(&s[g * BLOCK], v, count, size, kept[g], y + g * size);
  }
  for (int64_t g = 0; g < group; g++) {
    R factor = 1 / sum[g];
    for (int64_t i = 0; i < size; i++) y[g * size + i] *= factor;
  }
}

template <class R, class C>
void meet(const R *q, const C *keys, const C *values, int64_t tokens, int64_t group, int64_t size, R *y) {
  constexpr int lanes = Wide<R>::lanes;
  if (size == 2 * lanes) attend<R, C, 2>(q, keys, values, tokens, group, size, y);
  else if (size == 4 * lanes) attend<R, C, 4>(q, keys, values, tokens, group, size, y);
  else if (size == 8 * lanes) attend<R, C, 8>(q, keys, values, tokens, group, size, y);
  else attend<R, C, 0>(q, keys, values, tokens, group, size, y);
}

}  // namespace

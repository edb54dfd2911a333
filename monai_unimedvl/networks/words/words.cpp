// SPDX-License-Identifier: Apache-2.0
// The next word of a few samples, all layers in one call: the numbers of Decoder.forward, see `native.py`.
//
// Sums are in R, which is float, or double. Threads share the outputs of a product, and heads.
//   B samples   D hidden size   H heads   K key-value heads   E head size   S samples of the cache

#include "attention.h"
#include "products.h"

extern "C" {
struct Norm {  // weight of R, or null for none
  const void *weight;
  double eps;
};
struct Layer {
  Norm norm1, q_norm, k_norm, norm2;
  Linear q, k, v, out, gate, up, down;
};
struct Network {
  const Layer *layers;
  int64_t num_layers, num_heads, num_kv_heads, head_size;
  Norm norm;
  Linear head;
};
struct Past {  // keys and values (layers, S, K, capacity, E), of R or bfloat16; `lengths` before this word
  void *keys, *values;
  int64_t half, samples, capacity;
  const int64_t *at, *lengths;
};
}

namespace {

template <class R>
void rms(const R *x, const Norm &norm, R *y, int64_t size) {
  constexpr int lanes = Wide<R>::lanes;
  Vec<R> sums[2] = {};
  int64_t i = 0;
  for (; i + 2 * lanes <= size; i += 2 * lanes) {
    Vec<R> a = load<R>(x + i), b = load<R>(x + i + lanes);
    sums[0] += a * a, sums[1] += b * b;
  }
  R sum[2];
  across<2, R>(sums, sum);
  for (; i < size; i++) sum[0] += x[i] * x[i];
  R factor = 1 / std::sqrt((sum[0] + sum[1]) / size + R(norm.eps));
  auto weight = static_cast<const R *>(norm.weight);
  for (i = 0; i + lanes <= size; i += lanes) store<R>(y + i, load<R>(x + i) * factor * load<R>(weight + i));
  for (; i < size; i++) y[i] = x[i] * factor * weight[i];
}

// A head, normed and turned by its position: cos and sin (E/2,).
template <class R>
void turn(R *x, const Norm &norm, const R *cos, const R *sin, int64_t size) {
  if (norm.weight) rms(x, norm, x, size);
  for (int64_t i = 0, half = size / 2; i < half; i++) {
    R a = x[i], b = x[i + half];
    x[i] = a * cos[i] - b * sin[i];
    x[i + half] = b * cos[i] + a * sin[i];
  }
}

// Attention of a layer: q (B, H*E), k and v (B, K*E) not yet normed and turned -> y (B, H*E).
template <class R, class C>
void attention(const Network &net, int64_t n, const Past &past, int64_t rows, const R *cos, const R *sin,
               R *q, R *k, const R *v, R *y, int threads) {
  const Layer &layer = net.layers[n];
  int64_t size = net.head_size, few = net.num_kv_heads, group = net.num_heads / few;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < rows * few; i++) {
    int64_t b = i / few, before = past.lengths[b];
    const R *own_cos = cos + b * size / 2, *own_sin = sin + b * size / 2;
    int64_t place = (((n * past.samples + past.at[b]) * few + i % few) * past.capacity) * size;
    C *keys = static_cast<C *>(past.keys) + place, *values = static_cast<C *>(past.values) + place;
    R *queries = q + i * group * size;
    for (int64_t g = 0; g < group; g++) turn(queries + g * size, layer.q_norm, own_cos, own_sin, size);
    turn(k + i * size, layer.k_norm, own_cos, own_sin, size);
    for (int64_t e = 0; e < size; e++) {
      round_to(k[i * size + e], keys + before * size + e);
      round_to(v[i * size + e], values + before * size + e);
    }
    meet<R, C>(queries, keys, values, before + 1, group, size, y + i * group * size);
  }
}

// silu(gate) * up, in place of gate.
template <class R>
void gated(R *gate, const R *up, int64_t count) {
  constexpr int lanes = Wide<R>::lanes;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    Vec<R> x = load<R>(gate + i);
    store<R>(gate + i, x / (1 + exponential(-x)) * load<R>(up + i));
  }
  for (; i < count; i++) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
}

// x + y, in place of x.
template <class R>
void add(R *x, const R *y, int64_t count) {
  constexpr int lanes = Wide<R>::lanes;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store<R>(x + i, load<R>(x + i) + load<R>(y + i));
  for (; i < count; i++) x[i] += y[i];
}

template <class R>
void words(const Network &net, const Past &past, int64_t rows, R *x, const R *cos, const R *sin, R *scores,
           int threads) {
  int64_t size = net.head.inputs, wide = 0, many = net.num_heads * net.head_size;
  int64_t narrow = net.num_kv_heads * net.head_size;
  for (int64_t n = 0; n < net.num_layers; n++)
    if (net.layers[n].gate.outputs > wide) wide = net.layers[n].gate.outputs;
  std::unique_ptr<R[]> scratch(new R[rows * (2 * size + 2 * many + 2 * narrow + 2 * wide)]);
  R *h = scratch.get(), *more = h + rows * size, *q = more + rows * size, *y = q + rows * many;
  R *k = y + rows * many, *v = k + rows * narrow, *gate = v + rows * narrow, *up = gate + rows * wide;
  for (int64_t n = 0; n < net.num_layers; n++) {
    const Layer &layer = net.layers[n];
    for (int64_t b = 0; b < rows; b++) rms(x + b * size, layer.norm1, h + b * size, size);
    multiply<R, 3>({{&layer.q, q}, {&layer.k, k}, {&layer.v, v}}, h, rows, threads);
    if (!past.half) attention<R, R>(net, n, past, rows, cos, sin, q, k, v, y, threads);
    else if constexpr (sizeof(R) == 4)
      attention<R, Half>(net, n, past, rows, cos, sin, q, k, v, y, threads);
    multiply<R, 1>({{&layer.out, more}}, y, rows, threads);
    add(x, more, rows * size);
    for (int64_t b = 0; b < rows; b++) rms(x + b * size, layer.norm2, h + b * size, size);
    multiply<R, 2>({{&layer.gate, gate}, {&layer.up, up}}, h, rows, threads);
    gated(gate, up, rows * layer.gate.outputs);
    multiply<R, 1>({{&layer.down, more}}, gate, rows, threads);
    add(x, more, rows * size);
  }
  for (int64_t b = 0; b < rows; b++) rms(x + b * size, net.norm, h + b * size, size);
  multiply<R, 1>({{&net.head, scores}}, h, rows, threads);
}

// The products of a word alone, of rows x (B, the widest inputs): what no decoder on them can go below.
template <class R>
void products(const Network &net, int64_t rows, const R *x, R *scores, int threads) {
  for (int64_t n = 0; n < net.num_layers; n++) {
    const Layer &layer = net.layers[n];
    for (const Linear *one : {&layer.q, &layer.k, &layer.v, &layer.out, &layer.gate, &layer.up, &layer.down})
      multiply<R, 1>({{one, scores}}, x, rows, threads);
  }
  multiply<R, 1>({{&net.head, scores}}, x, rows, threads);
}

}  // namespace

extern "C" {
// x (B, D) is overwritten; cos and sin (B, E/2); scores (B, vocabulary).
void words_float(const Network *net, const Past *past, int64_t rows, float *x, const float *cos,
                 const float *sin, float *scores, int threads) {
  words<float>(*net, *past, rows, x, cos, sin, scores, threads);
}
void words_double(const Network *net, const Past *past, int64_t rows, double *x, const double *cos,
                  const double *sin, double *scores, int threads) {
  words<double>(*net, *past, rows, x, cos, sin, scores, threads);
}
void products_float(const Network *net, int64_t rows, const float *x, float *scores, int threads) {
  products<float>(*net, rows, x, scores, threads);
}
}

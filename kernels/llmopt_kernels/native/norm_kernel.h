// Norms over one row, and element by element what stands between products.
//
// Included once per instruction set, after step_lanes.h.
#pragma once
#include <cmath>

#include "step.h"

namespace {

using namespace llmopt;

// RMSNorm (Zhang and Sennrich, 2019) or LayerNorm (Ba et al., 2016) of x [width] in float32.
void norm(const Norm& norm, const float* x, float* y, int width) {
  if (norm.kind == kNoNorm) {
    if (y != x) std::memcpy(y, x, width * sizeof(float));
    return;
  }
  float mean = 0.0f;
  if (norm.kind == kLayerNorm) {
    Lanes total = all_lanes(0);
    for (int i = 0; i < width; i += kWidth) total += load_some(x + i, width - i);
    mean = sum_lanes(total) / float(width);
  }
  Lanes squares = all_lanes(0);
  for (int i = 0; i < width; i += kWidth) {
    const Lanes v = load_some(x + i, width - i, mean) - mean;
    squares += v * v;
  }
  const float scale = 1.0f / std::sqrt(sum_lanes(squares) / float(width) + norm.eps);
  for (int i = 0; i < width; i += kWidth) {
    const int count = width - i;
    Lanes v = (load_some(x + i, count) - mean) * scale * load_some(norm.gain + i, count);
    if (norm.bias) v += load_some(norm.bias + i, count);
    store_some(y + i, v, count);
  }
}

void widen(const uint16_t* x, float* y, int count) {
  int i = 0;
  for (; i + kWidth <= count; i += kWidth) store_lanes(y + i, load_halves(x + i));
  for (; i < count; i++) y[i] = widen_half(x[i]);
}

// Rotary embedding (Su et al., 2021) of a head: pairs (i, i + pairs), nothing beyond 2 * pairs.
void rotate(const float* x, const float* cosines, const float* sines, int pairs, int dim,
            uint16_t* y) {
  for (int p = 0; p < pairs; p += kWidth) {
    const int count = pairs - p;
    const Lanes a = load_some(x + p, count), b = load_some(x + pairs + p, count);
    const Lanes cosine = load_some(cosines + p, count), sine = load_some(sines + p, count);
    store_some_halves(y + p, a * cosine - b * sine, count);
    store_some_halves(y + pairs + p, b * cosine + a * sine, count);
  }
  for (int i = 2 * pairs; i < dim; i += kWidth) {
    store_some_halves(y + i, load_some(x + i, dim - i), dim - i);
  }
}

void add(const float* x, float* y, int count) {
  for (int i = 0; i < count; i++) y[i] += x[i];
}

void soft_cap(float* x, float cap, int count) {
  for (int i = 0; i < count; i += kWidth) {
    const Lanes v = load_some(x + i, count - i);
    store_some(x + i, tanh_lanes(v / cap) * cap, count - i);
  }
}

}  // namespace

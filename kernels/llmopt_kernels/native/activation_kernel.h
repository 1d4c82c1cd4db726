// The activation between an MLP's products, alone or times the second half of its input.
//
// Included once per instruction set, after step_lanes.h.
#pragma once
#include <cmath>

#include "step.h"

namespace {

using namespace llmopt;

inline Lanes activated(int32_t activation, Lanes x) {
  switch (activation) {
    case kSilu:
      return x / (1.0f + exp_lanes(-x));
    case kGeluTanh:
      return 0.5f * x * (1.0f + tanh_lanes(0.7978845608f * (x + 0.044715f * x * x * x)));
    case kRelu:
      return x < 0.0f ? all_lanes(0) : x;
    default: {
      float lanes[kWidth];
      store_lanes(lanes, x);
      for (float& v : lanes) v = 0.5f * v * (1.0f + std::erf(v * 0.7071067812f));
      return load_lanes(lanes);
    }
  }
}

void activate(int32_t activation, bool gated, const float* x, float* y, int width) {
  for (int i = 0; i < width; i += kWidth) {
    Lanes v = activated(activation, load_some(x + i, width - i));
    if (gated) v *= load_some(x + width + i, width - i);
    store_some(y + i, v, width - i);
  }
}

}  // namespace

// Rounding a layer's inputs: to int8 with one scale per step of columns, or to bfloat16.
//
// Included once per instruction set, after its simd_*.h.
#pragma once
#include "linear.h"

namespace {

using namespace llmopt;
using simd::Floats;
using simd::Ints;

constexpr int kLaneCount = 16;
constexpr float kFiner = 254.0f;      // of the second part: half a unit is 127 of its units
constexpr float kSmallest = 1e-30f;  // a step of smaller inputs counts as zeros

struct Inputs {
  const void* x;  // one token
  int32_t type;
  const int32_t* order;
  int32_t count;  // K
};

inline float input_at(const Inputs& in, int column) {
  const int source = in.order ? in.order[column] : column;
  if (in.type == kFloat32) return static_cast<const float*>(in.x)[source];
  const uint32_t bits = uint32_t(static_cast<const uint16_t*>(in.x)[source]) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// Columns `column` .. +15, zeros beyond the last.
inline Floats load_inputs(const Inputs& in, int column) {
  if (in.order == nullptr && column + kLaneCount <= in.count) {
    if (in.type == kFloat32) return simd::load_float32(static_cast<const float*>(in.x) + column);
    return simd::load_bfloat16(static_cast<const uint16_t*>(in.x) + column);
  }
  float lanes[kLaneCount];
  for (int i = 0; i < kLaneCount; i++) {
    lanes[i] = column + i < in.count ? input_at(in, column + i) : 0.0f;
  }
  return simd::load_float32(lanes);
}

// The integers of one part of a step, their scale, and scale * their sum.
struct Rounded {
  int8_t* codes;
  float* scale;
  float* scaled_sum;
};

// One step: codes = round_half_even(x * (127 / largest)), scale = largest / 127. With a second part,
// what this leaves, at most half a unit, in units of 1 / 254. Inputs that are not finite make the
// scale, and with it every output, not a number.
inline void quantize_step(const Inputs& in, int column, int step, const Rounded& first,
                          const Rounded* second) {
  Floats largest = simd::zero_floats(), poison = simd::zero_floats();
  for (int k = 0; k < step; k += kLaneCount) {
    const Floats x = load_inputs(in, column + k);
    largest = simd::larger_magnitude(largest, x);
    poison = simd::multiply_add(x, simd::zero_floats(), poison);
  }
  float magnitude = simd::largest_magnitude(largest);
  if (magnitude < kSmallest) magnitude = 0.0f;
  const bool finite = !simd::has_nan(poison);
  const Floats factor = simd::broadcast(magnitude > 0.0f && finite ? 127.0f / magnitude : 0.0f);
  const Floats one = simd::broadcast(1.0f), finer = simd::broadcast(kFiner);
  Ints total = simd::zero_ints(), total_second = simd::zero_ints();
  for (int k = 0; k < step; k += kLaneCount) {
    const Floats x = finite ? load_inputs(in, column + k) : simd::zero_floats();
    const Floats scaled = simd::multiply(x, factor);
    const Ints rounded = simd::to_ints(scaled);
    total = simd::add(total, rounded);
    simd::store_int8(first.codes + k, rounded);
    if (second == nullptr) continue;
    const Floats left = simd::negative_multiply_add(simd::to_floats(rounded), one, scaled);
    const Ints rounded_left = simd::to_ints(simd::multiply(left, finer));
    total_second = simd::add(total_second, rounded_left);
    simd::store_int8(second->codes + k, rounded_left);
  }
  *first.scale = finite ? magnitude / 127.0f : __builtin_nanf("");
  *first.scaled_sum = *first.scale * float(simd::sum(total));
  if (second == nullptr) return;
  *second->scale = *first.scale / kFiner;
  *second->scaled_sum = *second->scale * float(simd::sum(total_second));
}

void prepare(const LinearWeight& w, const Activations& act, const void* x, int32_t x_type,
             int64_t x_stride, int first, int last) {
  const size_t element = x_type == kFloat32 ? 4 : 2;
  const int steps = w.padded_in / w.step;
  for (int t = first; t < last; t++) {
    const void* token = static_cast<const uint8_t*>(x) + size_t(t) * x_stride * element;
    const Inputs in = {token, x_type, w.order, w.in_features};
    if (w.storage == kRows) {
      uint16_t* values = static_cast<uint16_t*>(act.values) + size_t(t) * w.padded_in;
      for (int k = 0; k < w.padded_in; k += kLaneCount) {
        simd::store_bfloat16(values + k, load_inputs(in, k));
      }
      continue;
    }
    const size_t row = size_t(t) * w.parts;
    int8_t* codes = static_cast<int8_t*>(act.values) + row * w.padded_in;
    for (int s = 0; s < steps; s++) {
      const size_t at = row * steps + s;
      int8_t* place = codes + s * w.step;
      const Rounded first = {place, act.scales + at, act.sums + at};
      const Rounded second = {place + w.padded_in, act.scales + at + steps, act.sums + at + steps};
      quantize_step(in, s * w.step, w.step, first, w.parts == 2 ? &second : nullptr);
    }
  }
}

}  // namespace

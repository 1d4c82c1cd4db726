// Sixteen lanes of 32 bits in plain C++: what every processor runs, and what the others must equal.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {
namespace simd {

constexpr int kLanes = 16;

struct Ints {
  union {
    int32_t v[kLanes];
    uint8_t bytes[4 * kLanes];
    uint16_t halves[2 * kLanes];
  };
};
struct Floats {
  float v[kLanes];
};

template <class Function>
inline Floats each(Function function) {
  Floats result;
  for (int i = 0; i < kLanes; i++) result.v[i] = function(i);
  return result;
}
template <class Function>
inline Ints each_byte(Function function) {
  Ints result;
  for (int i = 0; i < 4 * kLanes; i++) result.bytes[i] = function(i);
  return result;
}

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline float from_bfloat16(uint16_t half) { return from_bits(uint32_t(half) << 16); }
inline float from_float16(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16;
  const int exponent = (half >> 10) & 31, fraction = half & 1023;
  if (exponent == 31) return from_bits(sign | 0x7f800000u | uint32_t(fraction) << 13);
  const float magnitude = exponent ? std::ldexp(float(1024 + fraction), exponent - 25)
                                   : std::ldexp(float(fraction), -24);
  return sign ? -magnitude : magnitude;
}
inline uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (std::isnan(x)) return 0x7fc0;
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline Ints zero_ints() { return each_byte([](int) { return 0; }); }
inline Floats zero_floats() { return each([](int) { return 0.0f; }); }
inline Floats broadcast(float x) { return each([=](int) { return x; }); }
inline Ints load(const uint8_t* p) { return each_byte([=](int i) { return p[i]; }); }
inline Ints low_nibbles(const Ints& x) { return each_byte([&](int i) { return x.bytes[i] & 15; }); }
inline Ints high_nibbles(const Ints& x) { return each_byte([&](int i) { return x.bytes[i] >> 4; }); }
// `value` more in each byte whose bit of the 8 bytes at `bits` is set.
inline Ints add_bits(const Ints& x, const uint8_t* bits, int value) {
  return each_byte([&](int i) { return x.bytes[i] + (bits[i / 8] >> i % 8 & 1) * value; });
}
inline Ints load_table(const uint8_t* p) { return each_byte([=](int i) { return p[i & 15]; }); }
inline Ints look_up(const Ints& table, const Ints& index) {
  return each_byte([&](int i) { return table.bytes[index.bytes[i]]; });
}

// acc + the dot product of each lane's 4 unsigned bytes and the 4 signed bytes of x.
inline void dot4(Ints& acc, const Ints& codes, const Ints& x) {
  for (int i = 0; i < 4 * kLanes; i++) acc.v[i / 4] += codes.bytes[i] * int8_t(x.bytes[i]);
}
// acc + the dot product of each lane's 2 bfloat16 and the 2 of x.
inline void dot2(Floats& acc, const Ints& pairs, const Ints& x) {
  for (int i = 0; i < 2 * kLanes; i++) {
    acc.v[i / 2] += from_bfloat16(pairs.halves[i]) * from_bfloat16(x.halves[i]);
  }
}
// Lane i of the result is the sum of the lanes of x[i].
inline Floats sum_each(const Floats* x) {
  return each([=](int i) {
    float total = 0;
    for (float lane : x[i].v) total += lane;
    return total;
  });
}
// The 4 bytes at x in every lane.
inline Ints broadcast_bytes(const void* x) {
  const uint8_t* bytes = static_cast<const uint8_t*>(x);
  return each_byte([=](int i) { return bytes[i & 3]; });
}

inline Floats to_floats(const Ints& x) { return each([&](int i) { return float(x.v[i]); }); }
inline Floats add(const Floats& a, const Floats& b) {
  return each([&](int i) { return a.v[i] + b.v[i]; });
}
inline Floats multiply(const Floats& a, const Floats& b) {
  return each([&](int i) { return a.v[i] * b.v[i]; });
}
inline Floats multiply_add(const Floats& a, const Floats& b, const Floats& c) {
  return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline Floats negative_multiply_add(const Floats& a, const Floats& b, const Floats& c) {
  return each([&](int i) { return c.v[i] - a.v[i] * b.v[i]; });
}

inline Floats load_float32(const float* p) { return each([=](int i) { return p[i]; }); }
inline Floats load_float16(const uint16_t* p) {
  return each([=](int i) { return from_float16(p[i]); });
}
inline Floats load_bfloat16(const uint16_t* p) {
  return each([=](int i) { return from_bfloat16(p[i]); });
}
inline Floats load_int8(const int8_t* p) { return each([=](int i) { return float(p[i]); }); }
inline Floats load_uint8(const uint8_t* p) { return each([=](int i) { return float(p[i]); }); }
inline void store_float32(float* p, const Floats& x) { std::memcpy(p, x.v, sizeof x.v); }
// Round to nearest, ties to even.
inline void store_bfloat16(uint16_t* p, const Floats& x) {
  for (int i = 0; i < kLanes; i++) p[i] = to_bfloat16(x.v[i]);
}

inline Floats larger_magnitude(const Floats& a, const Floats& b) {
  return each([&](int i) { return std::fmax(std::fabs(a.v[i]), std::fabs(b.v[i])); });
}
inline float largest_magnitude(const Floats& x) {
  float largest = 0;
  for (float lane : x.v) largest = std::fmax(largest, std::fabs(lane));
  return largest;
}
inline bool has_nan(const Floats& x) {
  for (float lane : x.v) {
    if (std::isnan(lane)) return true;
  }
  return false;
}
// Rounded half to even.
inline Ints to_ints(const Floats& x) {
  Ints result;
  for (int i = 0; i < kLanes; i++) result.v[i] = int32_t(std::nearbyint(x.v[i]));
  return result;
}
inline Ints add(const Ints& a, const Ints& b) {
  Ints result;
  for (int i = 0; i < kLanes; i++) result.v[i] = a.v[i] + b.v[i];
  return result;
}
inline int32_t sum(const Ints& x) {
  int32_t total = 0;
  for (int32_t lane : x.v) total += lane;
  return total;
}
inline void store_int8(int8_t* p, const Ints& x) {
  for (int i = 0; i < kLanes; i++) p[i] = int8_t(x.v[i]);
}

}  // namespace simd
}  // namespace

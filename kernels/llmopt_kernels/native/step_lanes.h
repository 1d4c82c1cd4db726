// Sixteen floats as one value, in the compilers' own vectors: lowered to any instruction set.
//
// Included once per instruction set.
#pragma once
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

namespace {

constexpr int kWidth = 16;
typedef float Lanes __attribute__((vector_size(64), aligned(4)));
typedef int32_t IntLanes __attribute__((vector_size(64), aligned(4)));
typedef uint32_t BitLanes __attribute__((vector_size(64), aligned(4)));
typedef uint16_t HalfLanes __attribute__((vector_size(32), aligned(2)));

inline Lanes all_lanes(float x) { return Lanes{} + x; }

inline Lanes load_lanes(const float* p) {
  Lanes x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline void store_lanes(float* p, Lanes x) { std::memcpy(p, &x, sizeof x); }

// The first `count` lanes, `other` beyond them.
inline Lanes load_some(const float* p, int count, float other = 0.0f) {
  if (count >= kWidth) return load_lanes(p);
  float x[kWidth];
  for (int i = 0; i < kWidth; i++) x[i] = i < count ? p[i] : other;
  return load_lanes(x);
}
inline void store_some(float* p, Lanes x, int count) {
  if (count >= kWidth) return store_lanes(p, x);
  float lanes[kWidth];
  store_lanes(lanes, x);
  std::memcpy(p, lanes, count * sizeof(float));
}

inline Lanes load_halves(const uint16_t* p) {
  HalfLanes x;
  std::memcpy(&x, p, sizeof x);
  return (Lanes)(__builtin_convertvector(x, BitLanes) << 16);
}
// Round to nearest, ties to even; not-a-number stays it.
inline void store_halves(uint16_t* p, Lanes x) {
  const BitLanes bits = (BitLanes)x;
  const BitLanes rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const IntLanes is_number = x == x;
  const BitLanes safe =
      (rounded & (BitLanes)is_number) | (BitLanes)(~is_number & (IntLanes{} + 0x7fc0));
  const HalfLanes halves = __builtin_convertvector(safe, HalfLanes);
  std::memcpy(p, &halves, sizeof halves);
}

inline void store_some_halves(uint16_t* p, Lanes x, int count) {
  if (count >= kWidth) return store_halves(p, x);
  uint16_t halves[kWidth];
  store_halves(halves, x);
  std::memcpy(p, halves, count * sizeof *halves);
}

// As store_halves of numbers only, of which those below 2^-126 may become 0.
inline void store_normal_halves(uint16_t* p, Lanes x) {
#if defined(__AVX512BF16__)
  const __m256bh halves = _mm512_cvtneps_pbh((__m512)x);
  std::memcpy(p, &halves, sizeof halves);
#else
  store_halves(p, x);
#endif
}

inline float widen_half(uint16_t half) {
  const uint32_t bits = uint32_t(half) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline BitLanes load_bits(const void* p) {
  BitLanes x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline BitLanes all_pairs(const uint16_t* pair) {
  uint32_t bits;
  std::memcpy(&bits, pair, sizeof bits);
  return BitLanes{} + bits;
}
// sums + the dot product of each lane's two bfloat16 in a and b.
inline Lanes add_pairs(Lanes sums, BitLanes a, BitLanes b) {
#if defined(__AVX512BF16__)
  return (Lanes)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
#else
  sums += (Lanes)(a << 16) * (Lanes)(b << 16);
  return sums + (Lanes)(a & 0xffff0000u) * (Lanes)(b & 0xffff0000u);
#endif
}

inline Lanes larger(Lanes a, Lanes b) { return a > b ? a : b; }

// Both take the halves of the lanes together, then the halves of those.
inline float sum_lanes(Lanes x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float lanes[kWidth];
  store_lanes(lanes, x);
  for (int half = kWidth / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  }
  return lanes[0];
#endif
}
inline float largest_lane(Lanes x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)x);
#else
  float lanes[kWidth];
  store_lanes(lanes, x);
  for (int half = kWidth / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; i++) {
      lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
    }
  }
  return lanes[0];
#endif
}

// e^x to about 1e-7 of it; 0 below -87. x = n ln 2 + r, with ln 2 in two parts and a polynomial of
// degree 6 in r (minimax coefficients as in Cephes' expf, Moshier).
inline Lanes exp_lanes(Lanes x) {
  const float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Lanes largest = all_lanes(88.0f), smallest = all_lanes(-87.0f);
  const IntLanes vanishes = x < smallest;
  Lanes y = x > largest ? largest : x;
  y = y < smallest ? smallest : y;
  const Lanes n = (y * 1.44269504f + kShift) - kShift;
  const Lanes r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  Lanes p = all_lanes(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const IntLanes exponent = (__builtin_convertvector(n, IntLanes) + 127) << 23;
  p *= (Lanes)exponent;
  return (Lanes)((IntLanes)p & ~vanishes);
}

inline Lanes tanh_lanes(Lanes x) { return 1.0f - 2.0f / (1.0f + exp_lanes(x + x)); }

}  // namespace

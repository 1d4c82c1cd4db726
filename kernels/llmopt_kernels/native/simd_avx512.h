// Sixteen lanes of 32 bits with AVX-512 (VNNI, BF16).
#pragma once
#include <immintrin.h>
#include <cstdint>

namespace {
namespace simd {

struct Ints {
  __m512i v;
};
struct Floats {
  __m512 v;
};

inline Ints zero_ints() { return {_mm512_setzero_si512()}; }
inline Floats zero_floats() { return {_mm512_setzero_ps()}; }
inline Floats broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Ints load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline Ints low_nibbles(Ints x) { return {_mm512_and_si512(x.v, _mm512_set1_epi8(15))}; }
inline Ints high_nibbles(Ints x) {
  return {_mm512_and_si512(_mm512_srli_epi16(x.v, 4), _mm512_set1_epi8(15))};
}
// `value` more in each byte whose bit of the 8 bytes at `bits` is set.
inline Ints add_bits(Ints x, const uint8_t* bits, int value) {
  __mmask64 mask;
  __builtin_memcpy(&mask, bits, sizeof mask);
  return {_mm512_mask_add_epi8(x.v, mask, x.v, _mm512_set1_epi8(char(value)))};
}
inline Ints load_table(const uint8_t* p) {
  return {_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline Ints look_up(Ints table, Ints index) {
  return {_mm512_shuffle_epi8(table.v, index.v)};
}

// The two dot products are written in assembly because GCC 12 makes copies of the accumulators and
// loads `codes` again for every use of the intrinsics, which halves the speed.

// acc + the dot product of each lane's 4 unsigned bytes and the 4 signed bytes of x.
inline void dot4(Ints& acc, Ints codes, Ints x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc.v) : "v"(codes.v), "v"(x.v));
}
// acc + the dot product of each lane's 2 bfloat16 and the 2 of x.
inline void dot2(Floats& acc, Ints pairs, Ints x) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(acc.v) : "v"(pairs.v), "v"(x.v));
}
// Lane i of the result is the sum of the lanes of x[i].
inline Floats sum_each(const Floats* x) {
  __m512 quarters[4];  // lanes 4q .. 4q+3: partial sums of x[4q + p]
  for (int p = 0; p < 4; p++) {
    const __m512 a = _mm512_add_ps(_mm512_shuffle_f32x4(x[p].v, x[p + 4].v, 0x44),
                                   _mm512_shuffle_f32x4(x[p].v, x[p + 4].v, 0xee));
    const __m512 b = _mm512_add_ps(_mm512_shuffle_f32x4(x[p + 8].v, x[p + 12].v, 0x44),
                                   _mm512_shuffle_f32x4(x[p + 8].v, x[p + 12].v, 0xee));
    quarters[p] =
        _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
  const __m512 c = _mm512_add_ps(_mm512_shuffle_ps(quarters[0], quarters[1], 0x44),
                                 _mm512_shuffle_ps(quarters[0], quarters[1], 0xee));
  const __m512 d = _mm512_add_ps(_mm512_shuffle_ps(quarters[2], quarters[3], 0x44),
                                 _mm512_shuffle_ps(quarters[2], quarters[3], 0xee));
  return {_mm512_add_ps(_mm512_shuffle_ps(c, d, 0x88), _mm512_shuffle_ps(c, d, 0xdd))};
}
// The 4 bytes at x in every lane.
inline Ints broadcast_bytes(const void* x) {
  int32_t bytes;
  __builtin_memcpy(&bytes, x, sizeof bytes);
  return {_mm512_set1_epi32(bytes)};
}

inline Floats to_floats(Ints x) { return {_mm512_cvtepi32_ps(x.v)}; }
inline Floats add(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats multiply(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
inline Floats negative_multiply_add(Floats a, Floats b, Floats c) {
  return {_mm512_fnmadd_ps(a.v, b.v, c.v)};
}

inline Floats load_float32(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Floats load_float16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline Floats load_bfloat16(const uint16_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
inline Floats load_int8(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}
inline Floats load_uint8(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))};
}
inline void store_float32(float* p, Floats x) { _mm512_storeu_ps(p, x.v); }
// Round to nearest, ties to even.
inline void store_bfloat16(uint16_t* p, Floats x) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i halves = _mm512_srli_epi32(rounded, 16);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  const __m512i safe = _mm512_mask_set1_epi32(halves, is_nan, 0x7fc0);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(safe));
}

inline float largest_magnitude(Floats x) { return _mm512_reduce_max_ps(_mm512_abs_ps(x.v)); }
inline Floats larger_magnitude(Floats a, Floats b) {
  return {_mm512_max_ps(_mm512_abs_ps(a.v), _mm512_abs_ps(b.v))};
}
inline bool has_nan(Floats x) { return _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q) != 0; }
// Rounded half to even.
inline Ints to_ints(Floats x) { return {_mm512_cvtps_epi32(x.v)}; }
inline Ints add(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline int32_t sum(Ints x) { return _mm512_reduce_add_epi32(x.v); }
inline void store_int8(int8_t* p, Ints x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x.v));
}

}  // namespace simd
}  // namespace

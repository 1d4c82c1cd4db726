// Sixteen lanes of 32 bits as two registers of AVX2 (FMA, F16C).
#pragma once
#include <immintrin.h>
#include <cstdint>

namespace {
namespace simd {

struct Ints {
  __m256i a, b;
};
struct Floats {
  __m256 a, b;
};

inline Ints zero_ints() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Floats zero_floats() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Floats broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline __m256i load_half(const void* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline Ints load(const uint8_t* p) { return {load_half(p), load_half(p + 32)}; }
inline Ints low_nibbles(Ints x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
inline Ints high_nibbles(Ints x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(x.a, 4), mask),
          _mm256_and_si256(_mm256_srli_epi16(x.b, 4), mask)};
}
// Bytes of `value` where the bit of the 4 bytes at `bits` is set, zeros elsewhere.
inline __m256i spread_bits(const uint8_t* bits, int value) {
  int32_t mask;
  __builtin_memcpy(&mask, bits, sizeof mask);
  const __m256i byte_of = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202,
                                             0x0303030303030303);
  const __m256i bit_of = _mm256_set1_epi64x(int64_t(0x8040201008040201));
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(mask), byte_of);
  const __m256i is_set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit_of), bit_of);
  return _mm256_and_si256(is_set, _mm256_set1_epi8(char(value)));
}
// `value` more in each byte whose bit of the 8 bytes at `bits` is set.
inline Ints add_bits(Ints x, const uint8_t* bits, int value) {
  return {_mm256_add_epi8(x.a, spread_bits(bits, value)),
          _mm256_add_epi8(x.b, spread_bits(bits + 4, value))};
}
inline Ints load_table(const uint8_t* p) {
  const __m256i table =
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {table, table};
}
inline Ints look_up(Ints table, Ints index) {
  return {_mm256_shuffle_epi8(table.a, index.a), _mm256_shuffle_epi8(table.b, index.b)};
}

// Products of 16-bit halves cannot saturate, as those of vpmaddubsw could.
inline __m256i dot4_half(__m256i acc, __m256i codes, __m256i even, __m256i odd) {
  const __m256i even_codes = _mm256_and_si256(codes, _mm256_set1_epi16(0xff));
  const __m256i odd_codes = _mm256_srli_epi16(codes, 8);
  const __m256i products = _mm256_add_epi32(_mm256_madd_epi16(even_codes, even),
                                            _mm256_madd_epi16(odd_codes, odd));
  return _mm256_add_epi32(acc, products);
}
// acc + the dot product of each lane's 4 unsigned bytes and the 4 signed bytes of x.
inline void dot4(Ints& acc, Ints codes, Ints x) {
  const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(x.a, 8), 8);
  const __m256i odd = _mm256_srai_epi16(x.a, 8);  // x.b is the same
  acc = {dot4_half(acc.a, codes.a, even, odd), dot4_half(acc.b, codes.b, even, odd)};
}
// The 4 bytes at x in every lane.
inline Ints broadcast_bytes(const void* x) {
  int32_t bytes;
  __builtin_memcpy(&bytes, x, sizeof bytes);
  return {_mm256_set1_epi32(bytes), _mm256_set1_epi32(bytes)};
}

inline __m256 low_bfloat16(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
}
inline __m256 high_bfloat16(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(int(0xffff0000))));
}
inline __m256 dot2_half(__m256 acc, __m256i pairs, __m256i x) {
  acc = _mm256_fmadd_ps(low_bfloat16(pairs), low_bfloat16(x), acc);
  return _mm256_fmadd_ps(high_bfloat16(pairs), high_bfloat16(x), acc);
}
// acc + the dot product of each lane's 2 bfloat16 and the 2 of x.
inline void dot2(Floats& acc, Ints pairs, Ints x) {
  acc = {dot2_half(acc.a, pairs.a, x.a), dot2_half(acc.b, pairs.b, x.b)};
}
inline __m128 sum_of_four(const Floats* x) {
  const __m256 a = _mm256_hadd_ps(_mm256_add_ps(x[0].a, x[0].b), _mm256_add_ps(x[1].a, x[1].b));
  const __m256 b = _mm256_hadd_ps(_mm256_add_ps(x[2].a, x[2].b), _mm256_add_ps(x[3].a, x[3].b));
  const __m256 c = _mm256_hadd_ps(a, b);
  return _mm_add_ps(_mm256_castps256_ps128(c), _mm256_extractf128_ps(c, 1));
}
// Lane i of the result is the sum of the lanes of x[i].
inline Floats sum_each(const Floats* x) {
  return {_mm256_set_m128(sum_of_four(x + 4), sum_of_four(x)),
          _mm256_set_m128(sum_of_four(x + 12), sum_of_four(x + 8))};
}

inline Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline Floats add(Floats x, Floats y) {
  return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}
inline Floats multiply(Floats x, Floats y) {
  return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
inline Floats multiply_add(Floats x, Floats y, Floats z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline Floats negative_multiply_add(Floats x, Floats y, Floats z) {
  return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}

inline Floats load_float32(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline __m128i load_quarter(const void* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
inline Floats load_float16(const uint16_t* p) {
  return {_mm256_cvtph_ps(load_quarter(p)), _mm256_cvtph_ps(load_quarter(p + 8))};
}
inline Floats load_bfloat16(const uint16_t* p) {
  return {low_bfloat16(_mm256_cvtepu16_epi32(load_quarter(p))),
          low_bfloat16(_mm256_cvtepu16_epi32(load_quarter(p + 8)))};
}
inline Floats load_int8(const int8_t* p) {
  const __m128i bytes = load_quarter(p);
  return to_floats({_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))});
}
inline Floats load_uint8(const uint8_t* p) {
  const __m128i bytes = load_quarter(p);
  return to_floats({_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))});
}
inline void store_float32(float* p, Floats x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
inline __m256i round_half(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i halves = _mm256_srli_epi32(rounded, 16);
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(halves, _mm256_set1_epi32(0x7fc0), is_nan);
}
// Round to nearest, ties to even.
inline void store_bfloat16(uint16_t* p, Floats x) {
  const __m256i mixed = _mm256_packus_epi32(round_half(x.a), round_half(x.b));
  const __m256i ordered = _mm256_permute4x64_epi64(mixed, 0xd8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), ordered);
}

inline __m256 magnitude(__m256 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
inline Floats larger_magnitude(Floats x, Floats y) {
  return {_mm256_max_ps(magnitude(x.a), magnitude(y.a)),
          _mm256_max_ps(magnitude(x.b), magnitude(y.b))};
}
inline float largest_magnitude(Floats x) {
  float lanes[8], largest = 0;
  _mm256_storeu_ps(lanes, _mm256_max_ps(magnitude(x.a), magnitude(x.b)));
  for (float lane : lanes) largest = lane > largest ? lane : largest;
  return largest;
}
inline bool has_nan(Floats x) {
  const __m256 unordered =
      _mm256_or_ps(_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q));
  return _mm256_movemask_ps(unordered) != 0;
}
// Rounded half to even.
inline Ints to_ints(Floats x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline Ints add(Ints x, Ints y) {
  return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
}
inline int32_t sum(Ints x) {
  int32_t lanes[8], total = 0;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), _mm256_add_epi32(x.a, x.b));
  for (int32_t lane : lanes) total += lane;
  return total;
}
inline void store_int8(int8_t* p, Ints x) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
  const __m128i bytes =
      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

}  // namespace simd
}  // namespace

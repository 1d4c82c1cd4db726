// The matrix product over blocks of 16 rows, in tiles of R row blocks and T tokens.
//
// Included once per instruction set, after its simd_*.h and quantize_kernel.h. Codes are multiplied
// as unsigned bytes with signed inputs in integers, exactly; at the end of each step of columns
// the sums become floats:  out += (sum * scale) * x_scale + offset * x_sum,
// where offset holds the zero point, too: offset - zero * scale.
#pragma once
#include "linear.h"

#define UNROLL _Pragma("GCC unroll 16")

namespace {

constexpr int kBlockBytes = 64;           // one load: 16 rows of 4 bytes
constexpr int kPlaneBytes = 16;           // one bit of 16 rows and 8 columns
constexpr size_t kChunkBytes = 384 << 10;  // inputs of a chunk of tokens stay in the L2 cache
// Of this many tokens each input is used for two blocks of rows. Fewer leave the time to the memory,
// which is a quarter faster where each thread reads one place after the other.
constexpr int kSideBySide = 4;

// The tiles that take the tokens of a chunk over the same rows, one after the other: this is number
// `index`. Each asks for its share of the rows that come next, so that the memory never waits.
struct Turn {
  int index, count;
};

// A tile's share of what comes next, some lines for each step of `lines_read` lines.
struct Ahead {
  const uint8_t* next;
  int lines;
  Ahead(const uint8_t* data, size_t steps, int lines_read, const Turn& turn) {
    lines = (lines_read + turn.count - 1) / turn.count;
    next = data + turn.index * lines * steps * kBlockBytes;
    if (turn.index * lines >= lines_read) lines = 0;
  }
  inline void step() {
    for (int i = 0; i < lines; i++, next += kBlockBytes) __builtin_prefetch(next);
  }
};

// How codes become bytes: kVectors of 16 rows and 4 columns from one load at `p` and, where there
// are kPlanes of higher bits, the 16 bytes of each at `planes`.
struct Plain4 {
  static constexpr int kVectors = 2, kPlanes = 0;
  static inline void unpack(const uint8_t* p, const uint8_t*, Ints, Ints* codes) {
    const Ints bytes = simd::load(p);
    codes[0] = simd::low_nibbles(bytes);
    codes[1] = simd::high_nibbles(bytes);
  }
};
struct Table4 {
  static constexpr int kVectors = 2, kPlanes = 0;
  static inline void unpack(const uint8_t* p, const uint8_t* planes, Ints table, Ints* codes) {
    Plain4::unpack(p, planes, table, codes);
    codes[0] = simd::look_up(table, codes[0]);
    codes[1] = simd::look_up(table, codes[1]);
  }
};
template <int Planes>
struct Planes4 {
  static constexpr int kVectors = 2, kPlanes = Planes;
  static inline void unpack(const uint8_t* p, const uint8_t* planes, Ints table, Ints* codes) {
    Plain4::unpack(p, planes, table, codes);
    UNROLL for (int i = 0; i < Planes; i++, planes += kPlaneBytes) {
      codes[0] = simd::add_bits(codes[0], planes, 16 << i);
      codes[1] = simd::add_bits(codes[1], planes + kPlaneBytes / 2, 16 << i);
    }
  }
};
struct Plain8 {
  static constexpr int kVectors = 1, kPlanes = 0;
  static inline void unpack(const uint8_t* p, const uint8_t*, Ints, Ints* codes) {
    codes[0] = simd::load(p);
  }
};

struct Output {
  void* y;
  int32_t type;
  int64_t stride;
  bool accumulate;
};

inline Floats group_numbers(const void* numbers, const uint16_t* super, int32_t type, bool is_signed,
                            size_t group, int per_super) {
  const size_t at = group * kRowBlock;
  switch (type) {
    case kFloat32:
      return simd::load_float32(static_cast<const float*>(numbers) + at);
    case kFloat16:
      return simd::load_float16(static_cast<const uint16_t*>(numbers) + at);
    case kBFloat16:
      return simd::load_bfloat16(static_cast<const uint16_t*>(numbers) + at);
    default: {
      const Floats factor = simd::load_float16(super + group / per_super * kRowBlock);
      const Floats integers = is_signed
                                  ? simd::load_int8(static_cast<const int8_t*>(numbers) + at)
                                  : simd::load_uint8(static_cast<const uint8_t*>(numbers) + at);
      return simd::multiply(integers, factor);
    }
  }
}

struct GroupValues {
  Floats scale, offset;
};

inline GroupValues group_values(const LinearWeight& w, size_t group) {
  GroupValues values;
  values.scale = group_numbers(w.scales, w.super_scales, w.scale_type, true, group,
                               w.groups_per_super);
  values.offset = simd::zero_floats();
  if (w.offset_type != kNone) {
    const Floats stored = group_numbers(w.offsets, w.super_offsets, w.offset_type, false, group,
                                        w.groups_per_super);
    const Floats sign = simd::broadcast(w.offset_type == kInt8 ? -1.0f : 1.0f);
    values.offset = simd::multiply(stored, sign);
  }
  const Floats zero = w.zeros ? simd::load_uint8(w.zeros + group * kRowBlock)
                              : simd::broadcast(float(w.zero));
  values.offset = simd::negative_multiply_add(zero, values.scale, values.offset);
  return values;
}

// Sixteen sums of one token and row block, into y.
inline void finish_rows(const LinearWeight& w, const Output& out, Floats sums, int row, int token) {
  if (w.bias) sums = simd::add(sums, simd::load_float32(w.bias + row));
  const int count = w.out_features - row < kRowBlock ? w.out_features - row : kRowBlock;
  const size_t at = size_t(token) * out.stride + row;
  if (out.type == kFloat32) {
    float* y = static_cast<float*>(out.y) + at;
    if (count == kRowBlock) {
      if (out.accumulate) sums = simd::add(sums, simd::load_float32(y));
      simd::store_float32(y, sums);
      return;
    }
    float lanes[kRowBlock];
    simd::store_float32(lanes, sums);
    for (int i = 0; i < count; i++) y[i] = out.accumulate ? y[i] + lanes[i] : lanes[i];
    return;
  }
  uint16_t* y = static_cast<uint16_t*>(out.y) + at;
  uint16_t lanes[kRowBlock] = {};
  for (int i = 0; i < count && out.accumulate; i++) lanes[i] = y[i];
  if (out.accumulate) sums = simd::add(sums, simd::load_bfloat16(lanes));
  simd::store_bfloat16(lanes, sums);
  for (int i = 0; i < count; i++) y[i] = lanes[i];
}

// The sums of a tile, [blocks][tokens * parts][16]; `first` and `count` number tokens * parts.
__attribute__((noinline)) void finish(const LinearWeight& w, const Output& out, const float* sums,
                                      int block, int num_blocks, int first, int count) {
  for (int r = 0; r < num_blocks; r++) {
    for (int t = 0; t < count; t += w.parts, sums += w.parts * kRowBlock) {
      Floats total = simd::load_float32(sums);
      if (w.parts == 2) total = simd::add(total, simd::load_float32(sums + kRowBlock));
      finish_rows(w, out, total, (block + r) * kRowBlock, (first + t) / w.parts);
    }
  }
}

template <class Code, int R, int T>
struct CodeTile {
  static void run(const LinearWeight& w, const Activations& act, const Output& out, int block,
                  int token, const Turn& turn) {
    constexpr int V = Code::kVectors, P = Code::kPlanes;
    const int steps = w.padded_in / w.step, groups = w.padded_in / w.group_size;
    const int steps_per_group = w.group_size / w.step;
    const size_t low_bytes = w.step / V * kRowBlock;  // of a step, without its planes
    const size_t step_bytes = low_bytes + w.step / 8 * P * kPlaneBytes;
    const size_t block_bytes = steps * step_bytes;
    const Ints table = w.table ? simd::load_table(w.table) : simd::zero_ints();
    const uint8_t* data = w.data + block * block_bytes;
    Ahead ahead(data + R * block_bytes, block_bytes / kBlockBytes, R, turn);
    const int8_t* x = static_cast<const int8_t*>(act.values) + size_t(token) * w.padded_in;
    const float* x_scales = act.scales + size_t(token) * steps;
    const float* x_sums = act.sums + size_t(token) * steps;
    Floats result[R][T];
    UNROLL for (int r = 0; r < R; r++) {
      UNROLL for (int t = 0; t < T; t++) result[r][t] = simd::zero_floats();
    }
    for (int s = 0; s < steps; s += steps_per_group) {
      GroupValues group[R];
      UNROLL for (int r = 0; r < R; r++) {
        group[r] = group_values(w, size_t(block + r) * groups + s / steps_per_group);
      }
      for (int within = 0; within < steps_per_group; within++, x_scales++, x_sums++) {
        Ints acc[R][T];
        UNROLL for (int r = 0; r < R; r++) {
          UNROLL for (int t = 0; t < T; t++) acc[r][t] = simd::zero_ints();
        }
        const uint8_t* planes = data + low_bytes;
        for (int k = 0; k < w.step; k += 4 * V) {
          Ints codes[R][V];
          ahead.step();
          UNROLL for (int r = 0; r < R; r++) {
            Code::unpack(data + r * block_bytes, planes + r * block_bytes, table, codes[r]);
          }
          UNROLL for (int v = 0; v < V; v++) {
            UNROLL for (int t = 0; t < T; t++) {
              const Ints inputs = simd::broadcast_bytes(x + size_t(t) * w.padded_in + 4 * v);
              UNROLL for (int r = 0; r < R; r++) simd::dot4(acc[r][t], codes[r][v], inputs);
            }
          }
          data += kBlockBytes;
          planes += P * kPlaneBytes;
          x += 4 * V;
        }
        data += step_bytes - low_bytes;
        for (int i = 0; i < w.step * P / 32; i++) ahead.step();
        UNROLL for (int t = 0; t < T; t++) {
          const Floats x_scale = simd::broadcast(x_scales[size_t(t) * steps]);
          const Floats x_sum = simd::broadcast(x_sums[size_t(t) * steps]);
          UNROLL for (int r = 0; r < R; r++) {
            const Floats scaled = simd::multiply(simd::to_floats(acc[r][t]), group[r].scale);
            result[r][t] = simd::multiply_add(scaled, x_scale, result[r][t]);
            result[r][t] = simd::multiply_add(group[r].offset, x_sum, result[r][t]);
          }
        }
      }
    }
    alignas(kBlockBytes) float sums[R][T][kRowBlock];
    UNROLL for (int r = 0; r < R; r++) {
      UNROLL for (int t = 0; t < T; t++) simd::store_float32(sums[r][t], result[r][t]);
    }
    finish(w, out, sums[0][0], block, R, token, T);
  }
};

// 16 rows and T tokens of bfloat16, R rows at a time; lanes are columns. `kPass` rows are read side
// by side: more would be more streams than the caches follow.
template <int R, int T>
void row_tile(const LinearWeight& w, const Activations& act, const Output& out, int block,
              int token, const Turn& turn) {
  static_assert(R * T == kRowBlock, "as many sums as lanes");
  constexpr int kPass = 4;
  const size_t row_bytes = size_t(w.padded_in) * 2;
  const uint8_t* x = static_cast<const uint8_t*>(act.values) + size_t(token) * row_bytes;
  const uint8_t* following = w.data + (block + 1) * kRowBlock * row_bytes;
  Ahead ahead(following, kRowBlock / kPass * (row_bytes / kBlockBytes), kPass, turn);
  float sums[T][kRowBlock];
  for (int first = 0; first < kRowBlock; first += R) {
    Floats totals[kRowBlock];
    UNROLL for (int pass = 0; pass < R; pass += kPass) {
      const uint8_t* rows[kPass];
      UNROLL for (int r = 0; r < kPass; r++) {
        const int row = block * kRowBlock + first + pass + r;
        rows[r] = w.data + (row < w.out_features ? row : w.out_features - 1) * row_bytes;
      }
      Floats acc[kPass][T];
      UNROLL for (int r = 0; r < kPass; r++) {
        UNROLL for (int t = 0; t < T; t++) acc[r][t] = simd::zero_floats();
      }
      for (size_t k = 0; k < row_bytes; k += kBlockBytes) {
        Ints inputs[T];
        UNROLL for (int t = 0; t < T; t++) inputs[t] = simd::load(x + t * row_bytes + k);
        ahead.step();
        UNROLL for (int r = 0; r < kPass; r++) {
          const Ints columns = simd::load(rows[r] + k);
          UNROLL for (int t = 0; t < T; t++) simd::dot2(acc[r][t], columns, inputs[t]);
        }
      }
      UNROLL for (int r = 0; r < kPass; r++) {
        UNROLL for (int t = 0; t < T; t++) totals[t * R + pass + r] = acc[r][t];
      }
    }
    float lanes[kRowBlock];
    simd::store_float32(lanes, simd::sum_each(totals));
    for (int t = 0; t < T; t++) {
      __builtin_memcpy(sums[t] + first, lanes + t * R, R * sizeof(float));
    }
  }
  finish(w, out, sums[0], block, 1, token, T);
}

template <int R, int T>
using Plain4Tile = CodeTile<Plain4, R, T>;
template <int R, int T>
using Table4Tile = CodeTile<Table4, R, T>;
template <int R, int T>
using Plain5Tile = CodeTile<Planes4<1>, R, T>;
template <int R, int T>
using Plain6Tile = CodeTile<Planes4<2>, R, T>;
template <int R, int T>
using Plain8Tile = CodeTile<Plain8, R, T>;

// R row blocks, tokens first..last-1.
template <template <int, int> class Tile, int R>
void multiply_rows(const LinearWeight& w, const Activations& act, const Output& out, int block,
                   int first, int last) {
  const int tokens = last - first;
  Turn turn = {0, tokens / 8 + tokens % 8 / 4 + tokens % 4 / 2 + tokens % 2};
  int t = first;
  for (; t + 8 <= last; t += 8, turn.index++) Tile<R, 8>::run(w, act, out, block, t, turn);
  for (; t + 4 <= last; t += 4, turn.index++) Tile<R, 4>::run(w, act, out, block, t, turn);
  for (; t + 2 <= last; t += 2, turn.index++) Tile<R, 2>::run(w, act, out, block, t, turn);
  for (; t < last; t++, turn.index++) Tile<R, 1>::run(w, act, out, block, t, turn);
}

// Tokens whose inputs stay in the cache together: whole tiles.
inline int chunk_tokens(const LinearWeight& w) {
  const size_t token_bytes = size_t(w.padded_in) * (w.storage == kRows ? 2 : 1);
  const int fitting = int(kChunkBytes / token_bytes) / 8 * 8;
  return fitting < 8 ? 8 : fitting;
}

template <template <int, int> class Tile>
void multiply_blocks(const LinearWeight& w, const Activations& act, const Output& out,
                     int num_tokens, int first, int last) {
  const int chunk = chunk_tokens(w);
  for (int t = 0; t < num_tokens; t += chunk) {
    const int end = t + chunk < num_tokens ? t + chunk : num_tokens;
    int b = first;
    for (; num_tokens >= kSideBySide && b + 2 <= last; b += 2) {
      multiply_rows<Tile, 2>(w, act, out, b, t, end);
    }
    for (; b < last; b++) multiply_rows<Tile, 1>(w, act, out, b, t, end);
  }
}

void multiply_plain_rows(const LinearWeight& w, const Activations& act, const Output& out,
                         int num_tokens, int first, int last) {
  const int chunk = chunk_tokens(w);
  for (int start = 0; start < num_tokens; start += chunk) {
    const int end = start + chunk < num_tokens ? start + chunk : num_tokens;
    for (int b = first; b < last; b++) {
      const int tokens = end - start;
      Turn turn = {0, tokens / 4 + tokens % 4 / 2 + tokens % 2};
      int t = start;
      for (; t + 4 <= end; t += 4, turn.index++) row_tile<4, 4>(w, act, out, b, t, turn);
      for (; t + 2 <= end; t += 2, turn.index++) row_tile<8, 2>(w, act, out, b, t, turn);
      for (; t < end; t++, turn.index++) row_tile<16, 1>(w, act, out, b, t, turn);
    }
  }
}

void multiply(const LinearWeight& w, const Activations& act, int num_tokens, void* y,
              int32_t y_type, int64_t y_stride, bool accumulate, int first, int last) {
  const Output out = {y, y_type, y_stride, accumulate};
  num_tokens *= w.parts;  // to the tiles each part is a token; two of them never come apart
  if (w.storage == kRows) {
    multiply_plain_rows(w, act, out, num_tokens, first, last);
  } else if (w.storage == kCode8) {
    multiply_blocks<Plain8Tile>(w, act, out, num_tokens, first, last);
  } else if (w.storage == kCode6) {
    multiply_blocks<Plain6Tile>(w, act, out, num_tokens, first, last);
  } else if (w.storage == kCode5) {
    multiply_blocks<Plain5Tile>(w, act, out, num_tokens, first, last);
  } else if (w.table) {
    multiply_blocks<Table4Tile>(w, act, out, num_tokens, first, last);
  } else {
    multiply_blocks<Plain4Tile>(w, act, out, num_tokens, first, last);
  }
}

}  // namespace

#undef UNROLL

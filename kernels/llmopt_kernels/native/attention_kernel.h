// Attention of a tile of query rows over the keys of one head, block of keys by block of keys, with
// the running maximum and sum of Milakov and Gimelshein, 2018 (as in FlashAttention, Dao et al.,
// 2022).
//
// Included once per instruction set, after step_lanes.h. Keys and values are
// gathered from the paged cache into the layout of `pair_product`: pairs of terms beside each
// other, one column per lane. Scores and sums are float32; weights are rounded to bfloat16 for the
// product with the values.
#pragma once
#include <cmath>

#include "step.h"

namespace {

using namespace llmopt;

constexpr int kKeyBlock = 64;
constexpr int kPairColumns = 64;  // of a tile of the product
#if defined(__AVX512F__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 2;
#endif

// c [R][N] (+)= a [R][2 * pairs] * b [pairs][width][2], N = 16 * V columns of b.
template <int R, int V>
inline void pair_tile(const uint16_t* a, int a_stride, const uint16_t* b, int width, int pairs,
                      float* c, int c_stride, bool accumulate) {
  Lanes sums[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
      sums[r][v] = accumulate ? load_lanes(c + r * c_stride + v * kWidth) : all_lanes(0);
    }
  }
  for (int p = 0; p < pairs; p++) {
    BitLanes columns[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) columns[v] = load_bits(b + 2 * (size_t(p) * width + v * kWidth));
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const BitLanes x = all_pairs(a + r * a_stride + 2 * p);
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) sums[r][v] = add_pairs(sums[r][v], columns[v], x);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) store_lanes(c + r * c_stride + v * kWidth, sums[r][v]);
  }
}

template <int V>
void pair_columns(const uint16_t* a, int a_stride, const uint16_t* b, int width, int pairs,
                  float* c, int c_stride, bool accumulate, int rows) {
  int r = 0;
  for (; r + kTileRows <= rows; r += kTileRows) {
    pair_tile<kTileRows, V>(a + r * a_stride, a_stride, b, width, pairs, c + r * c_stride,
                            c_stride, accumulate);
  }
#if defined(__AVX512F__)
  for (; r + 3 <= rows; r += 3) {
    pair_tile<3, V>(a + r * a_stride, a_stride, b, width, pairs, c + r * c_stride, c_stride,
                    accumulate);
  }
#endif
  for (; r < rows; r++) {
    pair_tile<1, V>(a + r * a_stride, a_stride, b, width, pairs, c + r * c_stride, c_stride,
                    accumulate);
  }
}

// width: a multiple of 16.
void pair_product(const uint16_t* a, int a_stride, const uint16_t* b, int width, int pairs,
                  float* c, int c_stride, bool accumulate, int rows) {
  int n = 0;
  for (; n + kPairColumns <= width; n += kPairColumns) {
    pair_columns<4>(a, a_stride, b + 2 * n, width, pairs, c + n, c_stride, accumulate, rows);
  }
  for (; n < width; n += kWidth) {
    pair_columns<1>(a, a_stride, b + 2 * n, width, pairs, c + n, c_stride, accumulate, rows);
  }
}

// to [pairs][kKeyBlock] of 32 bits: pair p of 16 keys, each [2 * pairs] bfloat16.
inline void transpose_keys(const uint16_t* const* keys, uint32_t* to, int pairs) {
  int p = 0;
#if defined(__AVX512F__)
  for (; p + 16 <= pairs; p += 16) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(keys[i] + 2 * p);
    for (int i = 0; i < 16; i += 2) {
      b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
      b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
      a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
      a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
      a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
      b[i] = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x88);
      b[4 + i] = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xdd);
      b[8 + i] = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x88);
      b[12 + i] = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
      uint32_t* at = to + size_t(p + i) * kKeyBlock;
      _mm512_storeu_si512(at, _mm512_shuffle_i32x4(b[i], b[8 + i], 0x88));
      _mm512_storeu_si512(at + 8 * kKeyBlock, _mm512_shuffle_i32x4(b[i], b[8 + i], 0xdd));
      at += 4 * kKeyBlock;
      _mm512_storeu_si512(at, _mm512_shuffle_i32x4(b[4 + i], b[12 + i], 0x88));
      _mm512_storeu_si512(at + 8 * kKeyBlock, _mm512_shuffle_i32x4(b[4 + i], b[12 + i], 0xdd));
    }
  }
#endif
  for (; p < pairs; p++) {
    for (int i = 0; i < kWidth; i++) std::memcpy(to + p * kKeyBlock + i, keys[i] + 2 * p, 4);
  }
}

// to [width] pairs of the values of two keys.
inline void interleave(const uint16_t* first, const uint16_t* second, uint32_t* to, int width) {
  int d = 0;
#if defined(__AVX512BW__)
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                       39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  for (; d + 32 <= width; d += 32) {
    const __m512i a = _mm512_loadu_si512(first + d), b = _mm512_loadu_si512(second + d);
    _mm512_storeu_si512(to + d, _mm512_permutex2var_epi16(a, low, b));
    _mm512_storeu_si512(to + d + kWidth, _mm512_permutex2var_epi16(a, high, b));
  }
#endif
  for (; d < width; d++) to[d] = uint32_t(first[d]) | uint32_t(second[d]) << 16;
}

struct Scratch {
  uint32_t* keys;     // [padded_dim / 2][kKeyBlock] pairs
  uint32_t* values;   // [kKeyBlock / 2][padded_dim] pairs
  uint16_t* padded;   // [kKeyBlock][padded_dim], where head_dim is not padded_dim
  uint16_t* weights;  // [rows][kKeyBlock]
  float* scores;      // [rows][kKeyBlock]
};

inline Scratch place_scratch(void* memory, int rows, int padded_dim) {
  Scratch s;
  const size_t block = size_t(kKeyBlock) * padded_dim;
  s.keys = static_cast<uint32_t*>(memory);
  s.values = s.keys + block / 2;
  s.scores = reinterpret_cast<float*>(s.values + block / 2);
  s.padded = reinterpret_cast<uint16_t*>(s.scores + size_t(rows) * kKeyBlock);
  s.weights = s.padded + block;
  return s;
}

// Where the keys and values of positions first .. first + 63 are; negative: no row may see them.
struct BlockPlaces {
  int64_t at[kKeyBlock];
};
inline BlockPlaces find_places(const AttentionTile& tile, const KeyValues& kv, int first) {
  BlockPlaces places;
  const int last_position = tile.first_position + (tile.rows - 1) / tile.rows_per_token;
  const int end = last_position < tile.last_key ? last_position + 1 : tile.last_key;
  const int near = tile.window == 0 ? 0 : tile.first_position - tile.window + 1;
  int block = first / kv.block_size, within = first % kv.block_size;
  for (int i = 0; i < kKeyBlock; i++) {
    const int key = first + i;
    const bool visible = key < end && (key >= near || key < tile.num_sinks);
    const int64_t number = kv.block_table && visible ? kv.block_table[block] : 0;
    const int64_t slot = kv.base + number * kv.block_size + within;
    places.at[i] = visible ? slot * kv.stride + kv.offset : -1;
    if (++within == kv.block_size) {
      within = 0;
      block++;
    }
  }
  return places;
}

// Ask for 16 rows of the next block of keys or values while this one is computed. Inlined, because
// GCC takes a function that only fetches for one that does nothing.
__attribute__((always_inline)) inline void fetch_ahead(const AttentionTile& tile,
                                                       const uint16_t* cache,
                                                       const int64_t* places) {
  constexpr int kLine = 32;  // bfloat16 of a cache line
  for (int i = 0; i < kWidth; i++) {
    const uint16_t* row = cache + (places[i] < 0 ? 0 : places[i]);
    for (int d = 0; d < tile.head_dim; d += kLine) __builtin_prefetch(row + d);
  }
}

// The keys or values in these places, zeros where there is none.
struct BlockRows {
  const uint16_t* rows[kKeyBlock];
};
inline BlockRows find_rows(const AttentionTile& tile, const BlockPlaces& places,
                           const uint16_t* cache, uint16_t* padded) {
  static const uint16_t zeros[1024] = {};  // head_dim is at most that
  BlockRows found;
  for (int i = 0; i < kKeyBlock; i++) {
    found.rows[i] = places.at[i] < 0 ? zeros : cache + places.at[i];
    if (places.at[i] < 0 || tile.head_dim == tile.padded_dim) continue;
    uint16_t* copy = padded + size_t(i) * tile.padded_dim;
    std::memset(copy, 0, tile.padded_dim * sizeof *copy);
    std::memcpy(copy, found.rows[i], tile.head_dim * sizeof *copy);
    found.rows[i] = copy;
  }
  return found;
}

// What a position sees: keys before `end`, of which those before `near` only if they are sinks.
struct Sight {
  int near, end, num_sinks;
  Sight(const AttentionTile& tile, int position) : num_sinks(tile.num_sinks) {
    near = tile.window == 0 ? 0 : position - tile.window + 1;
    end = position < tile.last_key ? position + 1 : tile.last_key;
  }
  bool is_whole(int first) const { return near <= first && first + kKeyBlock <= end; }
  // Scores of the keys `first` .. + 15, minus infinity for those that are not seen.
  Lanes only_seen(int first, Lanes scores) const {
    const IntLanes keys = first + IntLanes{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const IntLanes is_seen = (keys < end) & ((keys >= near) | (keys < num_sinks));
    return is_seen ? scores : all_lanes(-INFINITY);
  }
};

// Scores of one row become weights; returns what earlier sums are multiplied with.
inline float weigh(const AttentionTile& tile, int position, int first, float* scores,
                   uint16_t* weights, float* largest, float* sum) {
  const Sight sight(tile, position);
  const bool is_whole = sight.is_whole(first);
  Lanes top = all_lanes(*largest);
  for (int i = 0; i < kKeyBlock; i += kWidth) {
    Lanes s = load_lanes(scores + i) * tile.scale;
    if (tile.soft_cap > 0) s = tanh_lanes(s / tile.soft_cap) * tile.soft_cap;
    if (!is_whole) s = sight.only_seen(first + i, s);
    store_lanes(scores + i, s);
    top = larger(s, top);
  }
  const float now = largest_lane(top);
  if (now == -INFINITY) {
    std::memset(weights, 0, kKeyBlock * sizeof *weights);
    return 1.0f;
  }
  Lanes total = all_lanes(0);
  for (int i = 0; i < kKeyBlock; i += kWidth) {
    const Lanes w = exp_lanes(load_lanes(scores + i) - now);
    total += w;
    store_normal_halves(weights + i, w);
  }
  const float shrink = now == *largest ? 1.0f : exp_lanes(all_lanes(*largest - now))[0];
  *sum = *sum * shrink + sum_lanes(total);
  *largest = now;
  return shrink;
}

// The first block from `first` on of which any row may see something.
inline int next_block(const AttentionTile& tile, int first) {
  const int near = tile.window == 0 ? 0 : tile.first_position - tile.window + 1;
  while (first >= tile.num_sinks && first + kKeyBlock <= near) first += kKeyBlock;
  return first;
}

// Scores of one head's block of keys, their weights, and the sums with the values.
inline void attend_block(const AttentionTile& tile, const KeyValues& kv, const BlockPlaces& places,
                         const BlockPlaces& following, int first, const Scratch& s, TileSums result) {
  const int dim = tile.padded_dim;
  const BlockRows keys = find_rows(tile, places, kv.keys, s.padded);
  for (int i = 0; i < kKeyBlock; i += kWidth) {
    fetch_ahead(tile, kv.keys, following.at + i);
    transpose_keys(keys.rows + i, s.keys + i, dim / 2);
  }
  pair_product(tile.queries, dim, reinterpret_cast<uint16_t*>(s.keys), kKeyBlock, dim / 2, s.scores,
               kKeyBlock, false, tile.rows);
  for (int r = 0; r < tile.rows; r++) {
    const float shrink = weigh(tile, tile.first_position + r / tile.rows_per_token, first,
                               s.scores + r * kKeyBlock, s.weights + r * kKeyBlock,
                               result.largest + r, result.sums + r);
    if (shrink == 1.0f) continue;
    float* out = result.out + size_t(r) * dim;
    for (int d = 0; d < dim; d++) out[d] *= shrink;
  }
  const BlockRows values = find_rows(tile, places, kv.values, s.padded);
  for (int i = 0; i < kKeyBlock; i += 2) {
    if (i % kWidth == 0) fetch_ahead(tile, kv.values, following.at + i);
    interleave(values.rows[i], values.rows[i + 1], s.values + size_t(i / 2) * dim, dim);
  }
  pair_product(s.weights, kKeyBlock, reinterpret_cast<uint16_t*>(s.values), dim, kKeyBlock / 2,
               result.out, dim, true, tile.rows);
}

void attend(const AttentionTile& tile, const KeyValues& kv, const AttentionTile& next_tile,
            const KeyValues& next_kv, void* memory, TileSums result) {
  const Scratch scratch = place_scratch(memory, tile.rows, tile.padded_dim);
  const int rows = tile.heads * tile.rows;
  std::memset(result.out, 0, size_t(rows) * tile.padded_dim * sizeof(float));
  for (int r = 0; r < rows; r++) {
    result.sums[r] = 0.0f;
    result.largest[r] = -INFINITY;
  }
  int first = next_block(tile, tile.first_key);
  if (first >= tile.last_key) return;
  BlockPlaces places = find_places(tile, kv, first);
  while (first < tile.last_key) {
    const int next = next_block(tile, first + kKeyBlock);
    const BlockPlaces following =
        next < tile.last_key
            ? find_places(tile, kv, next)
            : find_places(next_tile, next_kv, next_block(next_tile, next_tile.first_key));
    for (int head = 0; head < tile.heads; head++) {
      const int row = head * tile.rows;
      const size_t at = size_t(row) * tile.padded_dim;
      AttentionTile one = tile;
      one.queries += at;
      KeyValues of_head = kv;
      of_head.keys += head * tile.head_dim;
      of_head.values += head * tile.head_dim;
      attend_block(one, of_head, places, following, first, scratch,
                   {result.out + at, result.sums + row, result.largest + row});
    }
    places = following;
    first = next;
  }
}

}  // namespace

// The attention of a step: tiles are shared out as threads get free, cut contexts are put together.
#pragma once
#include <cmath>
#include <cstring>

#include "step_run.h"

namespace llmopt {
namespace {

KeyValues keys_of(const Step& s, int index, int request, int head) {
  const BlockGroup* group = group_of(s, index);
  KeyValues kv;
  kv.keys = group ? s.batch.keys[index] : s.b.keys;
  kv.values = group ? s.batch.values[index] : s.b.values;
  kv.block_table = group ? group->block_tables + request * group->table_stride : nullptr;
  kv.block_size = group ? group->block_size : s.batch.num_tokens;
  kv.base = group ? 0 : s.plan.pieces[request].first_row;
  kv.stride = int64_t(s.m.num_kv_heads) * s.m.head_dim;
  kv.offset = int64_t(head) * s.m.head_dim;
  return kv;
}

int visible_window(const Layer& layer, const BlockGroup* group) {
  if (group == nullptr || group->window == 0) return layer.window;
  return layer.window && layer.window < group->window ? layer.window : group->window;
}

struct TileMemory {
  uint16_t* queries;
  TileSums sums;
  char* scratch;
};

TileMemory tile_memory(const Step& s, const Worker& me) {
  const size_t rows = size_t(s.plan.max_rows) * s.m.num_kv_heads, dim = padded_dim(s.m);
  float* sums = s.b.tile_sums + me.part * 2 * rows;
  return {s.b.tile_queries + me.part * rows * dim,
          {s.b.tile_out + me.part * rows * dim, sums, sums + rows},
          s.b.scratch + me.part * attention_scratch_bytes(s.plan.max_rows, int(dim))};
}

// The results of query head `head` of a tile: rows [num_tokens] from `row`, `stride` apart.
void keep_rows(const Step& s, const Tile& tile, int head, const TileSums& sums, int row,
               int stride) {
  const Pieces& pieces = s.plan.pieces[tile.request];
  const int dim = padded_dim(s.m), heads = s.m.num_heads;
  for (int t = 0; t < tile.num_tokens; t++, row += stride) {
    const float* from = sums.out + size_t(row) * dim;
    const int token = tile.first_row + t;
    if (pieces.num_pieces == 1) {
      float* to = s.b.attended + (size_t(token) * heads + head) * s.m.head_dim;
      for (int d = 0; d < s.m.head_dim; d++) to[d] = from[d] / sums.sums[row];
      continue;
    }
    const int64_t at = pieces.first_partial + tile.piece +
                       (int64_t(token - pieces.first_row) * heads + head) * pieces.num_pieces;
    std::memcpy(s.b.partial_out + at * dim, from, dim * sizeof *from);
    s.b.partial_sums[at] = sums.sums[row];
    s.b.partial_largest[at] = sums.largest[row];
  }
}

// A tile's share of the heads: `num_heads` key/value heads from `first_head` on.
struct Work {
  const Tile* tile;
  int first_head, num_heads;
};

// What is computed of it, but for its queries.
AttentionTile describe(const Step& s, int index, const Work& work) {
  const Model& m = s.m;
  const BlockGroup* blocks = group_of(s, index);
  AttentionTile tile = {};
  tile.heads = work.num_heads;
  tile.rows_per_token = m.num_heads / m.num_kv_heads;
  tile.rows = work.tile->num_tokens * tile.rows_per_token;
  tile.first_position = work.tile->first_position;
  tile.first_key = work.tile->first_key;
  tile.last_key = work.tile->last_key;
  tile.window = visible_window(m.layers[index], blocks);
  tile.num_sinks = blocks ? blocks->num_sinks : 0;
  tile.head_dim = m.head_dim;
  tile.padded_dim = padded_dim(m);
  tile.scale = m.attention_scale;
  tile.soft_cap = m.attention_soft_cap;
  return tile;
}

void attend_tile(const Step& s, int index, const Work& work, const Work& next, const Worker& me) {
  AttentionTile tile = describe(s, index, work);
  const int group = tile.rows_per_token, dim = tile.padded_dim, first_row = work.tile->first_row;
  const TileMemory memory = tile_memory(s, me);
  for (int h = 0; h < work.num_heads; h++) {
    for (int t = 0; t < work.tile->num_tokens; t++) {
      const size_t from = size_t(first_row + t) * s.m.num_heads + (work.first_head + h) * group;
      std::memcpy(memory.queries + (size_t(h) * tile.rows + t * group) * dim,
                  s.b.queries + from * dim, size_t(group) * dim * sizeof(uint16_t));
    }
  }
  tile.queries = memory.queries;
  s.run.attend(tile, keys_of(s, index, work.tile->request, work.first_head),
               describe(s, index, next), keys_of(s, index, next.tile->request, next.first_head),
               memory.scratch, memory.sums);
  for (int h = 0; h < work.num_heads * group; h++) {
    keep_rows(s, *work.tile, work.first_head * group + h, memory.sums,
              h / group * tile.rows + h % group, group);
  }
}

// Tiles as they come; all heads of one together, whose keys lie together, where there are enough.
// A thread takes its next before it begins one, so that it can ask for its keys.
void attend(const Step& s, int index, const Worker& me) {
  const int tiles = int(s.plan.tiles.size()), heads = s.m.num_kv_heads;
  const int together = tiles >= 2 * me.parts ? heads : 1, per_tile = heads / together;
  const int count = tiles * per_tile;
  const auto take = [&] {
    return s.next_tile[index].fetch_add(1, std::memory_order_relaxed);
  };
  const auto work = [&](int number) {
    return Work{&s.plan.tiles[number / per_tile], number % per_tile * together, together};
  };
  for (int now = take(); now < count;) {
    const int next = take();
    attend_tile(s, index, work(now), work(next < count ? next : now), me);
    now = next;
  }
}

// Put the pieces of one head's context together by their largest scores and sums.
void merge_head(const Step& s, int64_t first, int num_pieces, float* to) {
  const int dim = padded_dim(s.m);
  float largest = -INFINITY, total = 0.0f;
  for (int p = 0; p < num_pieces; p++) largest = std::fmax(largest, s.b.partial_largest[first + p]);
  std::memset(to, 0, s.m.head_dim * sizeof *to);
  for (int p = 0; p < num_pieces; p++) {
    if (s.b.partial_largest[first + p] == -INFINITY) continue;
    const float weight = std::exp(s.b.partial_largest[first + p] - largest);
    const float* from = s.b.partial_out + (first + p) * dim;
    total += weight * s.b.partial_sums[first + p];
    for (int d = 0; d < s.m.head_dim; d++) to[d] += weight * from[d];
  }
  for (int d = 0; d < s.m.head_dim; d++) to[d] /= total;
}

}  // namespace
}  // namespace llmopt

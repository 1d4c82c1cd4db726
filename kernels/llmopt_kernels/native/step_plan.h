// What a step needs beside its weights: memory for what lies between operations, and how the
// attention of its batch is cut into tiles.
//
// Knows nothing of instruction sets. The law: tiles depend on the lengths of their request alone.
#pragma once
#include <cstdlib>
#include <new>
#include <vector>

#include "step.h"

namespace llmopt {

constexpr int kTileQueries = 48;  // rows of a tile, where a request has as many
constexpr int kPieceKeys = 512;   // of a context that is cut

// Consecutive new tokens of one request and the keys [first_key, last_key) of its context. The
// results of cut contexts wait at `partial`, per token and head, to be put together.
struct Tile {
  int32_t request, first_row, num_tokens, first_position;
  int32_t first_key, last_key;
  int32_t piece;
};

// Where the pieces of a request's rows are: [tokens][H][num_pieces] from `first_partial`.
struct Pieces {
  int32_t first_row, num_pieces;
  int64_t first_partial;
};

struct AttentionPlan {
  std::vector<Tile> tiles;
  std::vector<Pieces> pieces;               // by request
  std::vector<int32_t> request_of_token;
  int64_t num_partials = 0;
  int max_rows = 0;
};

inline void plan_request(AttentionPlan& plan, const Model& m, const Batch& batch, int request,
                         int first_row) {
  const int group = m.num_heads / m.num_kv_heads;
  const int query_len = batch.query_lens[request], seq_len = batch.seq_lens[request];
  const int tile_tokens = group >= kTileQueries ? 1 : kTileQueries / group;
  const bool is_cut = query_len <= tile_tokens && seq_len > kPieceKeys;
  const int num_pieces = is_cut ? (seq_len + kPieceKeys - 1) / kPieceKeys : 1;
  plan.pieces.push_back({first_row, num_pieces, plan.num_partials});
  if (is_cut) plan.num_partials += int64_t(query_len) * m.num_heads * num_pieces;
  for (int done = 0; done < query_len; done += tile_tokens) {
    Tile tile = {};
    tile.request = request;
    tile.first_row = first_row + done;
    tile.num_tokens = query_len - done < tile_tokens ? query_len - done : tile_tokens;
    tile.first_position = seq_len - query_len + done;
    const int end = tile.first_position + tile.num_tokens;
    if (tile.num_tokens * group > plan.max_rows) plan.max_rows = tile.num_tokens * group;
    for (tile.piece = 0; tile.piece < num_pieces; tile.piece++) {
      tile.first_key = tile.piece * kPieceKeys;
      tile.last_key = is_cut && tile.first_key + kPieceKeys < end ? tile.first_key + kPieceKeys : end;
      plan.tiles.push_back(tile);
    }
  }
  for (int i = 0; i < query_len; i++) plan.request_of_token.push_back(request);
}

inline AttentionPlan plan_attention(const Model& m, const Batch& batch) {
  AttentionPlan plan;
  int row = 0;
  for (int request = 0; request < batch.num_requests; request++) {
    plan_request(plan, m, batch, request, row);
    row += batch.query_lens[request];
  }
  return plan;
}

// One piece of memory that grows as calls need it; one for each thread that calls.
class Workspace {
 public:
  ~Workspace() { std::free(memory_); }
  char* reserve(size_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      size_ = 0;
      memory_ = static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
      if (memory_ == nullptr) throw std::bad_alloc();
      size_ = bytes;
    }
    return memory_;
  }

 private:
  char* memory_ = nullptr;
  size_t size_ = 0;
};

// Places arrays one behind the other; with no memory it only counts.
struct Placement {
  char* memory;
  size_t used = 0;
  template <class T>
  T* take(size_t count) {
    T* at = reinterpret_cast<T*>(memory + used);
    used += (count * sizeof(T) + 63) / 64 * 64;
    return memory ? at : nullptr;
  }
};

inline size_t input_bytes(const Projection& p, int num_tokens) {
  size_t bytes = 0;
  for (int i = 0; i < p.num_parts; i++) bytes += workspace_bytes(*p.parts[i], num_tokens);
  return bytes;
}

struct Buffers {
  float* normed;       // [T][C]
  float* branch;       // [T][C], where a branch is normalized before it is added
  float* qkv;          // [T][(H + 2 KH) D]
  float* attended;     // [T][H D]
  float* inner;        // [T][F or 2 F]
  float* activated;    // [T][F]
  char* inputs;        // the rounded inputs of one projection
  float* cosines;      // [ropes][T][pairs]
  float* sines;
  uint16_t* queries;   // [T][H][padded D]
  uint16_t* keys;      // [T][KH][D], without a cache
  uint16_t* values;
  float* partial_out;  // [partials][padded D]
  float* partial_sums;
  float* partial_largest;
  char* scratch;       // of attention, per thread
  uint16_t* tile_queries;  // per thread
  float* tile_out;
  float* tile_sums;
};

inline size_t largest_input(const Model& m, int num_tokens) {
  size_t largest = 0;
  for (int i = 0; i < m.num_layers; i++) {
    const Layer& layer = m.layers[i];
    for (const Projection* p : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down}) {
      const size_t bytes = input_bytes(*p, num_tokens);
      if (bytes > largest) largest = bytes;
    }
  }
  return largest;
}

inline int padded_dim(const Model& m) { return padded_to(m.head_dim, 32); }

inline int most_pairs(const Model& m) {
  int most = 0;
  for (int i = 0; i < m.num_ropes; i++) {
    if (m.ropes[i].num_pairs > most) most = m.ropes[i].num_pairs;
  }
  return most;
}

inline Buffers place_buffers(Placement& at, const Model& m, const Batch& batch,
                             const AttentionPlan& plan, size_t inputs, int num_threads) {
  const size_t tokens = batch.num_tokens, dim = padded_dim(m);
  const size_t kv = batch.keys ? 0 : tokens * m.num_kv_heads * m.head_dim;
  const size_t angles = tokens * most_pairs(m) * m.num_ropes;
  const size_t tile = size_t(plan.max_rows) * m.num_kv_heads * num_threads;
  Buffers b;
  b.normed = at.take<float>(tokens * m.hidden_size);
  b.branch = at.take<float>(tokens * m.hidden_size);
  b.qkv = at.take<float>(tokens * (m.num_heads + 2 * m.num_kv_heads) * m.head_dim);
  b.attended = at.take<float>(tokens * m.num_heads * m.head_dim);
  b.inner = at.take<float>(tokens * m.inner_size * (m.gated ? 2 : 1));
  b.activated = at.take<float>(tokens * m.inner_size);
  b.inputs = at.take<char>(inputs);
  b.cosines = at.take<float>(angles);
  b.sines = at.take<float>(angles);
  b.queries = at.take<uint16_t>(tokens * m.num_heads * dim);
  b.keys = at.take<uint16_t>(kv);
  b.values = at.take<uint16_t>(kv);
  b.partial_out = at.take<float>(plan.num_partials * dim);
  b.partial_sums = at.take<float>(plan.num_partials);
  b.partial_largest = at.take<float>(plan.num_partials);
  b.scratch = at.take<char>(num_threads * attention_scratch_bytes(plan.max_rows, int(dim)));
  b.tile_queries = at.take<uint16_t>(tile * dim);
  b.tile_out = at.take<float>(tile * dim);
  b.tile_sums = at.take<float>(2 * tile);
  return b;
}

}  // namespace llmopt

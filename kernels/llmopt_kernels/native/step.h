// A decoder's forward pass: what it consists of, what a batch is, and the parts that are compiled
// once per instruction set.
//
// Knows nothing of Python or torch. The laws: hidden states stay float32 between the operations;
// queries, keys and values, and the inputs of bfloat16 products, are rounded to bfloat16; what a
// token gets depends neither on the other tokens of a batch nor on the number of threads, but for
// how a long context is cut into pieces.
//
// The structs are those of llmopt_kernels/native_step/structs.py, field by field. T tokens,
// C hidden size, H query heads, KH key/value heads, D head dim, F inner width, V vocabulary.
#pragma once
#include <cstddef>
#include <cstdint>

#include "linear.h"

namespace llmopt {

enum NormKind : int32_t { kNoNorm = 0, kRmsNorm = 1, kLayerNorm = 2 };
enum Activation : int32_t { kSilu = 0, kGeluTanh = 1, kGelu = 2, kRelu = 3 };

struct Norm {
  const float* gain;
  const float* bias;  // of a LayerNorm
  int32_t kind;
  float eps;
};

// Linear layers that share their input; their outputs stand side by side.
struct Projection {
  const LinearWeight* const* parts;
  int32_t num_parts;
  int32_t out_features;
};

struct Rope {
  const float* inverse_frequencies;
  int32_t num_pairs;
  float scale;  // of rotated channels
};

struct Layer {
  Norm input_norm, attention_branch_norm, post_norm, mlp_branch_norm;  // branch norms: or none
  Norm query_norm, key_norm;                                           // over D, or none
  Projection qkv, output, gate_up, down;
  int32_t rope;    // index; negative: none
  int32_t window;  // a token sees itself and the window - 1 before it; 0: everything before
};

struct Model {
  const Layer* layers;
  const Rope* ropes;
  const uint16_t* embedding;  // bfloat16 [V, C]
  const uint16_t* positions;  // bfloat16 [P, C] added to embeddings, or null
  Norm final_norm;
  Projection lm_head;
  int32_t num_layers, num_ropes, vocab_size, num_positions;
  int32_t hidden_size, inner_size, num_heads, num_kv_heads, head_dim;
  int32_t activation, gated;
  float embedding_scale;
  float attention_scale;
  float attention_soft_cap;  // 0: none
  float logit_soft_cap;      // 0: none
};

// Where layers that share their blocks keep them: slot = table[position / block_size] * block_size
// + position % block_size.
struct BlockGroup {
  const int64_t* slots;         // [T] of the new tokens
  const int32_t* block_tables;  // [B][table_stride]
  int64_t table_stride;
  int32_t block_size;
  int32_t window;     // no more than this is kept; 0: everything
  int32_t num_sinks;  // first positions that are visible besides the window
};

struct Batch {
  const int64_t* token_ids;   // [T]
  const int64_t* positions;   // [T]
  const int32_t* query_lens;  // [B]
  const int32_t* seq_lens;    // [B]
  uint16_t* const* keys;      // [layers]: bfloat16 [N, S, KH, D]; null: sequences without a cache
  uint16_t* const* values;
  const BlockGroup* groups;
  const int32_t* group_of_layer;
  int32_t num_tokens, num_requests;
};

// Rows of queries against the keys of their heads.
struct AttentionTile {
  const uint16_t* queries;  // bfloat16 [heads][rows][padded_dim]
  int32_t heads;            // of keys and values, side by side
  int32_t rows, rows_per_token;
  int32_t first_position;  // of the first rows_per_token rows
  int32_t first_key, last_key;
  int32_t window, num_sinks;
  int32_t head_dim, padded_dim;
  float scale, soft_cap;
};

// Where a tile finds a position's key and value of its first head: at (base + slot) * stride +
// offset.
struct KeyValues {
  const uint16_t* keys;
  const uint16_t* values;
  const int32_t* block_table;
  int64_t base;
  int64_t stride;
  int64_t offset;
  int32_t block_size;
};

// Sums of a tile: out [heads][rows][padded_dim] is not yet divided by `sums` [heads][rows];
// `largest` is the largest score, minus infinity where a row saw nothing.
struct TileSums {
  float* out;
  float* sums;
  float* largest;
};

size_t attention_scratch_bytes(int rows, int padded_dim);

struct StepFunctions {
  // Rows of x [rows][width]; y may be x.
  void (*norm)(const Norm& norm, const float* x, float* y, int width);
  // y [width] of x [2 * width], the gate first, or of x [width].
  void (*activate)(int32_t activation, bool gated, const float* x, float* y, int width);
  // The tile and the one that this thread takes next (the same, if there is none), whose first keys
  // and values are asked for while the last ones of this tile are computed with.
  void (*attend)(const AttentionTile& tile, const KeyValues& kv, const AttentionTile& next,
                 const KeyValues& next_kv, void* scratch, TileSums result);
  void (*widen)(const uint16_t* x, float* y, int count);
  // y = bfloat16 of a head x [dim], the pairs (i, i + pairs) rotated by these angles.
  void (*rotate)(const float* x, const float* cosines, const float* sines, int pairs, int dim,
                 uint16_t* y);
  // y = x, or y += x.
  void (*add)(const float* x, float* y, int count);
  void (*soft_cap)(float* x, float cap, int count);
};

inline int padded_to(int count, int multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

const StepFunctions& step_functions(InstructionSet set);

}  // namespace llmopt

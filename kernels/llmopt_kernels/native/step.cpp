// The forward pass of a decoder in one parallel region, and its output head in another.
#include "step.h"

#include <cmath>
#include <cstring>

#include "step_attention.h"
#include "step_run.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace llmopt {

extern const StepFunctions step_scalar;
#if defined(__x86_64__)
extern const StepFunctions step_avx2, step_avx512;
#endif

const StepFunctions& step_functions(InstructionSet set) {
#if defined(__x86_64__)
  if (set == kAvx512) return step_avx512;
  if (set == kAvx2) return step_avx2;
#endif
  (void)set;
  return step_scalar;
}

size_t attention_scratch_bytes(int rows, int padded_dim) {
  constexpr size_t kKeys = 64;
  const size_t blocks = kKeys * padded_dim * (3 * sizeof(uint16_t));
  return padded_to(int(blocks + rows * kKeys * (sizeof(float) + sizeof(uint16_t))), 64);
}

namespace {

void prepare(const LinearFunctions& linear, const Projection& p, char* inputs, const float* x,
             int width, int num_tokens, int first, int last) {
  for (int i = 0; i < p.num_parts; i++) {
    const LinearWeight& w = *p.parts[i];
    linear.prepare(w, place_activations(inputs, w, num_tokens), x, kFloat32, width, first, last);
    inputs += workspace_bytes(w, num_tokens);
  }
}

void multiply(const LinearFunctions& linear, const Projection& p, char* inputs, float* y,
              bool accumulate, int num_tokens, const Worker& me) {
  float* column = y;
  for (int i = 0; i < p.num_parts; i++) {
    const LinearWeight& w = *p.parts[i];
    const int blocks = num_row_blocks(w);
    linear.multiply(w, place_activations(inputs, w, num_tokens), num_tokens, column, kFloat32,
                    p.out_features, accumulate, me.first(blocks), me.last(blocks));
    inputs += workspace_bytes(w, num_tokens);
    column += w.out_features;
  }
}

void embed(const Step& s, const Worker& me) {
  const int width = s.m.hidden_size, tokens = s.batch.num_tokens;
  for (int t = me.first(tokens); t < me.last(tokens); t++) {
    float* hidden = s.hidden + size_t(t) * width;
    s.run.widen(s.m.embedding + s.batch.token_ids[t] * width, hidden, width);
    if (s.m.embedding_scale != 1.0f) {
      for (int c = 0; c < width; c++) hidden[c] *= s.m.embedding_scale;
    }
    if (s.m.positions) {
      float* learned = s.b.normed + size_t(t) * width;
      s.run.widen(s.m.positions + s.batch.positions[t] * width, learned, width);
      s.run.add(learned, hidden, width);
    }
    for (int r = 0; r < s.m.num_ropes; r++) {
      const Rope& rope = s.m.ropes[r];
      const size_t at = (size_t(r) * tokens + t) * most_pairs(s.m);
      for (int p = 0; p < rope.num_pairs; p++) {
        const float angle = float(s.batch.positions[t]) * rope.inverse_frequencies[p];
        s.b.cosines[at + p] = std::cos(angle) * rope.scale;
        s.b.sines[at + p] = std::sin(angle) * rope.scale;
      }
    }
  }
}

// Add what waits in `branch`, normalized, and normalize the sum as input of a projection.
void norm_inputs(const Step& s, const Norm* branch_norm, const Norm& norm, const Projection& next,
                 const Worker& me) {
  const int width = s.m.hidden_size, tokens = s.batch.num_tokens;
  const int first = me.first(tokens), last = me.last(tokens);
  for (int t = first; t < last; t++) {
    const size_t at = size_t(t) * width;
    if (branch_norm && branch_norm->kind != kNoNorm) {
      s.run.norm(*branch_norm, s.b.branch + at, s.b.branch + at, width);
      s.run.add(s.b.branch + at, s.hidden + at, width);
    }
    s.run.norm(norm, s.hidden + at, s.b.normed + at, width);
  }
  prepare(s.linear, next, s.b.inputs, s.b.normed, width, tokens, first, last);
}

// A branch's last product: into the hidden states, or apart where it is normalized first.
void multiply_branch(const Step& s, const Projection& p, const Norm& branch_norm,
                     const Worker& me) {
  const bool direct = branch_norm.kind == kNoNorm;
  multiply(s.linear, p, s.b.inputs, direct ? s.hidden : s.b.branch, direct, s.batch.num_tokens,
           me);
}

// Where a layer's new keys and values go: slot t or, in a cache, the one of token t.
struct NewSlots {
  const BlockGroup* group;
  uint16_t* keys;
  uint16_t* values;
  int64_t width;  // of a slot
  NewSlots(const Step& s, int index) : group(group_of(s, index)) {
    keys = group ? s.batch.keys[index] : s.b.keys;
    values = group ? s.batch.values[index] : s.b.values;
    width = int64_t(s.m.num_kv_heads) * s.m.head_dim;
  }
  int64_t at(int token) const { return (group ? group->slots[token] : token) * width; }
};

// Ask for the slots before they are written, which would else wait for the memory at each. Inlined,
// because GCC takes a function that only fetches for one that does nothing.
__attribute__((always_inline)) inline void fetch_slots(const Step& s, int index,
                                                       const Worker& me) {
  constexpr int kLine = 32;  // bfloat16 of a cache line
  const NewSlots slots(s, index);
  for (int t = me.first(s.batch.num_tokens); t < me.last(s.batch.num_tokens); t++) {
    for (int64_t i = slots.at(t); i < slots.at(t) + slots.width; i += kLine) {
      __builtin_prefetch(slots.keys + i, 1);
      __builtin_prefetch(slots.values + i, 1);
    }
  }
}

// Norm and rotate the query and key heads; queries, keys and values go to where attention reads.
void rope_store(const Step& s, int index, const Worker& me) {
  const Layer& layer = s.m.layers[index];
  const Model& m = s.m;
  const int dim = m.head_dim, padded = padded_dim(m), tokens = s.batch.num_tokens;
  const int heads = m.num_heads + 2 * m.num_kv_heads, rotated = m.num_heads + m.num_kv_heads;
  const int rope = layer.rope < 0 ? 0 : layer.rope;
  const int pairs = layer.rope < 0 ? 0 : m.ropes[rope].num_pairs;
  const NewSlots slots(s, index);
  for (int t = me.first(tokens); t < me.last(tokens); t++) {
    float* qkv = s.b.qkv + size_t(t) * heads * dim;
    const size_t angles = (size_t(rope) * tokens + t) * most_pairs(m);
    const float* cosines = s.b.cosines + angles;
    const float* sines = s.b.sines + angles;
    for (int h = 0; h < heads; h++, qkv += dim) {
      if (h < m.num_heads) {
        uint16_t* query = s.b.queries + (size_t(t) * m.num_heads + h) * padded;
        s.run.norm(layer.query_norm, qkv, qkv, dim);
        s.run.rotate(qkv, cosines, sines, pairs, dim, query);
        std::memset(query + dim, 0, (padded - dim) * sizeof *query);
      } else if (h < rotated) {
        uint16_t* key = slots.keys + slots.at(t) + (h - m.num_heads) * dim;
        s.run.norm(layer.key_norm, qkv, qkv, dim);
        s.run.rotate(qkv, cosines, sines, pairs, dim, key);
      } else {
        uint16_t* value = slots.values + slots.at(t) + (h - rotated) * dim;
        s.run.rotate(qkv, cosines, sines, 0, dim, value);
      }
    }
  }
}

void merge_pieces(const Step& s, const Projection& next, const Worker& me) {
  const int heads = s.m.num_heads, tokens = s.batch.num_tokens, width = heads * s.m.head_dim;
  const int first = me.first(tokens), last = me.last(tokens);
  for (int t = first; t < last && s.plan.num_partials > 0; t++) {
    const Pieces& pieces = s.plan.pieces[s.plan.request_of_token[t]];
    for (int h = 0; h < heads && pieces.num_pieces > 1; h++) {
      const int64_t row = int64_t(t - pieces.first_row) * heads + h;
      merge_head(s, pieces.first_partial + row * pieces.num_pieces, pieces.num_pieces,
                 s.b.attended + size_t(t) * width + h * s.m.head_dim);
    }
  }
  prepare(s.linear, next, s.b.inputs, s.b.attended, width, tokens, first, last);
}

void activate_inputs(const Step& s, const Projection& next, const Worker& me) {
  const int width = s.m.inner_size, tokens = s.batch.num_tokens;
  const int first = me.first(tokens), last = me.last(tokens);
  const int from_width = s.m.gated ? 2 * width : width;
  for (int t = first; t < last; t++) {
    s.run.activate(s.m.activation, s.m.gated, s.b.inner + size_t(t) * from_width,
                   s.b.activated + size_t(t) * width, width);
  }
  prepare(s.linear, next, s.b.inputs, s.b.activated, width, tokens, first, last);
}

void run_layer(const Step& s, int index, Worker& me) {
  const Layer& layer = s.m.layers[index];
  const int tokens = s.batch.num_tokens;
  const Norm* before = index ? &s.m.layers[index - 1].mlp_branch_norm : nullptr;
  norm_inputs(s, before, layer.input_norm, layer.qkv, me);
  fetch_slots(s, index, me);
  me.finish(kNorms);
  multiply(s.linear, layer.qkv, s.b.inputs, s.b.qkv, false, tokens, me);
  me.finish(kQkv);
  rope_store(s, index, me);
  me.finish(kRopeStore);
  attend(s, index, me);
  me.finish(kAttention);
  merge_pieces(s, layer.output, me);
  me.finish(kMerge);
  multiply_branch(s, layer.output, layer.attention_branch_norm, me);
  me.finish(kOutput);
  norm_inputs(s, &layer.attention_branch_norm, layer.post_norm, layer.gate_up, me);
  me.finish(kNorms);
  multiply(s.linear, layer.gate_up, s.b.inputs, s.b.inner, false, tokens, me);
  me.finish(kGateUp);
  activate_inputs(s, layer.down, me);
  me.finish(kActivation);
  multiply_branch(s, layer.down, layer.mlp_branch_norm, me);
  me.finish(kDown);
}

void add_last_branch(const Step& s, const Worker& me) {
  const Norm& norm = s.m.layers[s.m.num_layers - 1].mlp_branch_norm;
  const int width = s.m.hidden_size, tokens = s.batch.num_tokens;
  for (int t = me.first(tokens); t < me.last(tokens) && norm.kind != kNoNorm; t++) {
    const size_t at = size_t(t) * width;
    s.run.norm(norm, s.b.branch + at, s.b.branch + at, width);
    s.run.add(s.b.branch + at, s.hidden + at, width);
  }
}

bool is_valid(const Model& m, const Batch& batch) {
  for (int t = 0; t < batch.num_tokens; t++) {
    if (batch.token_ids[t] < 0 || batch.token_ids[t] >= m.vocab_size) return false;
    if (m.positions && (batch.positions[t] < 0 || batch.positions[t] >= m.num_positions)) {
      return false;
    }
  }
  return true;
}

}  // namespace
}  // namespace llmopt

using namespace llmopt;

// hidden [T][C] float32 after the last layer, not normalized; new keys and values are stored.
// Returns 0; 1 if a token or a position is outside its table, and then nothing was written.
// seconds: [operations] to add to, or null.
EXPORT int32_t llmopt_step_forward(int32_t set, const Model* model, const Batch* batch,
                                   float* hidden, int32_t num_threads, double* seconds) {
  static thread_local Workspace workspace;
  const Model& m = *model;
  if (!is_valid(m, *batch)) return 1;
  const AttentionPlan plan = plan_attention(m, *batch);
  const size_t inputs = largest_input(m, batch->num_tokens);
  Placement counted = {nullptr};
  place_buffers(counted, m, *batch, plan, inputs, num_threads);
  Placement placed = {workspace.reserve(counted.used)};
  const Buffers buffers = place_buffers(placed, m, *batch, plan, inputs, num_threads);
  std::vector<std::atomic<int>> next_tile(m.num_layers);
  const Step step = {m, *batch, plan, buffers, step_functions(InstructionSet(set)),
                     linear_functions(InstructionSet(set)), hidden, next_tile};
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
  {
    Worker me(seconds);
    embed(step, me);
    me.finish(kEmbed);
    for (int index = 0; index < m.num_layers; index++) run_layer(step, index, me);
    add_last_branch(step, me);
    me.finish(kNorms);
  }
  return 0;
}

// logits [R][V] float32 of hidden states [R][C] as `llmopt_step_forward` leaves them.
EXPORT void llmopt_step_logits(int32_t set, const Model* model, const float* hidden, float* logits,
                               int32_t num_rows, int32_t num_threads, double* seconds) {
  static thread_local Workspace workspace;
  const Model& m = *model;
  const StepFunctions& run = step_functions(InstructionSet(set));
  const LinearFunctions& linear = linear_functions(InstructionSet(set));
  Placement at = {nullptr};
  const size_t width = m.hidden_size, inputs = input_bytes(m.lm_head, num_rows);
  at.memory = workspace.reserve(num_rows * width * sizeof(float) + inputs + 128);
  float* normed = at.take<float>(num_rows * width);
  char* rounded = at.take<char>(inputs);
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
  {
    Worker me(seconds);
    const int first = me.first(num_rows), last = me.last(num_rows);
    for (int r = first; r < last; r++) {
      run.norm(m.final_norm, hidden + r * width, normed + r * width, int(width));
    }
    prepare(linear, m.lm_head, rounded, normed, int(width), num_rows, first, last);
    me.finish(kNorms);
    multiply(linear, m.lm_head, rounded, logits, false, num_rows, me);
    me.finish(kHead);
    if (m.logit_soft_cap > 0) {
      for (int r = first; r < last; r++) {
        run.soft_cap(logits + size_t(r) * m.vocab_size, m.logit_soft_cap, m.vocab_size);
      }
      me.finish(kHead);
    }
  }
}

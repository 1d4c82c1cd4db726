// Linear layers on CPUs: codes in blocks of 16 output rows, one row per SIMD lane, or plain rows.
//
// Knows nothing of Python, torch or threads: a caller splits tokens and row blocks over its own
// threads. The law: y[t, o] = sum_k x[t, k] * weight[o, k] + bias[o], where x is first rounded as
// the storage asks for: to one or two int8 (`parts`) in steps of `step` columns (one scale each), or
// to bfloat16.
//
// Inside a parallel region:
//     const LinearFunctions& run = linear_functions(set);
//     Activations act = place_activations(workspace, weight, T);  // workspace_bytes(weight, T)
//     run.prepare(weight, act, x, kFloat32, K, t0, t1);           // this thread's tokens
//     #pragma omp barrier
//     run.multiply(weight, act, T, y, kFloat32, O, false, b0, b1); // this thread's row blocks
// Both may be called by many threads at once as long as the ranges do not overlap.
#pragma once
#include <cstddef>
#include <cstdint>

namespace llmopt {

constexpr int kRowBlock = 16;

enum InstructionSet : int32_t { kScalar = 0, kAvx2 = 1, kAvx512 = 2 };

// Types of numbers in memory. kInt8 is a small integer (signed for scales, unsigned for offsets)
// that multiplies a float16 of its super-group.
enum NumberType : int32_t { kNone = 0, kFloat32 = 1, kFloat16 = 2, kBFloat16 = 3, kInt8 = 4 };

// How `data` is laid out, B = blocks of rows, K = padded_in:
//   kCode4     [B][K/8][16][4] bytes: low nibbles are columns k..k+3, high nibbles k+4..k+7
//   kCode8     [B][K/4][16][4] bytes: columns k..k+3
//   kRows      [O][K] bfloat16, row by row as torch keeps it, K a multiple of 32
//   kCode5     [B][steps] of the low 4 bits of a step's columns as kCode4 and, behind them, bit 4 as
//              [step/8][2][16][4] bits, the first in the lowest bit of a byte
//   kCode6     the same with bits 4 and 5, [step/8][2][2][16][4] bits
enum Storage : int32_t { kCode4 = 0, kCode8 = 1, kRows = 2, kCode5 = 3, kCode6 = 4 };

// A weight [O, K]. value = (level(code) - zero) * scale + offset, level = table or the code itself.
// Arrays per group are [B][G][16], those per super-group [B][G / groups_per_super][16].
// Offsets of type kInt8 count negative: offset = -(integer * super_offset), as in ggml's K-quants.
struct LinearWeight {
  const uint8_t* data;
  const void* scales;
  const uint16_t* super_scales;   // float16; with kInt8 scales
  const uint8_t* zeros;           // or null: `zero` everywhere
  const void* offsets;            // or null
  const uint16_t* super_offsets;  // float16; with kInt8 offsets
  const uint8_t* table;           // 16 levels, or null
  const float* bias;              // [16 * row blocks], or null
  const int32_t* order;           // [K]: column k of `data` takes x[order[k]]; null: in order
  int32_t storage;
  int32_t scale_type;
  int32_t offset_type;
  int32_t zero;
  int32_t group_size;        // columns of a scale, a multiple of `step`
  int32_t groups_per_super;  // at least 1
  int32_t step;              // columns that share a scale of x: a multiple of 16, divides padded_in
  int32_t in_features;       // K of x
  int32_t padded_in;         // columns of `data`; x counts as 0 beyond K
  int32_t out_features;      // O; rows of `data` beyond it are never written
  int32_t parts;             // 1, or 2: a second int8 for what the first leaves of an input
};

inline int num_row_blocks(const LinearWeight& w) {
  return (w.out_features + kRowBlock - 1) / kRowBlock;
}

// The rounded inputs of T tokens; P = parts, those of a token side by side.
struct Activations {
  void* values;   // int8 [T][P][padded_in], or bfloat16 for kRows
  float* scales;  // [T][P][steps]
  float* sums;    // [T][P][steps]: scale * sum of the step's integers
};

size_t workspace_bytes(const LinearWeight& w, int num_tokens);
// `workspace` is 64-byte aligned.
Activations place_activations(void* workspace, const LinearWeight& w, int num_tokens);

struct LinearFunctions {
  // Round tokens first..last-1 of x [T][x_stride] (float32 or bfloat16).
  void (*prepare)(const LinearWeight& w, const Activations& act, const void* x, int32_t x_type,
                  int64_t x_stride, int first, int last);
  // Rows 16 * first .. 16 * last - 1 of y [T][y_stride] (float32 or bfloat16); `accumulate` adds
  // to what is there (a residual).
  void (*multiply)(const LinearWeight& w, const Activations& act, int num_tokens, void* y,
                   int32_t y_type, int64_t y_stride, bool accumulate, int first, int last);
};

// The best set that this processor has; and the functions of a set that it has.
InstructionSet best_instruction_set();
const LinearFunctions& linear_functions(InstructionSet set);

}  // namespace llmopt

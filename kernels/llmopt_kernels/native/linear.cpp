// Choice of the instruction set, workspaces, and the C interface of a single linear layer.
#include "linear.h"

#include <omp.h>

#include <cstdlib>
#include <new>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace llmopt {

extern const LinearFunctions linear_scalar;
#if defined(__x86_64__)
extern const LinearFunctions linear_avx2, linear_avx512;
#endif

InstructionSet best_instruction_set() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni") &&
                      __builtin_cpu_supports("avx512bf16");
  if (avx2) return avx512 ? kAvx512 : kAvx2;
#endif
  return kScalar;
}

const LinearFunctions& linear_functions(InstructionSet set) {
#if defined(__x86_64__)
  if (set == kAvx512) return linear_avx512;
  if (set == kAvx2) return linear_avx2;
#endif
  (void)set;
  return linear_scalar;
}

namespace {

constexpr size_t kAlignment = 64;

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

size_t value_bytes(const LinearWeight& w, int num_tokens) {
  return aligned(size_t(num_tokens) * w.parts * w.padded_in * (w.storage == kRows ? 2 : 1));
}

size_t scale_bytes(const LinearWeight& w, int num_tokens) {
  if (w.storage == kRows) return 0;
  return aligned(size_t(num_tokens) * w.parts * (w.padded_in / w.step) * sizeof(float));
}

// Grows as calls need it; one for each thread that calls `llmopt_linear`.
struct Workspace {
  void* memory = nullptr;
  size_t size = 0;
  ~Workspace() { std::free(memory); }
  void* reserve(size_t bytes) {
    if (bytes > size) {
      std::free(memory);
      memory = std::aligned_alloc(kAlignment, aligned(bytes));
      if (memory == nullptr) throw std::bad_alloc();
      size = bytes;
    }
    return memory;
  }
};

int share(int count, int part, int parts) { return int(int64_t(count) * part / parts); }

}  // namespace

size_t workspace_bytes(const LinearWeight& w, int num_tokens) {
  return value_bytes(w, num_tokens) + 2 * scale_bytes(w, num_tokens);
}

Activations place_activations(void* workspace, const LinearWeight& w, int num_tokens) {
  char* at = static_cast<char*>(workspace);
  Activations act;
  act.values = at;
  act.scales = reinterpret_cast<float*>(at + value_bytes(w, num_tokens));
  act.sums = act.scales + scale_bytes(w, num_tokens) / sizeof(float);
  return act;
}

}  // namespace llmopt

using namespace llmopt;

EXPORT int32_t llmopt_best_instruction_set() { return best_instruction_set(); }

// y [T, O] = the layer of x [T, K], both contiguous and of one type, on num_threads threads.
EXPORT void llmopt_linear(int32_t set, const LinearWeight* weight, const void* x, void* y,
                          int32_t type, int32_t num_tokens, int32_t num_threads) {
  static thread_local Workspace workspace;
  const LinearWeight& w = *weight;
  const LinearFunctions& run = linear_functions(InstructionSet(set));
  const Activations act =
      place_activations(workspace.reserve(workspace_bytes(w, num_tokens)), w, num_tokens);
  const int blocks = num_row_blocks(w);
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
  {
    const int part = omp_get_thread_num(), parts = omp_get_num_threads();
    run.prepare(w, act, x, type, w.in_features, share(num_tokens, part, parts),
                share(num_tokens, part + 1, parts));
#pragma omp barrier
    run.multiply(w, act, num_tokens, y, type, w.out_features, false, share(blocks, part, parts),
                 share(blocks, part + 1, parts));
  }
}

// Only the rounding of x: values, scales and sums as `Activations` holds them, on this thread.
EXPORT void llmopt_prepare(int32_t set, const LinearWeight* weight, const void* x, int32_t type,
                           int32_t num_tokens, void* values, float* scales, float* sums) {
  const Activations act = {values, scales, sums};
  linear_functions(InstructionSet(set))
      .prepare(*weight, act, x, type, weight->in_features, 0, num_tokens);
}

// A step while it runs: its threads, and what they share.
#pragma once
#include <omp.h>

#include <atomic>
#include <chrono>
#include <vector>

#include "step_plan.h"

namespace llmopt {
namespace {

// What the seconds of a step are counted under; the names are in native_step/structs.py.
enum Operation { kEmbed, kNorms, kQkv, kRopeStore, kAttention, kMerge, kOutput, kGateUp,
                 kActivation, kDown, kHead, kNumOperations };

int share(int count, int part, int parts) { return int(int64_t(count) * part / parts); }

// A thread of the region: its number, and the clock of thread 0.
struct Worker {
  int part, parts;
  double* seconds;  // [kNumOperations], or null
  std::chrono::steady_clock::time_point started;

  Worker(double* profile) : part(omp_get_thread_num()), parts(omp_get_num_threads()) {
    seconds = part == 0 ? profile : nullptr;
    if (seconds) started = std::chrono::steady_clock::now();
  }
  int first(int count) const { return share(count, part, parts); }
  int last(int count) const { return share(count, part + 1, parts); }
  // Wait for the others, and count the time since the last wait.
  void finish(Operation operation) {
#pragma omp barrier
    if (seconds == nullptr) return;
    const auto now = std::chrono::steady_clock::now();
    seconds[operation] += std::chrono::duration<double>(now - started).count();
    started = now;
  }
};

struct Step {
  const Model& m;
  const Batch& batch;
  const AttentionPlan& plan;
  const Buffers& b;
  const StepFunctions& run;
  const LinearFunctions& linear;
  float* hidden;  // [T][C]
  std::vector<std::atomic<int>>& next_tile;  // of each layer
};

const BlockGroup* group_of(const Step& s, int layer) {
  return s.batch.keys ? s.batch.groups + s.batch.group_of_layer[layer] : nullptr;
}

}  // namespace
}  // namespace llmopt

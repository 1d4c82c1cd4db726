// The parts of a forward pass with AVX2.
#if defined(__x86_64__)
#include "step_lanes.h"

#include "activation_kernel.h"
#include "attention_kernel.h"
#include "norm_kernel.h"

namespace llmopt {

extern const StepFunctions step_avx2;
const StepFunctions step_avx2 = {norm, activate, attend, widen, rotate, add, soft_cap};

}  // namespace llmopt

#endif

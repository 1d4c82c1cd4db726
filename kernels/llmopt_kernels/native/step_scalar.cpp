// The parts of a forward pass in plain C++.
#include "step_lanes.h"

#include "activation_kernel.h"
#include "attention_kernel.h"
#include "norm_kernel.h"

namespace llmopt {

extern const StepFunctions step_scalar;
const StepFunctions step_scalar = {norm, activate, attend, widen, rotate, add, soft_cap};

}  // namespace llmopt


// Linear layers with the instructions of simd_scalar.h.
#include "simd_scalar.h"

#include "quantize_kernel.h"

#include "linear_kernel.h"

namespace llmopt {

extern const LinearFunctions linear_scalar;
const LinearFunctions linear_scalar = {prepare, multiply};

}  // namespace llmopt

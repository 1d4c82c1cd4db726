// Linear layers with the instructions of simd_avx512.h.
#if defined(__x86_64__)
#include "simd_avx512.h"

#include "quantize_kernel.h"

#include "linear_kernel.h"

namespace llmopt {

extern const LinearFunctions linear_avx512;
const LinearFunctions linear_avx512 = {prepare, multiply};

}  // namespace llmopt

#endif

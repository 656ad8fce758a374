// The bfloat16 expansions.
#include "kernels/expand.cuh"

namespace gralora::expand {

cudaError_t launch_bf16(const ExpandParams& params, cudaStream_t stream) {
  return launch<__nv_bfloat16>(params, stream);
}

}  // namespace gralora::expand

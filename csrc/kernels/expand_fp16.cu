// The float16 expansions.
#include "kernels/expand.cuh"

namespace gralora::expand {

cudaError_t launch_fp16(const ExpandParams& params, cudaStream_t stream) {
  return launch<__half>(params, stream);
}

}  // namespace gralora::expand

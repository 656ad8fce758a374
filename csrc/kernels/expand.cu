// The expansion's entry: the dtype picks the file that has its kernel.
#include "kernels/expand.cuh"

namespace gralora {

cudaError_t launch_expand(const ExpandParams& params, cudaStream_t stream) {
  if (params.T == 0) return cudaSuccess;
  switch (params.type) {
    case ElementType::kBFloat16:
      return expand::launch_bf16(params, stream);
    case ElementType::kFloat16:
      return expand::launch_fp16(params, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace gralora

// The extended product's entry: the operands' dtype picks the file that has its kernels.
#include "kernels/extended_product_launch_sm90.cuh"

namespace gralora {

cudaError_t launch_extended_product(const ExtendedProductParams& params, cudaStream_t stream) {
  if (params.T == 0) return cudaSuccess;
  const bool projects = params.projection.in_tiles;
  switch (params.type) {
    case ElementType::kBFloat16:
      return projects ? extended_product::launch_projecting_bf16(params, stream)
                      : extended_product::launch_bf16(params, stream);
    case ElementType::kFloat16:
      return projects ? extended_product::launch_projecting_fp16(params, stream)
                      : extended_product::launch_fp16(params, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace gralora

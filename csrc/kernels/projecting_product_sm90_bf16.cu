// The extended product of bfloat16 operands whose tiles make their latents.
#include "kernels/extended_product_launch_sm90.cuh"

namespace gralora::extended_product {

cudaError_t launch_projecting_bf16(const ExtendedProductParams& params, cudaStream_t stream) {
  return launch_projecting<__nv_bfloat16>(params, stream);
}

}  // namespace gralora::extended_product

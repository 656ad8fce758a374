// The extended product of float16 operands whose tiles make their latents.
#include "kernels/extended_product_launch_sm90.cuh"

namespace gralora::extended_product {

cudaError_t launch_projecting_fp16(const ExtendedProductParams& params, cudaStream_t stream) {
  return launch_projecting<__half>(params, stream);
}

}  // namespace gralora::extended_product

// The extended product of bfloat16 operands.
#include "kernels/extended_product_launch_sm90.cuh"

namespace gralora::extended_product {

cudaError_t launch_bf16(const ExtendedProductParams& params, cudaStream_t stream) {
  return launch<__nv_bfloat16>(params, stream);
}

}  // namespace gralora::extended_product

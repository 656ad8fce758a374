// The extended product of float16 operands.
#include "kernels/extended_product_launch_sm90.cuh"

namespace gralora::extended_product {

cudaError_t launch_fp16(const ExtendedProductParams& params, cudaStream_t stream) {
  return launch<__half>(params, stream);
}

}  // namespace gralora::extended_product

// The bfloat16 thin products.
#include "kernels/thin_product.cuh"

namespace gralora::thin_product {

cudaError_t launch_bf16(const ThinProductParams& params, const WeightGradientParams* sums,
                        cudaStream_t stream) {
  return launch<__nv_bfloat16>(params, sums, stream);
}

}  // namespace gralora::thin_product

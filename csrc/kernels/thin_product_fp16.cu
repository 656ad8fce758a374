// The float16 thin products.
#include "kernels/thin_product.cuh"

namespace gralora::thin_product {

cudaError_t launch_fp16(const ThinProductParams& params, const WeightGradientParams* sums,
                        cudaStream_t stream) {
  return launch<__half>(params, sums, stream);
}

}  // namespace gralora::thin_product

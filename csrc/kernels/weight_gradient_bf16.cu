// The weight gradients of bfloat16 operands.
#include "kernels/weight_gradient.cuh"

namespace gralora::weight_gradient {

cudaError_t launch_bf16(const WeightGradientParams& params, cudaStream_t stream) {
  return launch<__nv_bfloat16>(params, stream);
}

}  // namespace gralora::weight_gradient

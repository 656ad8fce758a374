// The weight gradients of float16 operands.
#include "kernels/weight_gradient.cuh"

namespace gralora::weight_gradient {

cudaError_t launch_fp16(const WeightGradientParams& params, cudaStream_t stream) {
  return launch<__half>(params, stream);
}

}  // namespace gralora::weight_gradient

// The weight gradient's entry: the operands' dtype picks the file that has its kernel.
#include "kernels/weight_gradient.cuh"

namespace gralora {

cudaError_t launch_weight_gradient(const WeightGradientParams& params, cudaStream_t stream) {
  switch (params.type) {
    case ElementType::kBFloat16:
      return weight_gradient::launch_bf16(params, stream);
    case ElementType::kFloat16:
      return weight_gradient::launch_fp16(params, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace gralora

// The entry of kernels/input_gradients.h: the operands' dtype picks the file that has its kernels.
#include "kernels/input_gradients.cuh"

namespace gralora {

cudaError_t launch_input_gradients(const ExpandParams& expand, const WeightGradientParams& sums,
                                   cudaStream_t stream) {
  if (expand.tile != ExpandTile::k64x64 || sums.tile != GradientTile::k64x64 || sums.splits != 1) {
    return cudaErrorInvalidValue;
  }
  switch (sums.type) {
    case ElementType::kBFloat16:
      return input_gradients::launch_bf16(expand, sums, stream);
    case ElementType::kFloat16:
      return input_gradients::launch_fp16(expand, sums, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace gralora

// The entry of kernels/output_gradients.h: the operands' dtype picks the file that has its kernels.
#include "kernels/output_gradients.cuh"

namespace gralora {

cudaError_t launch_output_gradients(const ProjectParams& project, const WeightGradientParams& sums,
                                    cudaStream_t stream) {
  if (!project.width_is_contiguous || sums.tile != GradientTile::k64x64 || sums.splits != 1) {
    return cudaErrorInvalidValue;
  }
  switch (sums.type) {
    case ElementType::kBFloat16:
      return output_gradients::launch_bf16(project, sums, stream);
    case ElementType::kFloat16:
      return output_gradients::launch_fp16(project, sums, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace gralora

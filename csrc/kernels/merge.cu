// Hands a merge to the kernel of the weight's type: merge_half.cu or merge_float.cu.
#include "kernels/merge_launch.h"
#include "kernels/merge_tile.cuh"

namespace gralora {

cudaError_t launch_merge(const MergeParams& params, cudaStream_t stream) {
  const int64_t tiles = merge::count_strips(params, 1);
  if (tiles == 0) return cudaSuccess;
  if (tiles > INT32_MAX) return cudaErrorInvalidConfiguration;
  switch (params.type) {
    case ElementType::kFloat64:
      return merge::launch_float64(params, stream);
    case ElementType::kFloat32:
      return merge::launch_float32(params, stream);
    case ElementType::kBFloat16:
      return merge::launch_bfloat16(params, stream);
    case ElementType::kFloat16:
      return merge::launch_float16(params, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace gralora

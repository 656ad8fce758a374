// The projection's entry: the dtype picks the file that has its kernels.
#include "kernels/project.cuh"
#include "kernels/project_sm90.h"

namespace gralora {

cudaError_t launch_project(const ProjectParams& params, cudaStream_t stream) {
  if (params.T == 0) return cudaSuccess;
  if (is_bulk(params.tile)) return launch_project_sm90(params, stream);
  switch (params.type) {
    case ElementType::kBFloat16:
      return project::launch_bf16(params, stream);
    case ElementType::kFloat16:
      return project::launch_fp16(params, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace gralora

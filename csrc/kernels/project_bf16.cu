// The bfloat16 projections.
#include "kernels/project.cuh"

namespace gralora::project {

cudaError_t launch_bf16(const ProjectParams& params, cudaStream_t stream) {
  return params.width_is_contiguous ? launch<__nv_bfloat16, true>(params, stream)
                                    : launch<__nv_bfloat16, false>(params, stream);
}

}  // namespace gralora::project

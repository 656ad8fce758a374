// The float16 projections.
#include "kernels/project.cuh"

namespace gralora::project {

cudaError_t launch_fp16(const ProjectParams& params, cudaStream_t stream) {
  return params.width_is_contiguous ? launch<__half, true>(params, stream)
                                    : launch<__half, false>(params, stream);
}

}  // namespace gralora::project

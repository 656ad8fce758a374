// G and the gradients of the output's factors for bfloat16 operands.
#include "kernels/output_gradients.cuh"

namespace gralora::output_gradients {

cudaError_t launch_bf16(const ProjectParams& project, const WeightGradientParams& sums,
                        cudaStream_t stream) {
  return launch<__nv_bfloat16>(project, sums, stream);
}

}  // namespace gralora::output_gradients

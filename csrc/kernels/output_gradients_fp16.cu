// G and the gradients of the output's factors for float16 operands.
#include "kernels/output_gradients.cuh"

namespace gralora::output_gradients {

cudaError_t launch_fp16(const ProjectParams& project, const WeightGradientParams& sums,
                        cudaStream_t stream) {
  return launch<__half>(project, sums, stream);
}

}  // namespace gralora::output_gradients

// dx's adapter term and the gradients of the input's factors for bfloat16 operands.
#include "kernels/input_gradients.cuh"

namespace gralora::input_gradients {

cudaError_t launch_bf16(const ExpandParams& expand, const WeightGradientParams& sums,
                        cudaStream_t stream) {
  return launch<__nv_bfloat16>(expand, sums, stream);
}

}  // namespace gralora::input_gradients

// dx's adapter term and the gradients of the input's factors for float16 operands.
#include "kernels/input_gradients.cuh"

namespace gralora::input_gradients {

cudaError_t launch_fp16(const ExpandParams& expand, const WeightGradientParams& sums,
                        cudaStream_t stream) {
  return launch<__half>(expand, sums, stream);
}

}  // namespace gralora::input_gradients

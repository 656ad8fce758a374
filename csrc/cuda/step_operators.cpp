// gralora_steps on CUDA: each step that has kernels by itself (aten/step_operators.h), for
// measurements.
#include "aten/step_operators.h"

#include <torch/library.h>

#include "cuda/steps.h"

namespace gralora::cuda {
TORCH_LIBRARY_IMPL(gralora_steps, CUDA, m) {
  aten::StepOperators<kKernelSteps, exchange>::register_in(m);
}

}  // namespace gralora::cuda

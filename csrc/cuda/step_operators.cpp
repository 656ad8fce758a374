// gralora_steps on CUDA: each step that has kernels by itself (ops/steps.h), for measurements.
#include <torch/library.h>

#include "cuda/steps.h"
#include "ops/steps.h"

namespace gralora::cuda {
TORCH_LIBRARY_IMPL(gralora_steps, CUDA, m) {
  ops::StepOperators<kKernelSteps, exchange>::register_in(m);
}

}  // namespace gralora::cuda

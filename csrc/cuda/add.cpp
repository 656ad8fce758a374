// add_forward and add_backward on CUDA: the device guard, then the composition of aten/add.cpp with
// the steps that have kernels (cuda/steps.h).
#include "aten/add.h"

#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "cuda/steps.h"

namespace gralora::cuda {
namespace {

ops::Forward add_forward(const at::Tensor& y, const at::Tensor& x, const OptionalTensor& A,
                         const OptionalTensor& B, const OptionalTensor& lora_A,
                         const OptionalTensor& lora_B, const OptionalTensor& rng_state,
                         double scaling, double dropout_p) {
  const c10::DeviceGuard guard(x.device());
  return aten::add_forward(kKernelSteps, y, x, A, B, lora_A, lora_B, rng_state, scaling, dropout_p);
}

ops::AddGradients add_backward(const at::Tensor& dy, const OptionalTensor& x,
                               const OptionalTensor& A, const OptionalTensor& B,
                               const OptionalTensor& lora_A, const OptionalTensor& lora_B,
                               const OptionalTensor& H, const OptionalTensor& lora_H,
                               const OptionalTensor& rng_state, double scaling, double dropout_p,
                               std::array<bool, 5> output_mask) {
  const c10::DeviceGuard guard(dy.device());
  return aten::add_backward(kKernelSteps, dy, x, A, B, lora_A, lora_B, H, lora_H, rng_state,
                            scaling, dropout_p, output_mask);
}

}  // namespace

TORCH_LIBRARY_IMPL(gralora, CUDA, m) {
  m.impl("add_forward", TORCH_FN(add_forward));
  m.impl("add_backward", TORCH_FN(add_backward));
}

}  // namespace gralora::cuda

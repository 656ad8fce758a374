// linear_forward and linear_backward on CUDA: the device guard, then the composition of
// aten/linear.cpp with the steps that have kernels (cuda/steps.h).
#include "aten/linear.h"

#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "cuda/steps.h"

namespace gralora::cuda {
namespace {

ops::Forward linear_forward(const at::Tensor& x, const at::Tensor& weight,
                            const OptionalTensor& bias, const OptionalTensor& A,
                            const OptionalTensor& B, const OptionalTensor& lora_A,
                            const OptionalTensor& lora_B, const OptionalTensor& rng_state,
                            double scaling, double dropout_p) {
  const c10::DeviceGuard guard(x.device());
  return aten::linear_forward(kKernelSteps, x, weight, bias, A, B, lora_A, lora_B, rng_state,
                              scaling, dropout_p);
}

ops::LinearGradients linear_backward(const at::Tensor& dy, const OptionalTensor& x,
                                     const at::Tensor& weight, const OptionalTensor& A,
                                     const OptionalTensor& B, const OptionalTensor& lora_A,
                                     const OptionalTensor& lora_B, const OptionalTensor& H,
                                     const OptionalTensor& lora_H, const OptionalTensor& rng_state,
                                     double scaling, double dropout_p,
                                     std::array<bool, 7> output_mask) {
  const c10::DeviceGuard guard(dy.device());
  return aten::linear_backward(kKernelSteps, dy, x, weight, A, B, lora_A, lora_B, H, lora_H,
                               rng_state, scaling, dropout_p, output_mask);
}

}  // namespace

TORCH_LIBRARY_IMPL(gralora, CUDA, m) {
  m.impl("linear_forward", TORCH_FN(linear_forward));
  m.impl("linear_backward", TORCH_FN(linear_backward));
}

}  // namespace gralora::cuda

// linear_group_forward and linear_group_backward on CUDA: the device guard, then the composition of
// aten/linear_group.cpp with the steps that have kernels (cuda/steps.h).
#include "aten/linear_group.h"

#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "cuda/steps.h"
#include "kernels/extended_product_tiles.h"

namespace gralora::cuda {
namespace {

static_assert(ops::kMostMembers <= kMaxProducts, "all layers in one product");

ops::GroupForward linear_group_forward(const at::Tensor& x, at::TensorList weights,
                                       const c10::List<OptionalTensor>& biases, at::TensorList A,
                                       at::TensorList B, double scaling) {
  const c10::DeviceGuard guard(x.device());
  return aten::linear_group_forward(kKernelSteps, x, weights, biases, A, B, scaling);
}

ops::GroupGradients linear_group_backward(const c10::List<OptionalTensor>& dy,
                                          const OptionalTensor& x, at::TensorList weights,
                                          at::TensorList A, at::TensorList B,
                                          const OptionalTensor& H, double scaling, bool wants_dx,
                                          ops::GroupMask wants_dA, ops::GroupMask wants_dB) {
  c10::OptionalDeviceGuard guard;
  if (!weights.empty()) guard.reset_device(weights[0].device());
  return aten::linear_group_backward(kKernelSteps, dy, x, weights, A, B, H, scaling, wants_dx,
                                     wants_dA, wants_dB);
}

}  // namespace

TORCH_LIBRARY_IMPL(gralora, CUDA, m) {
  m.impl("linear_group_forward", TORCH_FN(linear_group_forward));
  m.impl("linear_group_backward", TORCH_FN(linear_group_backward));
}

}  // namespace gralora::cuda

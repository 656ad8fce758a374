// linear and add under autocast: x, weight and bias are cast, A, B, lora_A and lora_B never, since
// a cast would sit between the operator and the parameter and round its gradient. The operator
// rounds the factors itself and returns their gradients from fp32 sums.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "ops/operators.h"

namespace gralora::autograd {
namespace {

template <c10::DeviceType kDevice>
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                  const OptionalTensor& A, const OptionalTensor& B, const OptionalTensor& lora_A,
                  const OptionalTensor& lora_B, double scaling, double dropout_p, bool training) {
  const c10::impl::ExcludeDispatchKeyGuard guard(
      at::autocast::get_autocast_dispatch_key_from_device_type(kDevice));
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(kDevice);
  return ops::linear(at::autocast::cached_cast(dtype, x, kDevice),
                     at::autocast::cached_cast(dtype, weight, kDevice),
                     at::autocast::cached_cast(dtype, bias, kDevice), A, B, lora_A, lora_B, scaling,
                     dropout_p, training);
}

template <c10::DeviceType kDevice>
std::vector<at::Tensor> linear_group(const at::Tensor& x, at::TensorList weights,
                                     const c10::List<OptionalTensor>& biases, at::TensorList A,
                                     at::TensorList B, double scaling) {
  const c10::impl::ExcludeDispatchKeyGuard guard(
      at::autocast::get_autocast_dispatch_key_from_device_type(kDevice));
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(kDevice);
  c10::List<OptionalTensor> cast_biases;
  for (const OptionalTensor bias : biases) {
    cast_biases.push_back(at::autocast::cached_cast(dtype, bias, kDevice));
  }
  return ops::linear_group(at::autocast::cached_cast(dtype, x, kDevice),
                           at::autocast::cached_cast(dtype, weights, kDevice), cast_biases, A, B,
                           scaling);
}

/// y keeps its dtype: the sum has the base layer's.
template <c10::DeviceType kDevice>
at::Tensor add(const at::Tensor& y, const at::Tensor& x, const OptionalTensor& A,
               const OptionalTensor& B, const OptionalTensor& lora_A, const OptionalTensor& lora_B,
               double scaling, double dropout_p, bool training) {
  const c10::impl::ExcludeDispatchKeyGuard guard(
      at::autocast::get_autocast_dispatch_key_from_device_type(kDevice));
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(kDevice);
  return ops::add(y, at::autocast::cached_cast(dtype, x, kDevice), A, B, lora_A, lora_B, scaling,
                  dropout_p, training);
}

/// The other operators run as if autocast were off: their own products would be cast otherwise.
void leave_autocast(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard guard(c10::autocast_dispatch_keyset);
  op.callBoxed(stack);
}

void register_others(torch::Library& m) {
  for (const char* name :
       {"linear_forward", "linear_backward", "linear_group_forward", "linear_group_backward",
        "add_forward", "add_backward", "delta_weight", "merge_", "dropout"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&leave_autocast>());
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(gralora, AutocastCPU, m) {
  register_others(m);
  m.impl("linear", TORCH_FN(linear<c10::kCPU>));
  m.impl("linear_group", TORCH_FN(linear_group<c10::kCPU>));
  m.impl("add", TORCH_FN(add<c10::kCPU>));
}

TORCH_LIBRARY_IMPL(gralora, AutocastCUDA, m) {
  register_others(m);
  m.impl("linear", TORCH_FN(linear<c10::kCUDA>));
  m.impl("linear_group", TORCH_FN(linear_group<c10::kCUDA>));
  m.impl("add", TORCH_FN(add<c10::kCUDA>));
}

}  // namespace gralora::autograd

#include "ops/operators.h"

#include <ATen/core/dispatch/Dispatcher.h>

namespace gralora::ops {
namespace {

/// The dispatcher's handle of an operator with the signature of `Function`.
template <class Function>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}

}  // namespace

Forward linear_forward(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                       const OptionalTensor& A, const OptionalTensor& B,
                       const OptionalTensor& lora_A, const OptionalTensor& lora_B,
                       const OptionalTensor& rng_state, double scaling, double dropout_p) {
  static const auto op = find<decltype(linear_forward)>("gralora::linear_forward");
  return op.call(x, weight, bias, A, B, lora_A, lora_B, rng_state, scaling, dropout_p);
}

LinearGradients linear_backward(const at::Tensor& dy, const OptionalTensor& x,
                                const at::Tensor& weight, const OptionalTensor& A,
                                const OptionalTensor& B, const OptionalTensor& lora_A,
                                const OptionalTensor& lora_B, const OptionalTensor& H,
                                const OptionalTensor& lora_H, const OptionalTensor& rng_state,
                                double scaling, double dropout_p, std::array<bool, 7> output_mask) {
  static const auto op = find<decltype(linear_backward)>("gralora::linear_backward");
  return op.call(dy, x, weight, A, B, lora_A, lora_B, H, lora_H, rng_state, scaling, dropout_p,
                 output_mask);
}

GroupForward linear_group_forward(const at::Tensor& x, at::TensorList weights,
                                  const c10::List<OptionalTensor>& biases, at::TensorList A,
                                  at::TensorList B, double scaling) {
  static const auto op = find<decltype(linear_group_forward)>("gralora::linear_group_forward");
  return op.call(x, weights, biases, A, B, scaling);
}

GroupGradients linear_group_backward(const c10::List<OptionalTensor>& dy, const OptionalTensor& x,
                                     at::TensorList weights, at::TensorList A, at::TensorList B,
                                     const OptionalTensor& H, double scaling, bool wants_dx,
                                     GroupMask wants_dA, GroupMask wants_dB) {
  static const auto op = find<decltype(linear_group_backward)>("gralora::linear_group_backward");
  return op.call(dy, x, weights, A, B, H, scaling, wants_dx, wants_dA, wants_dB);
}

std::vector<at::Tensor> linear_group(const at::Tensor& x, at::TensorList weights,
                                     const c10::List<OptionalTensor>& biases, at::TensorList A,
                                     at::TensorList B, double scaling) {
  static const auto op = find<decltype(linear_group)>("gralora::linear_group");
  return op.call(x, weights, biases, A, B, scaling);
}

Forward add_forward(const at::Tensor& y, const at::Tensor& x, const OptionalTensor& A,
                    const OptionalTensor& B, const OptionalTensor& lora_A,
                    const OptionalTensor& lora_B, const OptionalTensor& rng_state, double scaling,
                    double dropout_p) {
  static const auto op = find<decltype(add_forward)>("gralora::add_forward");
  return op.call(y, x, A, B, lora_A, lora_B, rng_state, scaling, dropout_p);
}

AddGradients add_backward(const at::Tensor& dy, const OptionalTensor& x, const OptionalTensor& A,
                          const OptionalTensor& B, const OptionalTensor& lora_A,
                          const OptionalTensor& lora_B, const OptionalTensor& H,
                          const OptionalTensor& lora_H, const OptionalTensor& rng_state,
                          double scaling, double dropout_p, std::array<bool, 5> output_mask) {
  static const auto op = find<decltype(add_backward)>("gralora::add_backward");
  return op.call(dy, x, A, B, lora_A, lora_B, H, lora_H, rng_state, scaling, dropout_p,
                 output_mask);
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                  const OptionalTensor& A, const OptionalTensor& B, const OptionalTensor& lora_A,
                  const OptionalTensor& lora_B, double scaling, double dropout_p, bool training) {
  static const auto op = find<decltype(linear)>("gralora::linear");
  return op.call(x, weight, bias, A, B, lora_A, lora_B, scaling, dropout_p, training);
}

at::Tensor add(const at::Tensor& y, const at::Tensor& x, const OptionalTensor& A,
               const OptionalTensor& B, const OptionalTensor& lora_A, const OptionalTensor& lora_B,
               double scaling, double dropout_p, bool training) {
  static const auto op = find<decltype(add)>("gralora::add");
  return op.call(y, x, A, B, lora_A, lora_B, scaling, dropout_p, training);
}

at::Tensor delta_weight(const OptionalTensor& A, const OptionalTensor& B,
                        const OptionalTensor& lora_A, const OptionalTensor& lora_B,
                        double scaling) {
  static const auto op = find<decltype(delta_weight)>("gralora::delta_weight");
  return op.call(A, B, lora_A, lora_B, scaling);
}

void merge_(at::Tensor& weight, const OptionalTensor& A, const OptionalTensor& B,
            const OptionalTensor& lora_A, const OptionalTensor& lora_B, double scaling,
            double sign) {
  static const auto op =
      find<void(at::Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                const OptionalTensor&, double, double)>("gralora::merge_");
  op.call(weight, A, B, lora_A, lora_B, scaling, sign);
}

at::Tensor dropout(const at::Tensor& x, const at::Tensor& rng_state, double p) {
  static const auto op = find<decltype(dropout)>("gralora::dropout");
  return op.call(x, rng_state, p);
}

}  // namespace gralora::ops

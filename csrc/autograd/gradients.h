// What the derivatives of linear and add share.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <initializer_list>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "autograd/optional.h"

namespace gralora::autograd {

/// H and lora_H of a call, which a Function hands to its caller past autograd's own outputs: they
/// have no derivative, and wrapping them would cost as much as a small call's computation.
struct Latents {
  at::Tensor H, lora_H;
};

/// Which differentiable arguments of a call were given, one bit each, for wanted_gradients.
inline int64_t present_inputs(std::initializer_list<bool> present) {
  int64_t bits = 0, bit = 1;
  for (const bool given : present) {
    if (given) bits |= bit;
    bit <<= 1;
  }
  return bits;
}

/// The gradients that the engine asks for. It numbers only the tensors that were given, while a
/// mask has a place for each argument.
template <size_t kArguments>
std::array<bool, kArguments> wanted_gradients(torch::autograd::AutogradContext* ctx) {
  const int64_t present = ctx->saved_data["inputs"].toInt();
  std::array<bool, kArguments> mask{};
  size_t edge = 0;
  for (size_t i = 0; i < kArguments; ++i) {
    if (present >> i & 1) mask[i] = ctx->needs_input_grad(edge++);
  }
  return mask;
}

/// A node that raises when it is differentiated. Without it torch would warn about the backward
/// operators and return a wrong second derivative.
class SecondDerivative : public torch::autograd::Function<SecondDerivative> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& gradient,
                            at::TensorList /*sources*/, std::string op) {
    ctx->saved_data["op"] = std::move(op);
    return gradient.view_as(gradient);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list&) {
    C10_THROW_ERROR(
        NotImplementedError,
        c10::str("gralora::", ctx->saved_data["op"].toStringRef(),
                 ": double backward is not supported, but the gradient of a gradient was asked for "
                 "(create_graph=True); gralora.reference has derivatives of any order"));
  }
};

/// Ties the gradients of `op` to their sources through SecondDerivative, where any is recorded.
template <class Gradients, class... Sources>
Gradients refuse_second_derivative(const char* op, Gradients gradients,
                                   const Sources&... maybe_sources) {
  refuse_tangents(op, maybe_sources...);
  if (!is_recorded(maybe_sources...)) return gradients;
  std::vector<at::Tensor> sources;
  const auto add_source = [&](const OptionalTensor& source) {
    if (requires_grad(source)) sources.push_back(*source);
  };
  (add_source(maybe_sources), ...);
  const auto tie = [&](at::Tensor& gradient) {
    if (gradient.defined())
      gradient = SecondDerivative::apply(gradient, at::TensorList(sources), op);
  };
  std::apply([&](auto&... gradient) { (tie(gradient), ...); }, gradients);
  return gradients;
}

}  // namespace gralora::autograd

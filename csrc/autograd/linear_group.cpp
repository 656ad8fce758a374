// The derivative of linear_group_forward: what x and the factors get from all outputs at once.
//
// Saved for backward as in autograd/linear.cpp. The frozen layers get no gradients; a weight that
// wants one is refused.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>

#include "autograd/gradients.h"
#include "ops/check.h"
#include "ops/operators.h"
#include "ops/saved_latents.h"

namespace gralora::autograd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// What a call has besides x and the factors, and what it makes besides its outputs. Not among
/// autograd's own arguments.
struct GroupCall {
  at::TensorList weights;
  const c10::List<OptionalTensor>& biases;
  double scaling;
  at::Tensor H;
};

bool any_requires_grad(at::TensorList tensors) {
  return std::any_of(tensors.begin(), tensors.end(),
                     [](const at::Tensor& tensor) { return requires_grad(tensor); });
}

bool any_has_tangent(at::TensorList tensors) {
  return std::any_of(tensors.begin(), tensors.end(),
                     [](const at::Tensor& tensor) { return has_tangent(tensor); });
}

class LinearGroupFunction : public torch::autograd::Function<LinearGroupFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, at::TensorList A,
                               at::TensorList B, GroupCall* call) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [ys, H] = ops::linear_group_forward(x, call->weights, call->biases, A, B, call->scaling);
    const bool saves = ops::saves_latents();
    const bool needs_x = any_requires_grad(A) || (!saves && any_requires_grad(B));
    variable_list saved{keep_if(needs_x, x), keep_if(saves && any_requires_grad(B), H)};
    for (const at::TensorList& list : {call->weights, A, B}) {
      saved.insert(saved.end(), list.begin(), list.end());
    }
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["scaling"] = call->scaling;
    ctx->set_materialize_grads(false);
    call->H = std::move(H);
    return ys;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const size_t count = gradients.size();
    variable_list result(2 + 2 * count);
    c10::List<OptionalTensor> dy;
    bool any = false;
    for (const at::Tensor& gradient : gradients) {
      dy.push_back(optional(gradient));
      any |= gradient.defined();
    }
    if (!any) return result;
    const auto saved = ctx->get_saved_variables();
    const at::TensorList all(saved);
    ops::GroupMask wants_dA{}, wants_dB{};
    for (size_t i = 0; i < count; ++i) {
      wants_dA[i] = gradients[i].defined() && ctx->needs_input_grad(1 + i);
      wants_dB[i] = gradients[i].defined() && ctx->needs_input_grad(1 + count + i);
    }
    auto [dx, dA, dB] = ops::linear_group_backward(
        dy, optional(saved[0]), all.slice(2, count), all.slice(2 + count, count),
        all.slice(2 + 2 * count, count), optional(saved[1]), ctx->saved_data["scaling"].toDouble(),
        ctx->needs_input_grad(0), wants_dA, wants_dB);
    result[0] = std::move(dx);
    for (size_t i = 0, a = 0, b = 0; i < count; ++i) {
      if (wants_dA[i]) result[1 + i] = std::move(dA[a++]);
      if (wants_dB[i]) result[1 + count + i] = std::move(dB[b++]);
    }
    return result;
  }
};

ops::GroupForward linear_group_forward(const at::Tensor& x, at::TensorList weights,
                                       const c10::List<OptionalTensor>& biases, at::TensorList A,
                                       at::TensorList B, double scaling) {
  check_no_function_transform("linear_group");
  TORCH_CHECK_NOT_IMPLEMENTED(
      !has_tangent(x) && !any_has_tangent(weights) && !any_has_tangent(A) && !any_has_tangent(B) &&
          std::none_of(biases.begin(), biases.end(),
                       [](const OptionalTensor& bias) { return has_tangent(bias); }),
      "gralora::linear_group: forward-mode differentiation is not supported, got a tensor with a "
      "tangent; use reverse mode, or gralora.reference");
  const bool recorded = at::GradMode::is_enabled() &&
                        (requires_grad(x) || any_requires_grad(A) || any_requires_grad(B));
  if (at::GradMode::is_enabled()) {
    for (size_t i = 0; i < weights.size(); ++i) {
      const bool bias_wants = i < biases.size() && requires_grad(biases.get(i));
      TORCH_CHECK_VALUE(!requires_grad(weights[i]) && !bias_wants,
                        "gralora::linear_group: weights and biases must be frozen, got one of "
                        "layer ",
                        i, " that requires a gradient (gralora::linear has it)");
    }
  }
  if (!recorded) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return ops::linear_group_forward(x, weights, biases, A, B, scaling);
  }
  GroupCall call{weights, biases, scaling, {}};
  variable_list ys = LinearGroupFunction::apply(x, A, B, &call);
  return {std::move(ys), std::move(call.H)};
}

ops::GroupGradients linear_group_backward(const c10::List<OptionalTensor>& dy,
                                          const OptionalTensor& x, at::TensorList weights,
                                          at::TensorList A, at::TensorList B,
                                          const OptionalTensor& H, double scaling, bool wants_dx,
                                          ops::GroupMask wants_dA, ops::GroupMask wants_dB) {
  ops::GroupGradients gradients;
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    gradients =
        ops::linear_group_backward(dy, x, weights, A, B, H, scaling, wants_dx, wants_dA, wants_dB);
  }
  if (!at::GradMode::is_enabled()) return gradients;
  std::vector<at::Tensor> sources;
  const auto add_source = [&](const at::Tensor& tensor) {
    if (requires_grad(tensor)) sources.push_back(tensor);
  };
  for (const OptionalTensor gradient : dy) add_source(or_undefined(gradient));
  add_source(or_undefined(x));
  for (const at::TensorList& list : {A, B}) std::for_each(list.begin(), list.end(), add_source);
  if (sources.empty()) return gradients;
  const auto tie = [&](at::Tensor& gradient) {
    if (!gradient.defined()) return;
    gradient = SecondDerivative::apply(gradient, at::TensorList(sources), "linear_group");
  };
  auto& [dx, dA, dB] = gradients;
  tie(dx);
  for (auto* list : {&dA, &dB}) std::for_each(list->begin(), list->end(), tie);
  return gradients;
}

}  // namespace

TORCH_LIBRARY_IMPL(gralora, Autograd, m) {
  m.impl("linear_group_forward", TORCH_FN(linear_group_forward));
  m.impl("linear_group_backward", TORCH_FN(linear_group_backward));
}

}  // namespace gralora::autograd

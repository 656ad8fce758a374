// The derivative of linear_forward, and the refusal of a second one.
//
// Saved for backward: x, H and lora_H where a gradient needs them (or x alone, which the latents
// are made of: ops/saved_latents.h), the parameters, the dropout key; nothing of T x M and no copy
// of x. Sizes and pointers are never read here, so that the same code runs under torch.compile's
// symbolic shapes.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "autograd/gradients.h"
#include "ops/check.h"
#include "ops/operators.h"
#include "ops/saved_latents.h"

namespace gralora::autograd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class LinearFunction : public torch::autograd::Function<LinearFunction> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const OptionalTensor& bias, const OptionalTensor& A,
                            const OptionalTensor& B, const OptionalTensor& lora_A,
                            const OptionalTensor& lora_B, const OptionalTensor& rng_state,
                            double scaling, double dropout_p, Latents& latents) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [y, H, lora_H] =
        ops::linear_forward(x, weight, bias, A, B, lora_A, lora_B, rng_state, scaling, dropout_p);
    const bool saves = ops::saves_latents();
    const bool needs_x = weight.requires_grad() || requires_grad(A) || requires_grad(lora_A) ||
                         (!saves && (requires_grad(B) || requires_grad(lora_B)));
    ctx->save_for_backward(
        {keep_if(needs_x, x), weight, or_undefined(A), or_undefined(B), or_undefined(lora_A),
         or_undefined(lora_B), keep_if(saves && requires_grad(B), H),
         keep_if(saves && requires_grad(lora_B), lora_H), or_undefined(rng_state)});
    ctx->saved_data["scaling"] = scaling;
    ctx->saved_data["dropout_p"] = dropout_p;
    ctx->saved_data["inputs"] =
        present_inputs({true, true, bias.has_value(), A.has_value(), B.has_value(),
                        lora_A.has_value(), lora_B.has_value()});
    ctx->set_materialize_grads(false);
    latents = {std::move(H), std::move(lora_H)};
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    variable_list result(11);
    if (!gradients[0].defined()) return result;
    const auto saved = ctx->get_saved_variables();
    const auto mask = wanted_gradients<7>(ctx);
    std::tie(result[0], result[1], result[2], result[3], result[4], result[5], result[6]) =
        ops::linear_backward(gradients[0], optional(saved[0]), saved[1], optional(saved[2]),
                             optional(saved[3]), optional(saved[4]), optional(saved[5]),
                             optional(saved[6]), optional(saved[7]), optional(saved[8]),
                             ctx->saved_data["scaling"].toDouble(),
                             ctx->saved_data["dropout_p"].toDouble(), mask);
    return result;
  }
};

ops::Forward linear_forward(const at::Tensor& x, const at::Tensor& weight,
                            const OptionalTensor& bias, const OptionalTensor& A,
                            const OptionalTensor& B, const OptionalTensor& lora_A,
                            const OptionalTensor& lora_B, const OptionalTensor& rng_state,
                            double scaling, double dropout_p) {
  check_no_function_transform("linear");
  refuse_tangents("linear", x, weight, bias, A, B, lora_A, lora_B);
  if (!is_recorded(x, weight, bias, A, B, lora_A, lora_B)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return ops::linear_forward(x, weight, bias, A, B, lora_A, lora_B, rng_state, scaling,
                               dropout_p);
  }
  Latents latents;
  at::Tensor y = LinearFunction::apply(x, weight, bias, A, B, lora_A, lora_B, rng_state, scaling,
                                       dropout_p, latents);
  return {std::move(y), std::move(latents.H), std::move(latents.lora_H)};
}

ops::LinearGradients linear_backward(const at::Tensor& dy, const OptionalTensor& x,
                                     const at::Tensor& weight, const OptionalTensor& A,
                                     const OptionalTensor& B, const OptionalTensor& lora_A,
                                     const OptionalTensor& lora_B, const OptionalTensor& H,
                                     const OptionalTensor& lora_H, const OptionalTensor& rng_state,
                                     double scaling, double dropout_p,
                                     std::array<bool, 7> output_mask) {
  ops::LinearGradients gradients;
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    gradients = ops::linear_backward(dy, x, weight, A, B, lora_A, lora_B, H, lora_H, rng_state,
                                     scaling, dropout_p, output_mask);
  }
  return refuse_second_derivative("linear", std::move(gradients), dy, x, weight, A, B, lora_A,
                                  lora_B);
}

}  // namespace

TORCH_LIBRARY_IMPL(gralora, Autograd, m) {
  m.impl("linear_forward", TORCH_FN(linear_forward));
  m.impl("linear_backward", TORCH_FN(linear_backward));
}

}  // namespace gralora::autograd

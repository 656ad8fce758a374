// The derivative of add_forward, and the refusal of a second one. y's gradient is the output's own;
// the adapter's are computed in x's dtype. See autograd/linear.cpp for what is saved and why.
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

class AddFunction : public torch::autograd::Function<AddFunction> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& y, const at::Tensor& x,
                            const OptionalTensor& A, const OptionalTensor& B,
                            const OptionalTensor& lora_A, const OptionalTensor& lora_B,
                            const OptionalTensor& rng_state, double scaling, double dropout_p,
                            Latents& latents) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [out, H, lora_H] =
        ops::add_forward(y, x, A, B, lora_A, lora_B, rng_state, scaling, dropout_p);
    const bool saves = ops::saves_latents();
    const bool needs_x = requires_grad(A) || requires_grad(lora_A) ||
                         (!saves && (requires_grad(B) || requires_grad(lora_B)));
    ctx->save_for_backward(
        {keep_if(needs_x, x), or_undefined(A), or_undefined(B), or_undefined(lora_A),
         or_undefined(lora_B), keep_if(saves && requires_grad(B), H),
         keep_if(saves && requires_grad(lora_B), lora_H), or_undefined(rng_state)});
    ctx->saved_data["scaling"] = scaling;
    ctx->saved_data["dropout_p"] = dropout_p;
    ctx->saved_data["compute"] = static_cast<int64_t>(x.scalar_type());
    ctx->saved_data["inputs"] = present_inputs(
        {true, true, A.has_value(), B.has_value(), lora_A.has_value(), lora_B.has_value()});
    ctx->set_materialize_grads(false);
    latents = {std::move(H), std::move(lora_H)};
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    variable_list result(10);
    const at::Tensor& dy = gradients[0];
    if (!dy.defined()) return result;
    const auto mask = wanted_gradients<6>(ctx);
    if (mask[0]) result[0] = dy;
    if (!(mask[1] || mask[2] || mask[3] || mask[4] || mask[5])) return result;
    const auto saved = ctx->get_saved_variables();
    const auto compute = static_cast<at::ScalarType>(ctx->saved_data["compute"].toInt());
    std::tie(result[1], result[2], result[3], result[4], result[5]) = ops::add_backward(
        dy.to(compute), optional(saved[0]), optional(saved[1]), optional(saved[2]),
        optional(saved[3]), optional(saved[4]), optional(saved[5]), optional(saved[6]),
        optional(saved[7]), ctx->saved_data["scaling"].toDouble(),
        ctx->saved_data["dropout_p"].toDouble(), {mask[1], mask[2], mask[3], mask[4], mask[5]});
    return result;
  }
};

ops::Forward add_forward(const at::Tensor& y, const at::Tensor& x, const OptionalTensor& A,
                         const OptionalTensor& B, const OptionalTensor& lora_A,
                         const OptionalTensor& lora_B, const OptionalTensor& rng_state,
                         double scaling, double dropout_p) {
  check_no_function_transform("add");
  refuse_tangents("add", y, x, A, B, lora_A, lora_B);
  if (!is_recorded(y, x, A, B, lora_A, lora_B)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return ops::add_forward(y, x, A, B, lora_A, lora_B, rng_state, scaling, dropout_p);
  }
  Latents latents;
  at::Tensor out =
      AddFunction::apply(y, x, A, B, lora_A, lora_B, rng_state, scaling, dropout_p, latents);
  return {std::move(out), std::move(latents.H), std::move(latents.lora_H)};
}

ops::AddGradients add_backward(const at::Tensor& dy, const OptionalTensor& x,
                               const OptionalTensor& A, const OptionalTensor& B,
                               const OptionalTensor& lora_A, const OptionalTensor& lora_B,
                               const OptionalTensor& H, const OptionalTensor& lora_H,
                               const OptionalTensor& rng_state, double scaling, double dropout_p,
                               std::array<bool, 5> output_mask) {
  ops::AddGradients gradients;
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    gradients = ops::add_backward(dy, x, A, B, lora_A, lora_B, H, lora_H, rng_state, scaling,
                                  dropout_p, output_mask);
  }
  return refuse_second_derivative("add", std::move(gradients), dy, x, A, B, lora_A, lora_B);
}

}  // namespace

TORCH_LIBRARY_IMPL(gralora, Autograd, m) {
  m.impl("add_forward", TORCH_FN(add_forward));
  m.impl("add_backward", TORCH_FN(add_backward));
}

}  // namespace gralora::autograd

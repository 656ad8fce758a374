#include "aten/backward.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>

namespace gralora::aten {
namespace {

/// dB and dlora_B, which need dy and the latents of the forward pass.
TokenSums sum_outputs(AdapterGradients& gradients, const AdapterMask& mask, const Adapter& adapter,
                      const Sizes& sizes, const at::Tensor& dy_rows, const Latents& forward) {
  TokenSums sums;
  if (mask.dB) {
    sums[1] = {.sum = &gradients.dB,
               .left = forward.grid,
               .right = split_blocks(dy_rows, sizes.k_out),
               .dtype = adapter.B.scalar_type(),
               .latent_is_left = true};
  }
  if (mask.dlora_B) {
    sums[3] = {.sum = &gradients.dlora_B,
               .left = dy_rows.unsqueeze(0),
               .right = forward.plain.unsqueeze(0),
               .dtype = adapter.lora_B.scalar_type()};
  }
  return sums;
}

/// dA and dlora_A, which need the latents of dy: add_latents().
TokenSums sum_inputs(AdapterGradients& gradients, const AdapterMask& mask, const Adapter& adapter,
                     const Sizes& sizes, const AdapterInput& input) {
  TokenSums sums;
  if (mask.dA) {
    sums[0] = {.sum = &gradients.dA,
               .left = split_blocks(input.rows(), sizes.k_in),
               .right = {},
               .dtype = adapter.A.scalar_type(),
               .of_input = true};
  }
  if (mask.dlora_A) {
    sums[2] = {.sum = &gradients.dlora_A,
               .left = {},
               .right = input.rows().unsqueeze(0),
               .dtype = adapter.lora_A.scalar_type(),
               .latent_is_left = true,
               .of_input = true};
  }
  return sums;
}

void add_latents(TokenSums& input_sums, const Latents& latents) {
  if (input_sums[0].is_asked_for()) input_sums[0].right = latents.grid;
  if (input_sums[2].is_asked_for()) input_sums[2].left = latents.plain.unsqueeze(0);
}

/// All four.
TokenSums join(const TokenSums& output_sums, const TokenSums& input_sums) {
  return {input_sums[0], output_sums[1], input_sums[2], output_sums[3]};
}

}  // namespace

AdapterGradients adapter_backward(const char* op, const Adapter& adapter, const AdapterShape& shape,
                                  const at::Tensor& dy_rows, const OptionalTensor& x,
                                  const OptionalTensor& H, const OptionalTensor& lora_H,
                                  const OptionalTensor& rng_state, double scaling, double dropout_p,
                                  AdapterMask mask, const OptionalTensor& weight,
                                  const Steps& steps) {
  mask.dA &= adapter.has_grid();
  mask.dB &= adapter.has_grid();
  mask.dlora_A &= adapter.has_plain();
  mask.dlora_B &= adapter.has_plain();
  // Where they were not saved, the forward pass's latents are made again.
  const bool projects_again = (mask.dB && !H) || (mask.dlora_B && !lora_H);
  const bool needs_x = mask.dA || mask.dlora_A || projects_again;
  check_saved(op, "x", x, needs_x);

  const Sizes sizes(shape);
  const ComputeFactors factors(adapter, dy_rows.scalar_type(), steps);
  const AdapterInput input(needs_x ? as_rows(*x, sizes.N) : at::Tensor(), {rng_state, dropout_p});
  AdapterGradients gradients;
  const Latents forward = projects_again
                              ? project_input(input, factors, sizes, scaling, steps)
                              : Latents{H.value_or(at::Tensor()), lora_H.value_or(at::Tensor())};
  TokenSums output_sums = sum_outputs(gradients, mask, adapter, sizes, dy_rows, forward);
  TokenSums input_sums = sum_inputs(gradients, mask, adapter, sizes, input);
  Latents latents;
  // The base product may take sums along, which are then done; none of an input that is dropped.
  const auto multiply = [&](const auto& product) {
    TokenSums apart;
    TokenSums& along = input.dropout().drops() ? apart : input_sums;
    TokenSums sums = join(output_sums, along);
    if (!product(sums)) return false;
    if (!any_asked_for(sums)) output_sums = along = {};
    return true;
  };
  bool has_dx = mask.dx && weight && multiply([&](TokenSums& sums) {
                  return project_and_expand_input(gradients.dx, {{{dy_rows, *weight}}, {}}, latents,
                                                  input, factors, scaling, sums, steps);
                });
  if (!has_dx && (mask.dx || mask.dA || mask.dlora_A)) {
    latents = project_gradient(dy_rows, factors, sizes, scaling, output_sums, steps);
  }
  add_latents(input_sums, latents);
  if (!has_dx && mask.dx) {
    gradients.dx = at::empty({dy_rows.size(0), sizes.N}, dy_rows.options());
    has_dx = weight && multiply([&](TokenSums& sums) {
               return expand_input_with_base(gradients.dx, {{{dy_rows, *weight}}, {}}, latents,
                                             factors, input.dropout(), sums, steps);
             });
  }
  const auto expand = [&] {
    if (!mask.dx || has_dx) return;
    expand_input(gradients.dx, latents, factors, input, input_sums, steps);
    // At once, while the cache has what was written.
    if (weight) gradients.dx.addmm_(dy_rows, *weight);
  };
  const auto sum = [&] {
    steps.sum_over_tokens(join(output_sums, input_sums), input);
    output_sums = input_sums = {};
  };
  // Where the library makes the base product, dx first with few tokens: the sums that need G may go
  // along with it, or begin while the base product ends. The sums first with many: what the
  // projection has read of dy last is still in the cache.
  if (dy_rows.size(0) <= kShortCall) {
    expand();
    sum();
  } else {
    sum();
    expand();
  }
  if (mask.dlora_A) gradients.dlora_A = gradients.dlora_A.squeeze(0);
  if (mask.dlora_B) gradients.dlora_B = gradients.dlora_B.squeeze(0);
  return gradients;
}

}  // namespace gralora::aten

// linear_forward and linear_backward as compositions of steps (aten/steps.h): library calls on
// every device, with CUDA's kernels for the adapter's steps there. Built from aten/blocks.h.
#include "aten/linear.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <torch/library.h>

#include "aten/backward.h"
#include "aten/blocks.h"
#include "aten/device_notice.h"

namespace gralora::aten {
ops::Forward linear_forward(const Steps& steps, const at::Tensor& x, const at::Tensor& weight,
                            const OptionalTensor& bias, const OptionalTensor& A,
                            const OptionalTensor& B, const OptionalTensor& lora_A,
                            const OptionalTensor& lora_B, const OptionalTensor& rng_state,
                            double scaling, double dropout_p) {
  const Adapter adapter(A, B, lora_A, lora_B);
  const AdapterShape shape = check_adapter("linear", adapter);
  check_input("linear", x, adapter, shape);
  check_base("linear", "x", x, weight, bias, shape);
  check_probability("linear", dropout_p);
  if (rng_state) check_rng_state("linear", *rng_state, x);
  notice_device(x);

  const Sizes sizes(shape);
  const ComputeFactors factors(adapter, x.scalar_type(), steps);
  const at::Tensor rows = as_rows(x, sizes.N);
  const AdapterInput input(rows, {rng_state, dropout_p});
  const BaseProduct base{{{rows, weight.t()}}, bias};

  at::Tensor y = at::empty(with_width(x.sizes(), sizes.M), x.options());
  at::Tensor y_rows = y.view({rows.size(0), sizes.M});
  Latents latents;
  if (project_and_expand_output(y_rows, base, latents, input, factors, scaling, steps)) {
    return {y, latents.grid, latents.plain};
  }
  latents = project_input(input, factors, sizes, scaling, steps);
  expand_output_and_base(y_rows, base, latents, factors, steps);
  return {y, latents.grid, latents.plain};
}

ops::LinearGradients linear_backward(const Steps& steps, const at::Tensor& dy,
                                     const OptionalTensor& x, const at::Tensor& weight,
                                     const OptionalTensor& A, const OptionalTensor& B,
                                     const OptionalTensor& lora_A, const OptionalTensor& lora_B,
                                     const OptionalTensor& H, const OptionalTensor& lora_H,
                                     const OptionalTensor& rng_state, double scaling,
                                     double dropout_p, std::array<bool, 7> output_mask) {
  const auto [wants_dx, wants_dweight, wants_dbias, wants_dA, wants_dB, wants_dlora_A,
              wants_dlora_B] = output_mask;
  const Adapter adapter(A, B, lora_A, lora_B);
  const AdapterShape shape = check_adapter("linear_backward", adapter);
  check_output_gradient("linear_backward", dy, adapter, shape);
  check_base("linear_backward", "dy", dy, weight, std::nullopt, shape);
  check_saved("linear_backward", "x", x, wants_dweight);
  check_saved_for_backward("linear_backward", dy, x, H, lora_H, rng_state, shape);
  notice_device(dy);

  const at::Tensor dy_rows = as_rows(dy, shape.M.expect_int());
  const AdapterGradients adapted = adapter_backward(
      "linear_backward", adapter, shape, dy_rows, x, H, lora_H, rng_state, scaling, dropout_p,
      {wants_dx, wants_dA, wants_dB, wants_dlora_A, wants_dlora_B}, weight, steps);
  at::Tensor dx, dweight, dbias;
  if (wants_dx) dx = adapted.dx.view(with_width(dy.sizes(), weight.size(1)));
  if (wants_dweight) dweight = at::mm(dy_rows.t(), as_rows(*x, weight.size(1)));
  if (wants_dbias) dbias = dy_rows.sum(0);
  return {dx, dweight, dbias, adapted.dA, adapted.dB, adapted.dlora_A, adapted.dlora_B};
}

TORCH_LIBRARY_IMPL(gralora, CompositeExplicitAutograd, m) {
  m.impl("linear_forward", TORCH_FN((WithSteps<linear_forward, kLibrarySteps>::call)));
  m.impl("linear_backward", TORCH_FN((WithSteps<linear_backward, kLibrarySteps>::call)));
}

}  // namespace gralora::aten

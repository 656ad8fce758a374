// add_forward and add_backward as compositions of steps (aten/steps.h), built from aten/blocks.h.
// The adapter computes in x's dtype; the sum has y's, which a quantised base layer may choose
// differently.
#include "aten/add.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "aten/backward.h"
#include "aten/blocks.h"
#include "aten/device_notice.h"

namespace gralora::aten {

ops::Forward add_forward(const Steps& steps, const at::Tensor& y, const at::Tensor& x,
                         const OptionalTensor& A, const OptionalTensor& B,
                         const OptionalTensor& lora_A, const OptionalTensor& lora_B,
                         const OptionalTensor& rng_state, double scaling, double dropout_p) {
  const Adapter adapter(A, B, lora_A, lora_B);
  const AdapterShape shape = check_adapter("add", adapter);
  check_input("add", x, adapter, shape);
  check_rows("add", "y", y, "x", x, shape.M);
  check_probability("add", dropout_p);
  if (rng_state) check_rng_state("add", *rng_state, x);
  notice_device(x);

  const Sizes sizes(shape);
  const ComputeFactors factors(adapter, x.scalar_type(), steps);
  const Latents latents = project_input(AdapterInput(as_rows(x, sizes.N), {rng_state, dropout_p}),
                                        factors, sizes, scaling, steps);
  at::Tensor out = at::empty(y.sizes(), y.options());
  at::Tensor out_rows = out.view({out.numel() / sizes.M, sizes.M});
  if (y.scalar_type() == x.scalar_type()) {
    out.copy_(y);
    expand_output(out_rows, latents, factors, /*overwrite=*/false, steps);
  } else {
    at::Tensor delta = at::empty(out_rows.sizes(), x.options());
    expand_output(delta, latents, factors, /*overwrite=*/true, steps);
    out.copy_(delta.view(y.sizes()).add(y));
  }
  return {out, latents.grid, latents.plain};
}

ops::AddGradients add_backward(const Steps& steps, const at::Tensor& dy, const OptionalTensor& x,
                               const OptionalTensor& A, const OptionalTensor& B,
                               const OptionalTensor& lora_A, const OptionalTensor& lora_B,
                               const OptionalTensor& H, const OptionalTensor& lora_H,
                               const OptionalTensor& rng_state, double scaling, double dropout_p,
                               std::array<bool, 5> output_mask) {
  const auto [wants_dx, wants_dA, wants_dB, wants_dlora_A, wants_dlora_B] = output_mask;
  const Adapter adapter(A, B, lora_A, lora_B);
  const AdapterShape shape = check_adapter("add_backward", adapter);
  check_output_gradient("add_backward", dy, adapter, shape);
  check_saved_for_backward("add_backward", dy, x, H, lora_H, rng_state, shape);
  notice_device(dy);

  const AdapterGradients adapted = adapter_backward(
      "add_backward", adapter, shape, as_rows(dy, shape.M.expect_int()), x, H, lora_H, rng_state,
      scaling, dropout_p, {wants_dx, wants_dA, wants_dB, wants_dlora_A, wants_dlora_B},
      /*weight=*/std::nullopt, steps);
  const at::Tensor dx =
      wants_dx ? adapted.dx.view(with_width(dy.sizes(), shape.N.expect_int())) : at::Tensor();
  return {dx, adapted.dA, adapted.dB, adapted.dlora_A, adapted.dlora_B};
}

TORCH_LIBRARY_IMPL(gralora, CompositeExplicitAutograd, m) {
  m.impl("add_forward", TORCH_FN((WithSteps<add_forward, kLibrarySteps>::call)));
  m.impl("add_backward", TORCH_FN((WithSteps<add_backward, kLibrarySteps>::call)));
}

}  // namespace gralora::aten

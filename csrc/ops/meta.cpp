// Meta kernels: the shapes, dtypes and strides of every operator's results, from symbolic sizes.
// FakeTensor, torch.compile and meta-device initialisation run these instead of a kernel.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include <array>

#include "ops/check.h"
#include "ops/delta_dtype.h"
#include "ops/latent.h"
#include "ops/linear_group.h"
#include "ops/operators.h"

namespace gralora::ops {
namespace {

/// An empty tensor with the leading sizes of `x` and `width` as its last.
at::Tensor empty_rows(const at::Tensor& x, const c10::SymInt& width, at::ScalarType dtype) {
  auto sizes = x.sym_sizes().vec();
  sizes.back() = width;
  return at::empty_symint(sizes, x.options().dtype(dtype));
}

at::Tensor empty_like_if(bool wanted, const at::Tensor& parameter) {
  if (!wanted) return {};
  return at::empty_symint(parameter.sym_sizes(), parameter.options());
}

std::tuple<at::Tensor, at::Tensor> empty_latents(const at::Tensor& x, const Adapter& adapter,
                                                 const AdapterShape& shape) {
  const c10::SymInt T = count_tokens(x);
  at::Tensor H = at::empty({0}, x.options());
  at::Tensor lora_H = at::empty({0}, x.options());
  if (adapter.has_grid()) {
    const c10::SymInt r = shape.k_in * shape.s;
    const c10::SymInt pitch = latent_pitch(r);
    H = at::empty_strided_symint({shape.k_out, T, r}, {T * pitch, pitch, 1}, x.options());
  }
  if (adapter.has_plain()) {
    lora_H = at::empty_strided_symint({T, shape.r0}, {latent_pitch(shape.r0), 1}, x.options());
  }
  return {H, lora_H};
}

Forward linear_forward_meta(const at::Tensor& x, const at::Tensor& weight,
                            const OptionalTensor& bias, const OptionalTensor& A,
                            const OptionalTensor& B, const OptionalTensor& lora_A,
                            const OptionalTensor& lora_B, const OptionalTensor& rng_state, double,
                            double dropout_p) {
  const Adapter adapter(A, B, lora_A, lora_B);
  const AdapterShape shape = check_adapter("linear", adapter);
  check_input("linear", x, adapter, shape);
  check_base("linear", "x", x, weight, bias, shape);
  check_probability("linear", dropout_p);
  if (rng_state) check_rng_state("linear", *rng_state, x);
  auto [H, lora_H] = empty_latents(x, adapter, shape);
  return {empty_rows(x, shape.M, x.scalar_type()), H, lora_H};
}

LinearGradients linear_backward_meta(const at::Tensor& dy, const OptionalTensor& x,
                                     const at::Tensor& weight, const OptionalTensor& A,
                                     const OptionalTensor& B, const OptionalTensor& lora_A,
                                     const OptionalTensor& lora_B, const OptionalTensor& H,
                                     const OptionalTensor& lora_H, const OptionalTensor& rng_state,
                                     double, double, std::array<bool, 7> output_mask) {
  const Adapter adapter(A, B, lora_A, lora_B);
  const AdapterShape shape = check_adapter("linear_backward", adapter);
  check_output_gradient("linear_backward", dy, adapter, shape);
  check_base("linear_backward", "dy", dy, weight, std::nullopt, shape);
  check_saved_for_backward("linear_backward", dy, x, H, lora_H, rng_state, shape);
  return {output_mask[0] ? empty_rows(dy, shape.N, dy.scalar_type()) : at::Tensor(),
          output_mask[1] ? at::empty_symint({shape.M, shape.N}, dy.options()) : at::Tensor(),
          output_mask[2] ? at::empty_symint({shape.M}, dy.options()) : at::Tensor(),
          empty_like_if(output_mask[3] && adapter.has_grid(), adapter.A),
          empty_like_if(output_mask[4] && adapter.has_grid(), adapter.B),
          empty_like_if(output_mask[5] && adapter.has_plain(), adapter.lora_A),
          empty_like_if(output_mask[6] && adapter.has_plain(), adapter.lora_B)};
}

GroupForward linear_group_forward_meta(const at::Tensor& x, at::TensorList weights,
                                       const c10::List<OptionalTensor>& biases, at::TensorList A,
                                       at::TensorList B, double) {
  const std::vector<AdapterShape> shapes = check_group("linear_group", x, weights, biases, A, B);
  std::vector<at::Tensor> ys;
  AdapterShape together = shapes.front();
  together.k_out = 0;
  for (const AdapterShape& shape : shapes) {
    ys.push_back(empty_rows(x, shape.M, x.scalar_type()));
    together.k_out += shape.k_out;
  }
  const Adapter first(A[0], B[0], std::nullopt, std::nullopt);
  return {ys, std::get<0>(empty_latents(x, first, together))};
}

GroupGradients linear_group_backward_meta(const c10::List<OptionalTensor>& dy,
                                          const OptionalTensor& x, at::TensorList weights,
                                          at::TensorList A, at::TensorList B,
                                          const OptionalTensor& H, double, bool wants_dx,
                                          GroupMask wants_dA, GroupMask wants_dB) {
  const CheckedGradients checked =
      check_group_gradients(dy, x, weights, A, B, H, wants_dA, wants_dB);
  GroupGradients result;
  auto& [dx, dA, dB] = result;
  const at::Tensor& first_dy = checked.first_dy;
  if (wants_dx) dx = empty_rows(first_dy, checked.shapes[0].N, first_dy.scalar_type());
  for (size_t i = 0; i < weights.size(); ++i) {
    if (wants_dA[i]) dA.push_back(empty_like_if(true, A[i]));
    if (wants_dB[i]) dB.push_back(empty_like_if(true, B[i]));
  }
  return result;
}

Forward add_forward_meta(const at::Tensor& y, const at::Tensor& x, const OptionalTensor& A,
                         const OptionalTensor& B, const OptionalTensor& lora_A,
                         const OptionalTensor& lora_B, const OptionalTensor& rng_state, double,
                         double dropout_p) {
  const Adapter adapter(A, B, lora_A, lora_B);
  const AdapterShape shape = check_adapter("add", adapter);
  check_input("add", x, adapter, shape);
  check_rows("add", "y", y, "x", x, shape.M);
  check_probability("add", dropout_p);
  if (rng_state) check_rng_state("add", *rng_state, x);
  auto [H, lora_H] = empty_latents(x, adapter, shape);
  return {empty_rows(x, shape.M, y.scalar_type()), H, lora_H};
}

AddGradients add_backward_meta(const at::Tensor& dy, const OptionalTensor& x,
                               const OptionalTensor& A, const OptionalTensor& B,
                               const OptionalTensor& lora_A, const OptionalTensor& lora_B,
                               const OptionalTensor& H, const OptionalTensor& lora_H,
                               const OptionalTensor& rng_state, double, double,
                               std::array<bool, 5> output_mask) {
  const Adapter adapter(A, B, lora_A, lora_B);
  const AdapterShape shape = check_adapter("add_backward", adapter);
  check_output_gradient("add_backward", dy, adapter, shape);
  check_saved_for_backward("add_backward", dy, x, H, lora_H, rng_state, shape);
  return {output_mask[0] ? empty_rows(dy, shape.N, dy.scalar_type()) : at::Tensor(),
          empty_like_if(output_mask[1] && adapter.has_grid(), adapter.A),
          empty_like_if(output_mask[2] && adapter.has_grid(), adapter.B),
          empty_like_if(output_mask[3] && adapter.has_plain(), adapter.lora_A),
          empty_like_if(output_mask[4] && adapter.has_plain(), adapter.lora_B)};
}

at::Tensor delta_weight_meta(const OptionalTensor& A, const OptionalTensor& B,
                             const OptionalTensor& lora_A, const OptionalTensor& lora_B, double) {
  const Adapter adapter(A, B, lora_A, lora_B);
  const AdapterShape shape = check_adapter("delta_weight", adapter);
  const at::Tensor& factor = adapter.has_grid() ? adapter.A : adapter.lora_A;
  return at::empty_symint({shape.M, shape.N}, factor.options().dtype(delta_dtype(adapter)));
}

void merge_meta(at::Tensor& weight, const OptionalTensor& A, const OptionalTensor& B,
                const OptionalTensor& lora_A, const OptionalTensor& lora_B, double, double) {
  const Adapter adapter(A, B, lora_A, lora_B);
  check_merge_target("merge_", weight, adapter, check_adapter("merge_", adapter));
}

at::Tensor dropout_meta(const at::Tensor& x, const at::Tensor& rng_state, double p) {
  check_dropout_input(x);
  check_probability("dropout", p);
  check_rng_state("dropout", rng_state, x);
  return at::empty_symint(x.sym_sizes(), x.options());
}

}  // namespace

TORCH_LIBRARY_IMPL(gralora, Meta, m) {
  m.impl("linear_forward", TORCH_FN(linear_forward_meta));
  m.impl("linear_backward", TORCH_FN(linear_backward_meta));
  m.impl("linear_group_forward", TORCH_FN(linear_group_forward_meta));
  m.impl("linear_group_backward", TORCH_FN(linear_group_backward_meta));
  m.impl("add_forward", TORCH_FN(add_forward_meta));
  m.impl("add_backward", TORCH_FN(add_backward_meta));
  m.impl("delta_weight", TORCH_FN(delta_weight_meta));
  m.impl("merge_", TORCH_FN(merge_meta));
  m.impl("dropout", TORCH_FN(dropout_meta));
}

}  // namespace gralora::ops

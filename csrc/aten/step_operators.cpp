// gralora_steps: each step of an adapter by itself. Nothing of the product calls these operators;
// benchmarks time them one by one and tests compare them. They have no gradients, and write where
// they are told to.
#include "aten/step_operators.h"

#include <c10/util/Exception.h>

namespace gralora::aten {
namespace {

// The factors of an adapter: A, B, lora_A, lora_B.
constexpr size_t kMostTensors = 4;

void check_shape(const char* step, const char* name, const at::Tensor& tensor,
                 at::IntArrayRef expected, const at::Tensor& like) {
  TORCH_CHECK(tensor.sizes() == expected, "gralora_steps::", step, ": ", name, " must have shape ",
              expected, ", got ", tensor.sizes());
  TORCH_CHECK(tensor.device() == like.device() && tensor.scalar_type() == like.scalar_type(),
              "gralora_steps::", step, ": ", name, " must be ", like.scalar_type(), " on ",
              like.device(), ", got ", tensor.scalar_type(), " on ", tensor.device());
}

void check_dim(const char* step, const char* name, const at::Tensor& tensor, int64_t dim) {
  TORCH_CHECK(tensor.dim() == dim, "gralora_steps::", step, ": ", name, " must have ", dim,
              " dimensions, got ", tensor.sizes());
}

void check_divides(const char* step, const char* name, int64_t blocks, int64_t size) {
  TORCH_CHECK(blocks > 0 && size % blocks == 0, "gralora_steps::", step, ": ", name,
              " must be cut into equal blocks, got ", size, " in ", blocks, " blocks");
}

void check_count(const char* step, size_t count) {
  TORCH_CHECK(count >= 1 && count <= kMostTensors, "gralora_steps::", step,
              ": takes 1 to 4 tensors, got ", count);
}

/// A latent's rows may be padded; ranks lie side by side and planes are whole.
void check_latent_layout(const char* step, const at::Tensor& latent) {
  TORCH_CHECK(latent.stride(2) == 1 && latent.stride(0) == latent.size(1) * latent.stride(1),
              "gralora_steps::", step, ": latent must have strides (T*pitch, pitch, 1), got ",
              latent.strides());
}

void exchange_by_copy(at::Tensor& latent, const at::Tensor& product) {
  const int64_t outer = latent.size(0), T = latent.size(1), inner = product.size(0);
  latent.unflatten(2, {inner, -1}).copy_(product.view({inner, T, outer, -1}).permute({2, 1, 0, 3}));
}

}  // namespace

void check_project_step(const at::Tensor& latent, const at::Tensor& rows,
                        const at::Tensor& factor) {
  check_dim("project", "latent", latent, 3);
  check_dim("project", "rows", rows, 2);
  check_dim("project", "factor", factor, 3);
  check_divides("project", "factor", latent.size(0), factor.size(2));
  const int64_t inner = factor.size(0), outer = latent.size(0), T = rows.size(0);
  check_shape("project", "rows", rows, {T, inner * factor.size(1)}, latent);
  check_shape("project", "latent", latent, {outer, T, inner * (factor.size(2) / outer)}, latent);
  check_shape("project", "factor", factor, factor.sizes(), latent);
  check_latent_layout("project", latent);
  TORCH_CHECK(rows.stride(1) == 1, "gralora_steps::project: rows must have unit stride along ",
              "their last axis, got strides ", rows.strides());
}

void check_expand_step(const at::Tensor& rows, const at::Tensor& latent, const at::Tensor& factor) {
  check_dim("expand", "rows", rows, 2);
  check_dim("expand", "latent", latent, 3);
  check_dim("expand", "factor", factor, 3);
  check_divides("expand", "rows", factor.size(0), rows.size(1));
  const int64_t blocks = factor.size(0), rank = factor.size(1);
  TORCH_CHECK(rank > 0, "gralora_steps::expand: factor must have a rank of at least 1, got ",
              factor.sizes());
  check_shape("expand", "factor", factor, {blocks, rank, rows.size(1) / blocks}, rows);
  check_shape("expand", "latent", latent, {blocks, rows.size(0), rank}, rows);
  check_latent_layout("expand", latent);
  TORCH_CHECK(rows.is_contiguous(), "gralora_steps::expand: rows must be contiguous, got strides ",
              rows.strides());
}

void check_token_sums(at::TensorList activations, at::TensorList latents, size_t orders) {
  check_count("sum_over_tokens", activations.size());
  TORCH_CHECK(activations.size() == latents.size() && activations.size() == orders,
              "gralora_steps::sum_over_tokens: each activation has a latent and an order, got ",
              activations.size(), " activations, ", latents.size(), " latents and ", orders,
              " orders");
  const at::Tensor& first = activations[0];
  for (size_t i = 0; i < orders; ++i) {
    check_dim("sum_over_tokens", "activation", activations[i], 3);
    check_dim("sum_over_tokens", "latent", latents[i], 3);
    const int64_t blocks = activations[i].size(0), T = first.size(1);
    check_shape("sum_over_tokens", "activation", activations[i],
                {blocks, T, activations[i].size(2)}, first);
    check_shape("sum_over_tokens", "latent", latents[i], {blocks, T, latents[i].size(2)}, first);
  }
}

void check_roundings(at::TensorList tensors, at::ScalarType dtype) {
  check_count("round", tensors.size());
  for (const at::Tensor& tensor : tensors) {
    TORCH_CHECK(tensor.device() == tensors[0].device(),
                "gralora_steps::round: tensors must be on one device, got ", tensors[0].device(),
                " and ", tensor.device());
    TORCH_CHECK(tensor.scalar_type() != dtype,
                "gralora_steps::round: tensors must have another dtype than the result, got ",
                dtype);
  }
}

void check_exchange_step(const at::Tensor& latent, const at::Tensor& product) {
  check_dim("exchange", "latent", latent, 3);
  check_dim("exchange", "product", product, 3);
  check_divides("exchange", "latent", product.size(0), latent.size(2));
  const int64_t s = latent.size(2) / product.size(0);
  check_shape("exchange", "product", product, {product.size(0), latent.size(1), latent.size(0) * s},
              latent);
  check_latent_layout("exchange", latent);
  TORCH_CHECK(product.is_contiguous(),
              "gralora_steps::exchange: product must be contiguous, got strides ",
              product.strides());
}

TORCH_LIBRARY(gralora_steps, m) {
  m.def("project(Tensor(a!) latent, Tensor rows, Tensor factor, *, float scaling) -> ()");
  m.def("expand(Tensor(a!) rows, Tensor latent, Tensor factor, *, bool overwrite) -> ()");
  m.def(
      "sum_over_tokens(Tensor[] activations, Tensor[] latents, bool[] latent_is_left, *, "
      "ScalarType dtype) -> Tensor[]");
  m.def("round(Tensor[] tensors, *, ScalarType dtype) -> Tensor[]");
  m.def("exchange(Tensor(a!) latent, Tensor product) -> ()");
}

TORCH_LIBRARY_IMPL(gralora_steps, CompositeExplicitAutograd, m) {
  StepOperators<kLibrarySteps, exchange_by_copy>::register_in(m);
}

}  // namespace gralora::aten

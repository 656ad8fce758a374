#include "aten/blocks.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/as_strided.h>
#include <ATen/ops/empty.h>

#include "ops/latent.h"

namespace gralora::aten {
namespace {

/// Products of 16-bit numbers on CPUs with matrix units (AMX) read a few numbers past the end of a
/// row and multiply them by zero: what lies there must be finite, and a NaN reaches the result.
bool reads_past_rows(const at::Tensor& rows) {
  return rows.is_cpu() && at::isReducedFloatingType(rows.scalar_type());
}

/// For project() of a grid factor.
at::Tensor empty_grid_latent(const AdapterInput& input, const at::Tensor& factor, int64_t outer) {
  return empty_latent(outer, input.rows().size(0), factor.size(0) * (factor.size(2) / outer),
                      input.rows().options());
}

at::Tensor project_grid(const AdapterInput& input, const at::Tensor& factor, int64_t outer,
                        double scaling, const Steps& steps) {
  at::Tensor latent = empty_grid_latent(input, factor, outer);
  steps.project(latent, input, factor, scaling);
  return latent;
}

at::Tensor project_plain(const AdapterInput& input, const at::Tensor& factor, double scaling,
                         const Steps& steps) {
  at::Tensor latent = empty_latent(1, input.rows().size(0), factor.size(1), input.rows().options());
  steps.project(latent, input, factor.unsqueeze(0), scaling);
  return latent.select(0, 0);
}

/// What a part that the adapter does not have leaves behind.
at::Tensor absent_latent(const at::Tensor& rows) { return at::empty({0}, rows.options()); }

/// project() and what comes of it at once, of an adapter with a grid and nothing else.
bool project_and_expand(at::Tensor& rows, const BaseProduct& base, Latents& latents,
                        const AdapterInput& input, const ComputeFactors& factors,
                        const at::Tensor& projecting, const at::Tensor& expanding, double scaling,
                        TokenSums& sums, const Steps& steps) {
  if (!factors.A.defined() || factors.lora_A.defined() || input.dropout().drops() ||
      !steps.project_with_base(rows, base, latents.grid, projecting, scaling, expanding, sums)) {
    return false;
  }
  latents.plain = absent_latent(rows);
  latents.projected_here = true;
  return true;
}

}  // namespace

Sizes::Sizes(const AdapterShape& shape)
    : N(shape.N.expect_int()),
      M(shape.M.expect_int()),
      k_in(shape.k_in.expect_int()),
      k_out(shape.k_out.expect_int()),
      n(shape.n.expect_int()),
      m(shape.m.expect_int()),
      s(shape.s.expect_int()),
      r0(shape.r0.expect_int()) {}

ComputeFactors::ComputeFactors(const Adapter& adapter, at::ScalarType compute, const Steps& steps)
    : A(adapter.A), B(adapter.B), lora_A(adapter.lora_A), lora_B(adapter.lora_B) {
  steps.pack({{&A, compute, /*rank_is_last=*/true},
              {&B, compute},
              {&lora_A, compute},
              {&lora_B, compute, /*rank_is_last=*/true}});
}

at::Tensor transpose_factor(const at::Tensor& factor) {
  return factor.defined() ? factor.transpose(-2, -1) : factor;
}

at::Tensor as_rows(const at::Tensor& tensor, int64_t width) {
  at::Tensor rows = tensor.dim() == 2 ? tensor : tensor.reshape({tensor.numel() / width, width});
  const int64_t pitch = rows.size(0) <= 1 ? width : rows.stride(0);
  const bool fits = reads_past_rows(rows) ? pitch == width : pitch >= width;
  return fits && (rows.stride(1) == 1 || width == 1) ? rows : rows.contiguous();
}

std::vector<int64_t> with_width(at::IntArrayRef sizes, int64_t width) {
  std::vector<int64_t> result = sizes.vec();
  result.back() = width;
  return result;
}

at::Tensor split_blocks(const at::Tensor& rows, int64_t blocks) {
  // One view instead of a split and a permutation: views are what small calls spend their time on.
  const int64_t width = rows.size(1) / blocks;
  return rows.as_strided({blocks, rows.size(0), width},
                         {width * rows.stride(1), rows.stride(0), rows.stride(1)});
}

at::Tensor empty_latent(int64_t planes, int64_t T, int64_t rank, const at::TensorOptions& options) {
  // Rows padded to latent_pitch, the last one too: whole 16-byte loads never leave the storage. The
  // strides are those that ops/meta.cpp promises, also for T = 0.
  const int64_t pitch = latent_pitch(rank).expect_int();
  if (pitch == rank && T > 0) return at::empty({planes, T, rank}, options);
  at::Tensor latent = at::empty({planes * T * pitch}, options);
  if (reads_past_rows(latent)) latent.zero_();
  return latent.as_strided({planes, T, rank}, {T * pitch, pitch, 1});
}

Latents project_input(const AdapterInput& input, const ComputeFactors& factors, const Sizes& sizes,
                      double scaling, const Steps& steps) {
  Latents latents;
  latents.grid = factors.A.defined() ? project_grid(input, factors.A, sizes.k_out, scaling, steps)
                                     : absent_latent(input.rows());
  latents.plain = factors.lora_A.defined()
                      ? project_plain(input, factors.lora_A.t(), scaling, steps)
                      : absent_latent(input.rows());
  latents.projected_here = true;
  return latents;
}

Latents project_gradient(const at::Tensor& rows, const ComputeFactors& factors, const Sizes& sizes,
                         double scaling, TokenSums& sums, const Steps& steps) {
  const AdapterInput input(rows);
  Latents latents;
  if (factors.B.defined()) {
    const at::Tensor factor = transpose_factor(factors.B);
    latents.grid = empty_grid_latent(input, factor, sizes.k_in);
    if (any_asked_for(sums) &&
        steps.project_beside_sums(latents.grid, input, factor, scaling, sums)) {
      sums = {};
    } else {
      steps.project(latents.grid, input, factor, scaling);
    }
  }
  if (factors.lora_B.defined()) {
    latents.plain = project_plain(input, factors.lora_B, scaling, steps);
  }
  latents.projected_here = true;
  return latents;
}

void expand_output(at::Tensor& rows, const Latents& latents, const ComputeFactors& factors,
                   bool overwrite, const Steps& steps) {
  steps.expand(rows, latents, factors.B, transpose_factor(factors.lora_B), overwrite);
}

void expand_output_and_base(at::Tensor& rows, const BaseProduct& base, const Latents& latents,
                            const ComputeFactors& factors, const Steps& steps) {
  const at::Tensor plain_factor = transpose_factor(factors.lora_B);
  const auto& [x, weight] = base.terms.front();
  // Adapter term first: the compute-bound base product then hides the second visit to y.
  TokenSums no_sums;
  if (steps.expand_with_base(rows, base, latents, factors.B, plain_factor, {}, no_sums)) {
    // One pass for both.
  } else if (!base.bias) {
    steps.expand(rows, latents, factors.B, plain_factor, /*overwrite=*/true);
    rows.addmm_(x, weight);
  } else if (steps.expand_onto_bias(rows, latents, factors.B, plain_factor, *base.bias)) {
    rows.addmm_(x, weight);
  } else {
    // The bias rides in the base product's epilogue, so that comes first. The other order would
    // spread the bias over y in a pass of its own before the adapter term could be added to it.
    at::addmm_out(rows, *base.bias, x, weight);
    steps.expand(rows, latents, factors.B, plain_factor, /*overwrite=*/false);
  }
}

bool project_and_expand_output(at::Tensor& rows, const BaseProduct& base, Latents& latents,
                               const AdapterInput& input, const ComputeFactors& factors,
                               double scaling, const Steps& steps) {
  TokenSums no_sums;
  return project_and_expand(rows, base, latents, input, factors, factors.A, factors.B, scaling,
                            no_sums, steps);
}

bool project_and_expand_input(at::Tensor& rows, const BaseProduct& base, Latents& latents,
                              const AdapterInput& input, const ComputeFactors& factors,
                              double scaling, TokenSums& sums, const Steps& steps) {
  return project_and_expand(rows, base, latents, input, factors, transpose_factor(factors.B),
                            transpose_factor(factors.A), scaling, sums, steps);
}

bool expand_input_with_base(at::Tensor& rows, const BaseProduct& base, const Latents& latents,
                            const ComputeFactors& factors, const Dropout& dropout, TokenSums& sums,
                            const Steps& steps) {
  return steps.expand_with_base(rows, base, latents, transpose_factor(factors.A), factors.lora_A,
                                dropout, sums);
}

void expand_input(at::Tensor& rows, const Latents& latents, const ComputeFactors& factors,
                  const AdapterInput& input, TokenSums& sums, const Steps& steps) {
  const at::Tensor grid_factor = transpose_factor(factors.A);
  if (any_asked_for(sums) &&
      steps.expand_beside_sums(rows, latents, grid_factor, factors.lora_A, sums, input)) {
    sums = {};
  } else if (input.dropout().drops()) {
    steps.expand_dropped(rows, latents, grid_factor, factors.lora_A, input.dropout());
  } else {
    steps.expand(rows, latents, grid_factor, factors.lora_A, /*overwrite=*/true);
  }
}

}  // namespace gralora::aten

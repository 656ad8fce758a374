// The base product and the adapter's term in one on CUDA, with the projection or after it: tensors
// to plain parameters, dispatch/select_extended_product's choice, then
// kernels/extended_product_sm90.cu.
#include "kernels/extended_product.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAStream.h>

#include <numeric>

#include "aten/blocks.h"
#include "cuda/launch.h"
#include "cuda/steps.h"
#include "dispatch/select_extended_product.h"

namespace gralora::cuda {
namespace {

/// Whether a tensor map can describe it.
bool is_mappable(const at::Tensor& tensor, int64_t along = -1) {
  return has_aligned_rows(tensor, along) && !repeats_rows(tensor);
}

/// An extended product between tensors and the kernel: what the chooser and the launcher are told.
struct Product {
  const aten::BaseProduct& base;
  const at::Tensor& grid_factor;
  // The weights as [depth, columns]: their depth is contiguous where they are transposed [columns,
  // depth].
  bool by_depth = is_mappable(base.terms.front().weight, 0);

  /// Of the factors, along which they are to be contiguous.
  int64_t factor_axis() const { return by_depth ? 2 : 1; }

  ExtendedProductProblem problem() const {
    bool aligned = base.terms.size() <= kMaxProductTerms &&
                   (!base.bias || is_mappable(base.bias->unsqueeze(0)));
    int64_t depth = 0;
    for (const auto& [input, weight] : base.terms) {
      depth += weight.size(0);
      aligned &= weight.size(0) % kGroup == 0 && is_mappable(input) &&
                 is_mappable(weight, by_depth ? 0 : -1);
    }
    return {.T = base.terms.front().input.size(0),
            .depth = depth,
            .blocks = grid_factor.size(0),
            .width = grid_factor.size(2),
            .rank = grid_factor.size(1),
            .half = is_half(base.terms.front().input),
            .aligned = aligned,
            .matched = is_mappable(grid_factor, factor_axis()),
            .plain = false,
            .drops = false,
            .chip = current_chip(),
            .forced = forced_path()};
  }

  /// The same with the latent made on the way by each term's factor.
  ExtendedProductProblem problem(at::TensorList factors) const {
    ExtendedProductProblem problem = this->problem();
    for (const at::Tensor& factor : factors) {
      problem.inner += factor.size(0);
      problem.block_width = std::gcd(problem.block_width, factor.size(1));
      problem.matched &= is_mappable(factor, factor_axis());
    }
    problem.planes = factors[0].size(2) / (problem.rank / problem.inner);
    return problem;
  }

  ExtendedProductParams describe(ProductTile tile, const at::Tensor& rows,
                                 const at::Tensor& latent) const {
    ExtendedProductParams params{};
    for (const auto& [input, weight] : base.terms) {
      params.terms[params.term_count++] = {.rows = input.const_data_ptr(),
                                           .weight = weight.const_data_ptr(),
                                           .row_stride = input.stride(0),
                                           .weight_stride = weight.stride(by_depth ? 1 : 0),
                                           .depth = static_cast<int32_t>(weight.size(0))};
    }
    params.latent = latent.const_data_ptr();
    params.factor = grid_factor.const_data_ptr();
    params.bias = base.bias ? base.bias->const_data_ptr() : nullptr;
    params.out = rows.mutable_data_ptr();
    params.T = rows.size(0);
    params.blocks = static_cast<int32_t>(grid_factor.size(0));
    params.width = static_cast<int32_t>(grid_factor.size(2));
    params.rank = static_cast<int32_t>(grid_factor.size(1));
    params.latent_plane = latent.stride(0);
    params.latent_pitch = latent.stride(1);
    params.factor_block_stride = grid_factor.stride(0);
    params.factor_pitch = grid_factor.stride(by_depth ? 1 : 2);
    params.depth_is_contiguous = by_depth;
    params.type = element_type(rows);
    params.tile = tile;
    params.processors = current_chip().processors;
    return params;
  }

  /// The projection by each term's factor into `latent`, a tensor of `planes`.
  void add_projection(ExtendedProductParams& params, at::TensorList factors, at::Tensor& latent,
                      double scaling) const {
    for (size_t t = 0; t < factors.size(); ++t) {
      ProductTerm& term = params.terms[t];
      term.inner = static_cast<int32_t>(factors[t].size(0));
      term.factor = factors[t].const_data_ptr();
      term.factor_block_stride = factors[t].stride(0);
      term.factor_pitch = factors[t].stride(by_depth ? 1 : 2);
    }
    params.projection = {.latent = latent.mutable_data_ptr(),
                         .planes = static_cast<int32_t>(latent.size(0)),
                         .scaling = static_cast<float>(scaling)};
  }
};

void launch(const ExtendedProductParams& params) {
  check_launch("extended_product",
               launch_extended_product(params, c10::cuda::getCurrentCUDAStream()));
}

}  // namespace

bool expand_with_base(at::Tensor& rows, const aten::BaseProduct& base, const aten::Latents& latents,
                      const at::Tensor& grid_factor, const at::Tensor& plain_factor) {
  if (!grid_factor.defined()) return false;
  const Product product{base, grid_factor};
  ExtendedProductProblem problem = product.problem();
  problem.aligned = problem.aligned && is_mappable(rows) && is_mappable(latents.grid);
  problem.plain = plain_factor.defined();
  const ExtendedProductSelection selection = select_extended_product(problem);
  if (!selection.choice.kernel) return false;
  launch(product.describe(selection.tile, rows, latents.grid));
  return true;
}

bool project_with_base(at::Tensor& rows, const aten::BaseProduct& base, at::Tensor& latent,
                       at::TensorList factors, double scaling, const at::Tensor& grid_factor) {
  const Product product{base, grid_factor};
  ExtendedProductProblem problem = product.problem(factors);
  problem.aligned = problem.aligned && (!rows.defined() || is_mappable(rows));
  const ExtendedProductSelection selection = select_extended_product(problem);
  if (!selection.choice.kernel) return false;
  const at::TensorOptions options = base.terms.front().input.options();
  if (!rows.defined()) rows = at::empty({problem.T, problem.blocks * problem.width}, options);
  latent = aten::empty_latent(problem.planes, problem.T, problem.rank, options);
  ExtendedProductParams params = product.describe(selection.tile, rows, latent);
  product.add_projection(params, factors, latent, scaling);
  const at::Tensor counters =
      at::empty({count_product_counters(problem.T)}, options.dtype(at::kInt));
  params.counters = counters.mutable_data_ptr<int32_t>();
  launch(params);
  return true;
}

}  // namespace gralora::cuda

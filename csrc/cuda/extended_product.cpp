// The base product and the adapter's term in one on CUDA, with the projection or after it: tensors
// to plain parameters, dispatch/select_extended_product's choice, then
// kernels/extended_product_sm90.cu.
#include "kernels/extended_product.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <numeric>
#include <optional>

#include "aten/blocks.h"
#include "cuda/launch.h"
#include "cuda/steps.h"
#include "cuda/thin_product.h"
#include "cuda/weight_gradient.h"
#include "dispatch/select_extended_product.h"

namespace gralora::cuda {
namespace {

/// Whether a tensor map can describe it.
bool is_mappable(const at::Tensor& tensor, int64_t along = -1) {
  return has_aligned_rows(tensor, along) && !repeats_rows(tensor);
}

/// An extended product between tensors and the kernel: what the chooser and the launcher are told.
struct Product {
  using Tensors = c10::SmallVector<at::Tensor, kMaxProducts>;

  Tensors inputs;   // of the terms
  Tensors weights;  // of the terms or of the outputs, one of which is single: [depth, columns]
  Tensors factors;  // of the outputs, like rows and biases
  Tensors rows;     // may be undefined yet
  c10::SmallVector<OptionalTensor, kMaxProducts> biases;
  // Weights' depth is contiguous where they are transposed [columns, depth].
  bool by_depth;
  DropoutArgument dropout{{}};  // of the latent's term and of so many others, the first ones
  int32_t dropped_terms = 0;

  /// One output of all of a base product's terms.
  Product(const aten::BaseProduct& base, const at::Tensor& result, const at::Tensor& grid_factor)
      : by_depth(is_mappable(base.terms.front().weight, 0)) {
    for (const auto& [input, weight] : base.terms) add_term(input, weight);
    add_output(result, grid_factor, base.bias);
  }

  /// The same with a plain part, whose factor has the same axis contiguous as a frozen layer's
  /// weight: its latent is one more term's input. What is dropped comes first.
  Product(const aten::BaseProduct& base, const at::Tensor& result, const at::Tensor& grid_factor,
          const at::Tensor& plain, const at::Tensor& plain_factor, const aten::Dropout& dropout)
      : by_depth(is_mappable(base.terms.front().weight, 0)), dropout(dropout) {
    const bool has_plain = plain_factor.defined(), drops = dropout.drops();
    if (has_plain && drops) add_term(plain, plain_factor);
    dropped_terms = static_cast<int32_t>(inputs.size());
    for (const auto& [input, weight] : base.terms) add_term(input, weight);
    if (has_plain && !drops) add_term(plain, plain_factor);
    add_output(result, grid_factor, base.bias);
  }

  /// Several outputs of one input.
  Product(c10::ArrayRef<aten::LayerOutput> outputs, const at::Tensor& input)
      : inputs{input}, by_depth(is_mappable(outputs.front().weight, 0)) {
    for (const aten::LayerOutput& output : outputs) {
      weights.push_back(output.weight);
      add_output(output.rows, output.grid_factor, output.bias);
    }
  }

  void add_term(const at::Tensor& input, const at::Tensor& weight) {
    inputs.push_back(input);
    weights.push_back(weight);
  }

  void add_output(const at::Tensor& result, const at::Tensor& factor, const OptionalTensor& bias) {
    rows.push_back(result);
    factors.push_back(factor);
    biases.push_back(bias);
  }

  int64_t count_blocks() const {
    int64_t blocks = 0;
    for (const at::Tensor& factor : factors) blocks += factor.size(0);
    return blocks;
  }

  /// Of the factors, along which they are to be contiguous.
  int64_t factor_axis() const { return by_depth ? 2 : 1; }

  ExtendedProductProblem problem() const {
    ExtendedProductProblem problem{.T = inputs.front().size(0),
                                   .depth = 0,
                                   .outputs = {},
                                   .rank = factors.front().size(1),
                                   .half = is_half(inputs.front()),
                                   .aligned = inputs.size() <= kMaxProducts,
                                   .matched = true,
                                   .by_depth = by_depth,
                                   .drops = dropout.source.rng_state != nullptr,
                                   .chip = current_chip(),
                                   .forced = forced_path()};
    problem.terms = static_cast<int64_t>(inputs.size());
    for (size_t t = 0; t < inputs.size(); ++t) {
      problem.depth += weights[t].size(0);
      problem.aligned &= is_mappable(inputs[t]) && weights[t].size(0) % kGroup == 0;
    }
    for (const at::Tensor& weight : weights) {
      problem.aligned &= is_mappable(weight, by_depth ? 0 : -1);
    }
    for (size_t o = 0; o < factors.size(); ++o) {
      problem.outputs.at(o) = {.blocks = factors[o].size(0), .width = factors[o].size(2)};
      problem.aligned &= (!biases[o] || is_mappable(biases[o]->unsqueeze(0))) &&
                         (!rows[o].defined() || is_mappable(rows[o]));
      problem.matched &= is_mappable(factors[o], factor_axis());
    }
    return problem;
  }

  /// The same with the latent made on the way by each term's factor.
  ExtendedProductProblem problem(at::TensorList projecting) const {
    ExtendedProductProblem problem = this->problem();
    for (const at::Tensor& factor : projecting) {
      problem.inner += factor.size(0);
      problem.block_width = std::gcd(problem.block_width, factor.size(1));
      problem.matched &= is_mappable(factor, factor_axis());
    }
    return problem;
  }

  ExtendedProductParams describe(ProductTile tile, const at::Tensor& latent) const {
    ExtendedProductParams params{};
    for (size_t t = 0; t < inputs.size(); ++t) {
      params.terms[params.term_count++] = {.rows = inputs[t].const_data_ptr(),
                                           .row_stride = inputs[t].stride(0),
                                           .depth = static_cast<int32_t>(weights[t].size(0))};
    }
    for (size_t w = 0; w < weights.size(); ++w) {
      params.weights[w] = {weights[w].const_data_ptr(), weights[w].stride(by_depth ? 1 : 0)};
    }
    for (size_t o = 0; o < factors.size(); ++o) {
      const at::Tensor& factor = factors[o];
      params.outputs[params.output_count++] = {
          .factor = factor.const_data_ptr(),
          .factor_block_stride = factor.stride(0),
          .factor_pitch = factor.stride(by_depth ? 1 : 2),
          .bias = biases[o] ? biases[o]->const_data_ptr() : nullptr,
          .out = rows[o].mutable_data_ptr(),
          .blocks = static_cast<int32_t>(factor.size(0)),
          .width = static_cast<int32_t>(factor.size(2))};
    }
    params.latent = latent.const_data_ptr();
    params.T = inputs.front().size(0);
    params.rank = static_cast<int32_t>(factors.front().size(1));
    params.latent_plane = latent.stride(0);
    params.latent_pitch = latent.stride(1);
    params.depth_is_contiguous = by_depth;
    params.type = element_type(inputs.front());
    params.tile = tile;
    params.processors = current_chip().processors;
    params.dropout = dropout.source;
    params.dropped_terms = dropped_terms;
    return params;
  }

  /// The projection by each term's factor into `latent`.
  void add_projection(ExtendedProductParams& params, at::TensorList projecting, at::Tensor& latent,
                      double scaling) const {
    for (size_t t = 0; t < projecting.size(); ++t) {
      ProductTerm& term = params.terms[t];
      term.inner = static_cast<int32_t>(projecting[t].size(0));
      term.factor = projecting[t].const_data_ptr();
      term.factor_block_stride = projecting[t].stride(0);
      term.factor_pitch = projecting[t].stride(by_depth ? 1 : 2);
    }
    params.projection = {.latent = latent.mutable_data_ptr(),
                         .scaling = static_cast<float>(scaling)};
  }
};

/// The launch, with `sums` where they go along: then they are emptied.
void launch(ExtendedProductParams& params, const ExtendedProductProblem& problem,
            aten::TokenSums& sums) {
  const aten::AdapterInput no_input;
  at::Tensor counters, partials;
  std::optional<GradientCall> call;
  const GradientsSelection along =
      aten::any_asked_for(sums)
          ? select_product_gradients(problem, params.tile, describe_sums(sums, no_input))
          : GradientsSelection{Choice::library("no gradients")};
  if (along.choice.kernel) {
    call.emplace(sums, no_input, WeightGradientSelection{along.choice, {}, /*splits=*/1});
    params.gradient_count = call->params().count;
    std::copy_n(call->params().sums, params.gradient_count, params.gradients);
    if (along.span > 0) {
      partials = at::empty({count_product_partials(params)},
                           at::TensorOptions(at::kCUDA).dtype(at::kFloat));
      params.gradient_span = along.span;
      params.gradient_partials = partials.mutable_data_ptr<float>();
    }
  }
  const bool on_the_way = params.projection.latent != nullptr && !params.projection.in_tiles;
  if (on_the_way || along.counters) {
    counters =
        at::empty({count_product_counters(params)}, at::TensorOptions(at::kCUDA).dtype(at::kInt));
    params.counters = counters.mutable_data_ptr<int32_t>();
  }
  check_launch("extended_product",
               launch_extended_product(params, c10::cuda::getCurrentCUDAStream()));
  if (along.choice.kernel) sums = {};
}

/// Those that are of the latent to come, of that.
void add_latent(aten::TokenSums& sums, const at::Tensor& latent) {
  for (aten::TokenSum& entry : sums) {
    if (entry.is_asked_for() && !entry.right.defined()) entry.right = latent;
  }
}

/// The results and, into a new tensor, the latent that each term's factor makes; a result that is
/// undefined is made. False, with nothing done, where that is not the way.
bool project_on_the_way(Product& product, at::Tensor& latent, at::TensorList projecting,
                        double scaling, aten::TokenSums& sums) {
  const ExtendedProductProblem problem = product.problem(projecting);
  const ExtendedProductSelection selection = select_extended_product(problem);
  if (!selection.choice.kernel) return false;
  const at::TensorOptions options = product.inputs.front().options();
  for (size_t o = 0; o < product.rows.size(); ++o) {
    if (product.rows[o].defined()) continue;
    const ProductColumns& columns = problem.outputs.at(o);
    product.rows[o] = at::empty({problem.T, columns.blocks * columns.width}, options);
  }
  latent = aten::empty_latent(product.count_blocks(), problem.T, problem.rank, options);
  ExtendedProductParams params = product.describe(selection.tile, latent);
  product.add_projection(params, projecting, latent, scaling);
  params.projection.in_tiles = selection.in_tiles;
  add_latent(sums, latent);
  launch(params, problem, sums);
  return true;
}

/// The results from a latent that is there, or that a projection of this call has just been started
/// for. A projection to several blocks ends with a kernel of ours, which lets the next one begin
/// when all before it is done; so what else the product reads is there by then.
bool expand(const Product& product, const at::Tensor& latent, bool projected_here,
            aten::TokenSums& sums) {
  ExtendedProductProblem problem = product.problem();
  problem.aligned = problem.aligned && is_mappable(latent);
  const ExtendedProductSelection selection = select_extended_product(problem);
  if (!selection.choice.kernel) return false;
  ExtendedProductParams params = product.describe(selection.tile, latent);
  params.latent_is_ahead = projected_here && latent.size(0) > 1;
  launch(params, problem, sums);
  return true;
}

}  // namespace

bool expand_with_base(at::Tensor& rows, const aten::BaseProduct& base, const aten::Latents& latents,
                      const at::Tensor& grid_factor, const at::Tensor& plain_factor,
                      const aten::Dropout& dropout, aten::TokenSums& sums) {
  if (multiply_few_tokens(rows, base, latents, grid_factor, plain_factor, dropout, sums)) {
    return true;
  }
  if (!grid_factor.defined()) return false;
  const Product product(base, rows, grid_factor, latents.plain, plain_factor, dropout);
  // A plain part's latent is made after the grid's, and may be read before it.
  const bool is_ahead = latents.projected_here && !plain_factor.defined();
  return expand(product, latents.grid, is_ahead, sums);
}

bool project_with_base(at::Tensor& rows, const aten::BaseProduct& base, at::Tensor& latent,
                       at::TensorList factors, double scaling, const at::Tensor& grid_factor,
                       aten::TokenSums& sums) {
  Product product(base, rows, grid_factor);
  if (!project_on_the_way(product, latent, factors, scaling, sums)) return false;
  rows = product.rows.front();
  return true;
}

bool expand_layers_with_base(c10::ArrayRef<aten::LayerOutput> outputs, const at::Tensor& input,
                             at::Tensor& latent, const at::Tensor& factor, double scaling) {
  Product product(outputs, input);
  aten::TokenSums no_sums;
  return factor.defined() ? project_on_the_way(product, latent, factor, scaling, no_sums)
                          : expand(product, latent, /*projected_here=*/true, no_sums);
}

}  // namespace gralora::cuda

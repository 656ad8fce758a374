#include "aten/steps.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/as_strided.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <utility>

#include "aten/blocks.h"
#include "aten/dropout.h"

namespace gralora::aten {
namespace {

// Rows of fp32 copies that are live at once where the library has no fp32 sum of 16-bit operands.
constexpr int64_t kUpcastTokens = 1024;

// Terms that fit the smallest tile of a library's matrix product along its reduction.
constexpr int64_t kUnsplitTokens = 32;

void exchange(at::Tensor& latent, const at::Tensor& product) {
  const int64_t inner = product.size(0);
  const int64_t outer = latent.size(0);
  const int64_t T = latent.size(1);
  const int64_t s = latent.size(2) / inner;
  const int64_t pitch = latent.stride(1);
  latent.as_strided({outer, T, inner, s}, {T * pitch, pitch, s, 1})
      .copy_(product.as_strided({outer, T, inner, s}, {s, outer * s, T * outer * s, 1}));
}

void project(at::Tensor& latent, const AdapterInput& input, const at::Tensor& factor,
             double scaling) {
  project_by_product(latent, input, factor, scaling, exchange);
}

void expand(at::Tensor& rows, const Latents& latents, const at::Tensor& grid_factor,
            const at::Tensor& plain_factor, bool overwrite) {
  int beta = overwrite ? 0 : 1;
  if (grid_factor.defined()) {
    split_blocks(rows, grid_factor.size(0)).baddbmm_(latents.grid, grid_factor, beta);
    beta = 1;
  }
  if (plain_factor.defined()) rows.addmm_(latents.plain, plain_factor, beta);
}

void expand_dropped(at::Tensor& rows, const Latents& latents, const at::Tensor& grid_factor,
                    const at::Tensor& plain_factor, const Dropout& dropout) {
  expand(rows, latents, grid_factor, plain_factor, /*overwrite=*/true);
  rows = drop(rows, dropout.rng_state, dropout.p);
}

bool project_beside_sums(at::Tensor&, const AdapterInput&, const at::Tensor&, double,
                         const TokenSums&) {
  return false;
}

bool expand_beside_sums(at::Tensor&, const Latents&, const at::Tensor&, const at::Tensor&,
                        const TokenSums&, const AdapterInput&) {
  return false;
}

bool expand_onto_bias(at::Tensor&, const Latents&, const at::Tensor&, const at::Tensor&,
                      const at::Tensor&) {
  return false;
}

bool expand_with_base(at::Tensor&, const BaseProduct&, const Latents&, const at::Tensor&,
                      const at::Tensor&, const Dropout&, TokenSums&) {
  return false;
}

bool project_with_base(at::Tensor&, const BaseProduct&, at::Tensor&, at::TensorList, double,
                       const at::Tensor&, TokenSums&) {
  return false;
}

bool expand_layers_with_base(c10::ArrayRef<LayerOutput>, const at::Tensor&, at::Tensor&,
                             const at::Tensor&, double) {
  return false;
}

at::Tensor sum_upcast_chunks(const at::Tensor& left, const at::Tensor& right) {
  const int64_t T = left.size(1);
  at::Tensor sum =
      at::zeros({left.size(0), left.size(2), right.size(2)}, left.options().dtype(at::kFloat));
  for (int64_t start = 0; start < T; start += kUpcastTokens) {
    const int64_t length = std::min(kUpcastTokens, T - start);
    sum.baddbmm_(left.narrow(1, start, length).to(at::kFloat).transpose(1, 2),
                 right.narrow(1, start, length).to(at::kFloat));
  }
  return sum;
}

void sum_over_tokens(const TokenSums& sums, const AdapterInput& input) {
  for (const TokenSum& entry : sums) {
    if (entry.is_asked_for()) *entry.sum = sum_by_product(entry, input).to(entry.dtype);
  }
}

void round(std::initializer_list<Rounding> roundings) {
  for (const Rounding& rounding : roundings) {
    if (rounding.tensor == nullptr || !rounding.tensor->defined()) continue;
    *rounding.tensor = rounding.tensor->to(rounding.dtype);
  }
}

}  // namespace

const Steps kLibrarySteps{project,
                          project_beside_sums,
                          expand,
                          expand_dropped,
                          expand_onto_bias,
                          expand_with_base,
                          project_with_base,
                          expand_layers_with_base,
                          expand_beside_sums,
                          sum_over_tokens,
                          round,
                          round};

bool any_asked_for(const TokenSums& sums) {
  return std::any_of(sums.begin(), sums.end(),
                     [](const TokenSum& entry) { return entry.is_asked_for(); });
}

AdapterInput::AdapterInput(at::Tensor rows, Dropout dropout)
    : rows_(std::move(rows)), dropout_(std::move(dropout)) {}

const at::Tensor& AdapterInput::dropped_rows() const {
  if (!dropout_.drops()) return rows_;
  if (!dropped_rows_.defined()) dropped_rows_ = drop(rows_, dropout_.rng_state, dropout_.p);
  return dropped_rows_;
}

void project_by_product(at::Tensor& latent, const AdapterInput& input, const at::Tensor& factor,
                        double scaling,
                        void (*exchange)(at::Tensor& latent, const at::Tensor& product)) {
  const int64_t inner = factor.size(0);
  const int64_t T = latent.size(1);
  const at::Tensor blocks = split_blocks(input.dropped_rows(), inner);
  // With one outer block the product's own layout is the latent's: write it in place.
  if (latent.size(0) == 1) {
    const int64_t s = latent.size(2) / inner;
    latent.as_strided({inner, T, s}, {s, latent.stride(1), 1})
        .baddbmm_(blocks, factor, /*beta=*/0, /*alpha=*/scaling);
    return;
  }
  at::Tensor product = at::empty({inner, T, factor.size(2)}, blocks.options());
  product.baddbmm_(blocks, factor, /*beta=*/0, /*alpha=*/scaling);
  exchange(latent, product);
}

at::Tensor sum_by_product(const TokenSum& entry, const AdapterInput& input) {
  at::Tensor left = entry.left, right = entry.right;
  if (entry.of_input && input.dropout().drops()) {
    at::Tensor& activation = entry.latent_is_left ? right : left;
    activation = split_blocks(input.dropped_rows(), activation.size(0));
  }
  const at::ScalarType dtype = entry.dtype;
  const at::ScalarType compute = left.scalar_type();
  if (compute == at::kFloat || compute == at::kDouble) {
    return at::bmm(left.transpose(1, 2), right);
  }
  if (!left.is_cuda()) return sum_upcast_chunks(left, right);
  // A 16-bit product of many tokens may add split sums in 16 bits; one of few is never split.
  const bool rounds_once = dtype == compute && left.size(1) <= kUnsplitTokens;
  return rounds_once ? at::bmm(left.transpose(1, 2), right)
                     : at::bmm(left.transpose(1, 2), right, at::kFloat);
}

}  // namespace gralora::aten

#include "aten/steps.h"

#include <ATen/ops/empty.h>

#include "aten/blocks.h"

namespace gralora::aten {
namespace {

void exchange(at::Tensor& latent, const at::Tensor& product) {
  const int64_t inner = product.size(0);
  const int64_t outer = latent.size(0);
  const int64_t T = latent.size(1);
  const int64_t s = latent.size(2) / inner;
  const int64_t pitch = latent.stride(1);
  latent.as_strided({outer, T, inner, s}, {T * pitch, pitch, s, 1})
      .copy_(product.as_strided({outer, T, inner, s}, {s, outer * s, T * outer * s, 1}));
}

void project(at::Tensor& latent, const at::Tensor& rows, const at::Tensor& factor, double scaling) {
  project_by_product(latent, rows, factor, scaling, exchange);
}

void round(std::initializer_list<Rounding> roundings) {
  for (const Rounding& rounding : roundings) {
    if (rounding.tensor->defined()) *rounding.tensor = rounding.tensor->to(rounding.dtype);
  }
}

}  // namespace

const Steps kLibrarySteps{project, round};

void project_by_product(at::Tensor& latent, const at::Tensor& rows, const at::Tensor& factor,
                        double scaling,
                        void (*exchange)(at::Tensor& latent, const at::Tensor& product)) {
  const int64_t inner = factor.size(0);
  const int64_t T = latent.size(1);
  const at::Tensor blocks = split_blocks(rows, inner);
  // With one outer block the product's own layout is the latent's: write it in place.
  if (latent.size(0) == 1) {
    const int64_t s = latent.size(2) / inner;
    latent.as_strided({inner, T, s}, {s, latent.stride(1), 1})
        .baddbmm_(blocks, factor, /*beta=*/0, /*alpha=*/scaling);
    return;
  }
  at::Tensor product = at::empty({inner, T, factor.size(2)}, rows.options());
  product.baddbmm_(blocks, factor, /*beta=*/0, /*alpha=*/scaling);
  exchange(latent, product);
}

}  // namespace gralora::aten

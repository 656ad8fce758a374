// The base product of few tokens and the adapter's term in one on CUDA: tensors to plain
// parameters, dispatch/select_thin_product's choice, then kernels/thin_product.cu.
#include "cuda/thin_product.h"

#include <c10/cuda/CUDAStream.h>

#include "cuda/expand.h"
#include "cuda/weight_gradient.h"
#include "dispatch/select_thin_product.h"
#include "dispatch/share_launch.h"
#include "kernels/thin_product.h"

namespace gralora::cuda {

bool multiply_few_tokens(at::Tensor& rows, const aten::BaseProduct& base,
                         const aten::Latents& latents, const at::Tensor& grid_factor,
                         const at::Tensor& plain_factor, const aten::Dropout& dropout,
                         aten::TokenSums& sums) {
  if (base.terms.size() != 1) return false;
  const auto& [input, weight] = base.terms.front();
  const Expansion expansion{rows, latents, grid_factor, plain_factor,
                            base.bias ? &*base.bias : nullptr};
  const int64_t blocks = expansion.count_blocks();
  const bool by_depth = has_aligned_rows(weight, 0);
  const ThinProductSelection selection =
      select_thin_product({.T = input.size(0),
                           .depth = weight.size(0),
                           .width = weight.size(1) / blocks,
                           .blocks = blocks,
                           .by_depth = by_depth,
                           .half = is_half(input),
                           .aligned = expansion.is_aligned() && has_aligned_rows(input) &&
                                      (by_depth || has_aligned_rows(weight)),
                           .drops = dropout.drops(),
                           .chip = current_chip(),
                           .forced = forced_path()});
  if (!selection.choice.kernel) return false;
  const ThinProductParams params{.term = expansion.describe(ExpandTile::k64x64),
                                 .rows = input.const_data_ptr(),
                                 .weight = weight.const_data_ptr(),
                                 .row_stride = input.stride(0),
                                 .weight_stride = weight.stride(by_depth ? 1 : 0),
                                 .depth = static_cast<int32_t>(weight.size(0)),
                                 .tile = selection.tile,
                                 .splits = selection.splits};
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  if (aten::any_asked_for(sums)) {
    const aten::AdapterInput no_input;
    const WeightGradientSelection summing = select_sums(sums, no_input);
    if (takes_kernel("weight_gradient", summing.choice) && share_launch(selection, summing)) {
      const GradientCall call(sums, no_input, summing);
      check_launch("thin_product", launch_thin_product_beside_sums(params, call.params(), stream));
      sums = {};
      return true;
    }
  }
  check_launch("thin_product", launch_thin_product(params, stream));
  return true;
}

}  // namespace gralora::cuda

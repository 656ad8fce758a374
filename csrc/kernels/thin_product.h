// The base product of few tokens with the adapter's term: csrc/cuda/thin_product.cpp fills and
// calls it where csrc/dispatch/select_thin_product.cpp says so.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/expand.h"
#include "kernels/thin_product_tiles.h"
#include "kernels/weight_gradient.h"

namespace gralora {

/// out = rows weight + what launch_expand(term) makes of latents, factors and bias; without
/// dropout, and not onto what `out` holds. `term.factors_are_ready` holds of rows and weight too.
struct ThinProductParams {
  ExpandParams term;
  const void* rows;    // [T, depth], unit stride along the depth, rows 16-byte aligned
  const void* weight;  // [depth, blocks*width], unit stride along either axis, 16-byte aligned
                       // along the other one
  int64_t row_stride, weight_stride;
  int32_t depth;
  ThinTile tile;   // of the axis of the weight that has unit stride
  int32_t splits;  // of the depth among the CTAs of a cluster
};

cudaError_t launch_thin_product(const ThinProductParams& params, cudaStream_t stream);

/// The same beside launch_weight_gradient(sums), of the same type and T: tiles 64 x 64, tokens not
/// split, no dropout; where the weight's columns have unit stride, as in a backward pass.
cudaError_t launch_thin_product_beside_sums(const ThinProductParams& params,
                                            const WeightGradientParams& sums, cudaStream_t stream);

}  // namespace gralora

// Whether the base product takes the adapter's term along, and the factors' gradients: pure
// functions of what the call looks like, without torch and without a GPU
// (gralora._C.select_extended_product).
#pragma once

#include <array>
#include <cstdint>

#include "dispatch/chip.h"
#include "dispatch/choice.h"
#include "dispatch/select_weight_gradient.h"
#include "kernels/extended_product_tiles.h"

namespace gralora {

/// Columns of one result.
struct ProductColumns {
  int64_t blocks = 0, width = 0;
};

/// [T, depth] times [depth, blocks*width] of each output, the depths of all terms together,
/// extended by [blocks, T, rank] times [blocks, rank, width].
struct ExtendedProductProblem {
  int64_t T, depth;
  std::array<ProductColumns, kMaxProducts> outputs;  // of those beyond the last the columns are 0
  int64_t rank;
  bool half;     // 16-bit operands
  bool aligned;  // rows of all operands start on 16-byte boundaries, none repeats
  bool matched;  // the weight and the factor have opposite axes contiguous, the projection's factor
                 // the same one as the factor
  bool by_depth;  // the weight's depth is contiguous
  bool drops;     // what the adapter adds goes through dropout
  int64_t terms = 1;
  int64_t inner = 0;  // blocks of the depth that the latent is projected from, were it made on the
                      // way or in tiles; 0: it is there
  int64_t block_width = 0;  // of those blocks; of several widths, the greatest that divides all
  Chip chip;
  ForcedPath forced = ForcedPath::kNone;
};

/// Otherwise the base product is the library's, onto what the expansion has written.
struct ExtendedProductSelection {
  Choice choice;
  ProductTile tile;
  bool in_tiles = false;  // is the latent made that the product projects, not on the way
};

ExtendedProductSelection select_extended_product(const ExtendedProductProblem& problem);

/// Whether gradients are summed among the product's tiles.
struct GradientsSelection {
  Choice choice;
  bool counters = false;  // clusters draw their items, so that long and short ones end together
  int64_t span = 0;       // tokens that are summed at a time, the last ones may be more; 0: all
};

/// Of a product that select_extended_product() has chosen.
GradientsSelection select_product_gradients(const ExtendedProductProblem& problem, ProductTile tile,
                                            const WeightGradientProblem& gradients);

}  // namespace gralora

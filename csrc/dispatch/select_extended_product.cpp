#include "dispatch/select_extended_product.h"

namespace gralora {
namespace {

// Measured on an H100: a column takes so much longer in the narrow tile, which reads more.
constexpr double kNarrowPenalty = 1.06;

// Of the tensor cores' time. Below it a library product, which knows more tiles, may be faster.
constexpr double kLeastUse = 0.8;

constexpr int64_t kMostRank = 1024;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Columns that every SM works through, rounds of unequal length counted as the longest.
double count_columns(const ExtendedProductProblem& problem, ProductTile tile) {
  const ProductTileSize size = size_of(tile);
  const int64_t tiles = divide_up(problem.T, int64_t{size.tokens} * kProductCluster) *
                        divide_up(problem.width, size.columns) * problem.blocks;
  const int64_t rounds = divide_up(tiles, problem.chip.processors / kProductCluster);
  const double penalty = tile == ProductTile::k128x128 ? kNarrowPenalty : 1.0;
  return static_cast<double>(rounds * size.columns) * penalty;
}

double use_of(const ExtendedProductProblem& problem, ProductTile tile) {
  const double results = static_cast<double>(problem.T) * static_cast<double>(problem.width) *
                         static_cast<double>(problem.blocks);
  return results / (count_columns(problem, tile) * size_of(tile).tokens * problem.chip.processors);
}

Choice choose_way(const ExtendedProductProblem& problem, ProductTile tile) {
  if (!problem.chip.sm90) {
    return Choice::impossible("no code for compute capability 9.0a runs there");
  }
  if (problem.chip.processors < kProductCluster) return Choice::impossible("one multiprocessor");
  if (!problem.half) return Choice::impossible("operands are not of 16 bits");
  if (problem.plain) return Choice::impossible("the adapter has a plain part");
  if (problem.drops) return Choice::impossible("dropout acts on the adapter's part alone");
  if (problem.depth % kGroup != 0 || problem.width % kGroup != 0) {
    return Choice::impossible("a width is not a multiple of 8");
  }
  if (problem.T > kMaxExtent || problem.depth > kMaxExtent ||
      problem.width * problem.blocks > kMaxExtent) {
    return Choice::impossible("an axis is longer than 2^30");
  }
  if (problem.rank < 1 || problem.rank > kMostRank) {
    return Choice::impossible("the rank is not within 1 to 1024");
  }
  if (!problem.aligned) return Choice::impossible("rows are not 16-byte aligned");
  if (!problem.matched)
    return Choice::impossible("weight and factor have the same axis contiguous");
  if (use_of(problem, tile) < kLeastUse) return Choice::library("its tiles leave processors idle");
  return Choice::own("the adapter's term in the base product's sums");
}

}  // namespace

ExtendedProductSelection select_extended_product(const ExtendedProductProblem& problem) {
  const bool is_wide = problem.chip.processors < kProductCluster ||
                       count_columns(problem, ProductTile::k128x256) <=
                           count_columns(problem, ProductTile::k128x128);
  const ProductTile tile = is_wide ? ProductTile::k128x256 : ProductTile::k128x128;
  Choice choice = choose_way(problem, tile);
  if (choice.possible && problem.forced == ForcedPath::kSm90) choice.kernel = true;
  if (problem.forced == ForcedPath::kSm80 || problem.forced == ForcedPath::kAten) {
    choice.kernel = false;
  }
  return {choice, tile};
}

}  // namespace gralora

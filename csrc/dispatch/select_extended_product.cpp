#include "dispatch/select_extended_product.h"

#include <algorithm>
#include <string_view>

namespace gralora {
namespace {

// Measured on an H100. A library product, which knows more tiles, loses less by rounds that are not
// full; with two rounds or fewer it has no better ones either.
constexpr double kLeastUse = 0.9;
constexpr double kLeastUseOfFewRounds = 0.8;
constexpr int64_t kFewRounds = 2;

// The narrow tile reads half as much again for each of its products: good where wide ones would not
// reach every processor, and its walk is long enough to hide its beginning and its end.
constexpr double kNarrowPenalty = 1.06;
constexpr int64_t kLeastNarrowDepth = 2048;

constexpr int64_t kMostRank = 1024;

// Making the latent on the way. Measured on an H100: it pays where other tiles are under way while
// rows are projected, so not in the first of a few rounds, and where a tile's walk is long enough
// for its latents to be there at its end. With fewer tokens (measured on an H200) it pays in
// forward passes, not where gradients are to come before the last tiles.
constexpr int64_t kLeastTokensOnTheWay = 4096;
constexpr int64_t kLeastForwardTokensOnTheWay = 2048;
constexpr int64_t kLeastDepthOnTheWay = 2048;
constexpr int64_t kLeastRoundsOnTheWay = 4;

// Making the latent in every tile. Measured on an H200: it costs a tile an eighth of its time,
// which is less than a projection takes where the result is narrow.
constexpr int64_t kLeastTokensInTiles = 2048;
constexpr int64_t kMostColumnsInTiles = 2048;

// Gradients among the tiles. Measured on an H200: a walk over the tokens takes the longer, the more
// latents a step brings. So with a larger rank they are faster apart, save where few tokens make
// every launch count, or many tokens meet tiles so short that their latents are not made on the
// way; with a few more tokens, beside deep tiles that hide them, twice the rank goes along.
constexpr int64_t kMostGradientTokens = 16384;
constexpr int64_t kMostGradientRank = 64;
constexpr int64_t kMostGradientRankOfDeepTiles = 128;
constexpr int64_t kLeastDepthOfDeepTiles = 4096;
constexpr int64_t kFewestTokens = 1024;
constexpr int64_t kManyTokens = 4096;

// Spans of the tokens that gradients on the way are summed over, one after the other. Measured on
// an H200 with 4096 to 32768 tokens: with 8192 a walk over all takes about as long as a tile, so
// that the last of a few rounds ends unevenly, and shorter ones fill the gaps. With more rounds of
// tiles they gained nothing, but for what is apart without them: many tokens, and beside deep
// tiles.
constexpr int64_t kSpanTokens = 2048;
constexpr int64_t kMostSpans = 8;
constexpr int64_t kMostRoundsOfSpans = 8;
constexpr int64_t kMostDepthWithoutSpans = 8192;
// On the way there are always two.
static_assert(kLeastTokensOnTheWay >= 2 * kSpanTokens);

// Dropping a tile's sums, against an expansion that drops. Measured on an H200 with 2048 and 8192
// tokens; with 512 one layer of two lost by it.
constexpr int64_t kLeastDroppedTokens = 2048;

// So many tokens and a walk takes a good part of a tile's time, so that equal shares of items are
// no equal times.
constexpr int64_t kFewTokens = 2048;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t count_columns(const ExtendedProductProblem& problem) {
  int64_t columns = 0;
  for (const ProductColumns& output : problem.outputs) columns += output.blocks * output.width;
  return columns;
}

int64_t count_blocks(const ExtendedProductProblem& problem) {
  int64_t blocks = 0;
  for (const ProductColumns& output : problem.outputs) blocks += output.blocks;
  return blocks;
}

int64_t widest_block(const ExtendedProductProblem& problem) {
  int64_t width = 0;
  for (const ProductColumns& output : problem.outputs) width = std::max(width, output.width);
  return width;
}

int64_t count_rounds(const ExtendedProductProblem& problem, ProductTile tile) {
  const ProductTileSize size = size_of(tile);
  int64_t columns = 0;
  for (const ProductColumns& output : problem.outputs) {
    columns += divide_up(output.width, size.columns) * output.blocks;
  }
  const int64_t tiles = divide_up(problem.T, int64_t{size.tokens} * kProductCluster) * columns;
  return divide_up(tiles, std::max(problem.chip.processors / kProductCluster, 1));
}

/// The part of the time that all processors have results to work on.
double use_of(const ExtendedProductProblem& problem, ProductTile tile) {
  const ProductTileSize size = size_of(tile);
  const double results =
      static_cast<double>(problem.T) * static_cast<double>(count_columns(problem));
  const auto places = static_cast<double>(count_rounds(problem, tile) * size.tokens * size.columns *
                                          problem.chip.processors);
  return results / places / (tile == ProductTile::k128x128 ? kNarrowPenalty : 1.0);
}

bool is_worthwhile(const ExtendedProductProblem& problem, ProductTile tile) {
  const bool few = count_rounds(problem, tile) <= kFewRounds;
  if (tile == ProductTile::k128x128 && !(few && problem.depth >= kLeastNarrowDepth)) return false;
  return use_of(problem, tile) >= (few ? kLeastUseOfFewRounds : kLeastUse);
}

ProductTile choose_tile(const ExtendedProductProblem& problem) {
  if (is_worthwhile(problem, ProductTile::k128x256)) return ProductTile::k128x256;
  return is_worthwhile(problem, ProductTile::k128x128) ||
                 widest_block(problem) <= size_of(ProductTile::k128x128).columns
             ? ProductTile::k128x128
             : ProductTile::k128x256;
}

/// Why the latent cannot be made on the way; nothing where it can.
std::string_view why_not_on_the_way(const ExtendedProductProblem& problem, ProductTile tile) {
  if (problem.block_width % kGroup != 0) return "a block's width is not a multiple of 8";
  if (problem.rank % (problem.inner * kGroup) != 0) {
    return "a block's share of the rank is not a multiple of 8";
  }
  if (problem.rank / problem.inner * count_blocks(problem) > size_of(tile).columns) {
    return "a block has more latents than the tile has columns";
  }
  return {};
}

/// Why tiles cannot make their latents themselves; nothing where they can.
std::string_view why_not_in_tiles(const ExtendedProductProblem& problem) {
  if (!problem.by_depth) return "the weight's depth is not contiguous";
  if (problem.terms > 1) return "several products are added up";
  if (problem.rank != problem.inner * kTileLatents || problem.rank > kMostTileLatents) {
    return "a block's share of the rank is not 16, or the rank is more than 64";
  }
  if (problem.block_width % kTileDepth != 0) return "a block's width is not a multiple of 64";
  return {};
}

bool hides_projection(const ExtendedProductProblem& problem, ProductTile tile) {
  const int64_t least_tokens =
      problem.by_depth ? kLeastForwardTokensOnTheWay : kLeastTokensOnTheWay;
  return problem.T >= least_tokens && problem.depth >= kLeastDepthOnTheWay &&
         count_rounds(problem, tile) >= kLeastRoundsOnTheWay;
}

bool projects_in_tiles(const ExtendedProductProblem& problem, ProductTile tile) {
  return problem.inner > 0 && problem.T >= kLeastTokensInTiles &&
         count_columns(problem) <= kMostColumnsInTiles && is_worthwhile(problem, tile) &&
         !hides_projection(problem, tile) && why_not_in_tiles(problem).empty();
}

int64_t most_gradient_rank(const ExtendedProductProblem& problem, ProductTile tile) {
  const bool any = problem.T <= kFewestTokens || (problem.inner == 0 && problem.T >= kManyTokens);
  if (any) return size_of(tile).columns;
  return problem.T <= kFewTokens && problem.depth >= kLeastDepthOfDeepTiles
             ? kMostGradientRankOfDeepTiles
             : kMostGradientRank;
}

int64_t choose_span(const ExtendedProductProblem& problem, ProductTile tile) {
  const bool is_needed = problem.T > kMostGradientTokens || problem.depth > kMostDepthWithoutSpans;
  const bool has_few_rounds = count_rounds(problem, tile) <= kMostRoundsOfSpans;
  if (problem.inner == 0 || !(is_needed || has_few_rounds)) return 0;
  const int64_t span = divide_up(problem.T / kSpanTokens, kMostSpans) * kSpanTokens;
  return problem.T >= 2 * span ? span : 0;
}

Choice choose_gradients(const ExtendedProductProblem& problem, ProductTile tile,
                        const WeightGradientProblem& gradients) {
  if (problem.T < 1) return Choice::impossible("there are no tokens");
  if (problem.by_depth) return Choice::impossible("the weight's depth is contiguous");
  if (!gradients.half) return Choice::impossible("operands are not of 16 bits");
  if (!gradients.aligned || gradients.repeats) {
    return Choice::impossible("rows are not 16-byte aligned");
  }
  if (!gradients.narrow) return Choice::impossible("a gradient is fp64");
  if (largest_rank(gradients) > size_of(tile).columns) {
    return Choice::impossible("a rank is larger than the tile has columns");
  }
  if (problem.inner == 0 && problem.T > kMostGradientTokens) {
    return Choice::library("long walks end unevenly");
  }
  if (largest_rank(gradients) > most_gradient_rank(problem, tile)) {
    return Choice::library("walks with so many latents are faster apart");
  }
  return Choice::own("among the base product's tiles");
}

Choice choose_way(const ExtendedProductProblem& problem, ProductTile tile, bool in_tiles) {
  if (!problem.chip.sm90) {
    return Choice::impossible("no code for compute capability 9.0a runs there");
  }
  if (problem.chip.cluster < kProductCluster || problem.chip.processors < kProductCluster) {
    return Choice::impossible("two blocks cannot form a cluster there");
  }
  if (!problem.half) return Choice::impossible("operands are not of 16 bits");
  if (problem.drops && problem.inner > 0) {
    return Choice::impossible("dropout acts where latents would be made on the way");
  }
  if (problem.drops && problem.by_depth) {
    return Choice::impossible("dropout acts beside a weight whose depth is contiguous");
  }
  const bool in_groups =
      std::all_of(problem.outputs.begin(), problem.outputs.end(),
                  [](const ProductColumns& output) { return output.width % kGroup == 0; });
  if (problem.depth % kGroup != 0 || !in_groups) {
    return Choice::impossible("a width is not a multiple of 8");
  }
  if (problem.T > kMaxExtent || problem.depth > kMaxExtent || count_columns(problem) > kMaxExtent) {
    return Choice::impossible("an axis is longer than 2^30");
  }
  if (problem.rank < 1 || problem.rank > kMostRank) {
    return Choice::impossible("the rank is not within 1 to 1024");
  }
  if (!problem.aligned) return Choice::impossible("rows are not 16-byte aligned");
  if (!problem.matched)
    return Choice::impossible("weight and factor have the same axis contiguous");
  if (problem.inner > 0 && !in_tiles) {
    const std::string_view obstacle = why_not_on_the_way(problem, tile);
    if (!obstacle.empty()) return Choice::impossible(obstacle);
  }
  if (!is_worthwhile(problem, tile)) return Choice::library("its tiles leave processors idle");
  if (problem.drops && problem.T < kLeastDroppedTokens) {
    return Choice::library("so few tokens are dropped where the term is written");
  }
  if (problem.drops)
    return Choice::own("the adapter's term after dropout in the base product's sums");
  if (problem.inner == 0) return Choice::own("the adapter's term in the base product's sums");
  if (in_tiles) return Choice::own("the latents are made in every tile of the base product");
  return hides_projection(problem, tile)
             ? Choice::own("the adapter's products among and in the base product's")
             : Choice::library("too few tiles to hide a projection among them");
}

}  // namespace

ExtendedProductSelection select_extended_product(const ExtendedProductProblem& problem) {
  const ProductTile tile = choose_tile(problem);
  const bool in_tiles = projects_in_tiles(problem, tile);
  Choice choice = choose_way(problem, tile, in_tiles);
  if (choice.possible && problem.forced == ForcedPath::kSm90) choice.kernel = true;
  if (problem.forced == ForcedPath::kSm80 || problem.forced == ForcedPath::kAten) {
    choice.kernel = false;
  }
  return {choice, tile, in_tiles && choice.kernel};
}

GradientsSelection select_product_gradients(const ExtendedProductProblem& problem, ProductTile tile,
                                            const WeightGradientProblem& gradients) {
  Choice choice = choose_gradients(problem, tile, gradients);
  if (choice.possible && problem.forced == ForcedPath::kSm90) choice.kernel = true;
  if (!choice.kernel) return {choice};
  return {choice, problem.T > kFewTokens, choose_span(problem, tile)};
}

}  // namespace gralora

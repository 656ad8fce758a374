#include "dispatch/select_thin_product.h"

namespace gralora {
namespace {

// Of so few tokens a tile holds all, and the weight is read once.
constexpr int64_t kMostTokens = size_of(ThinTile::k16x16).tokens;

// Of a split: a walk that is shorter than the ring leaves most of the memory unused.
constexpr int64_t kLeastSteps = 4;

// Numbers of the weight that a CTA reads where most multiprocessors have none; those of 4096 x 4096
// in dx.
constexpr int64_t kMostNumbersOfFew = 1 << 17;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// CTAs of the narrow tile that a multiprocessor of compute capability 9.0 has at once. More of them
// follow each other, and each begins with nothing on its way. Others were not measured.
constexpr int64_t kNarrowCtasPerProcessor = 2;

int64_t count_tiles(const ThinProductProblem& problem, ThinTile tile) {
  const ThinTileSize size = size_of(tile);
  return divide_up(problem.T, size.tokens) * problem.blocks *
         divide_up(problem.width, size.columns);
}

ThinTile choose_tile(const ThinProductProblem& problem) {
  if (!problem.by_depth) return ThinTile::k16x128;
  return count_tiles(problem, ThinTile::k16x16) <= problem.chip.processors * kNarrowCtasPerProcessor
             ? ThinTile::k16x16
             : ThinTile::k16x64;
}

bool fills_chip(const ThinProductProblem& problem, ThinTile tile, int splits) {
  return count_tiles(problem, tile) * splits * 4 >= int64_t{problem.chip.processors} * 3;
}

/// As many CTAs share a tile as it takes to give most multiprocessors one, or as find work.
/// Measured on an H200: with a second one on each, the sums that are brought together cost more
/// than it reads.
int choose_splits(const ThinProductProblem& problem, ThinTile tile) {
  const int64_t steps = divide_up(problem.depth, size_of(tile).depth);
  int splits = 1;
  while (splits * 2 <= problem.chip.cluster && steps / (splits * 2) >= kLeastSteps &&
         !fills_chip(problem, tile, splits)) {
    splits *= 2;
  }
  return splits;
}

/// Few CTAs with long walks, as on chips without clusters, are left to the library's product: what
/// they would take was not measured.
bool reads_fast(const ThinProductProblem& problem, ThinTile tile, int splits) {
  return fills_chip(problem, tile, splits) ||
         divide_up(problem.depth, splits) * size_of(tile).columns <= kMostNumbersOfFew;
}

Choice choose_way(const ThinProductProblem& problem, ThinTile tile, int splits) {
  if (problem.T < 1) return Choice::impossible("there are no tokens");
  if (!problem.half) return Choice::impossible("operands are not of 16 bits");
  if (problem.drops) return Choice::impossible("dropout acts on the adapter's part alone");
  if (problem.width % kGroup != 0) {
    return Choice::impossible("the block width is not a multiple of 8");
  }
  if (problem.T > kMaxExtent || problem.depth > kMaxExtent || problem.width > kMaxExtent) {
    return Choice::impossible("an axis is longer than 2^30");
  }
  if (!problem.aligned) return Choice::impossible("rows are not 16-byte aligned");
  if (problem.forced != ForcedPath::kNone) return Choice::library("another path is forced");
  if (problem.T > kMostTokens) return Choice::library("more than 16 tokens");
  if (!reads_fast(problem, tile, splits)) {
    return Choice::library("too few blocks to read the weight fast");
  }
  return Choice::own("few tokens: the weight is read once, with the adapter's term");
}

}  // namespace

ThinProductSelection select_thin_product(const ThinProductProblem& problem) {
  const ThinTile tile = choose_tile(problem);
  const int splits = choose_splits(problem, tile);
  return {choose_way(problem, tile, splits), tile, splits};
}

}  // namespace gralora

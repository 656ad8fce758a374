#include "dispatch/select_thin_product.h"

namespace gralora {
namespace {

// Of so few tokens a tile holds all, and the weight is read once.
constexpr int64_t kMostTokens = thin_tile_size(true).tokens;

// Two CTAs on a multiprocessor have as many bytes on their way as cover the memory's latency.
constexpr int64_t kCtasPerProcessor = 2;
constexpr int64_t kLeastSteps = 8;  // of a split

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// As many CTAs share a tile as it takes to give every multiprocessor its two, or as find work.
int choose_splits(const ThinProductProblem& problem) {
  const ThinTileSize size = thin_tile_size(problem.by_depth);
  const int64_t tiles =
      divide_up(problem.T, size.tokens) * problem.blocks * divide_up(problem.width, size.columns);
  const int64_t steps = divide_up(problem.depth, size.depth);
  int splits = 1;
  while (splits * 2 <= problem.chip.cluster && steps / (splits * 2) >= kLeastSteps &&
         tiles * splits * 4 < int64_t{problem.chip.processors} * kCtasPerProcessor * 3) {
    splits *= 2;
  }
  return splits;
}

Choice choose_way(const ThinProductProblem& problem) {
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
  return Choice::own("few tokens: the weight is read once, with the adapter's term");
}

}  // namespace

ThinProductSelection select_thin_product(const ThinProductProblem& problem) {
  return {choose_way(problem), choose_splits(problem)};
}

}  // namespace gralora

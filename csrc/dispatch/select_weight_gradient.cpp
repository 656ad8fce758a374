#include "dispatch/select_weight_gradient.h"

#include <algorithm>
#include <string_view>

namespace gralora {
namespace {

// Measured on an H100, layers 1024 to 14336 wide: up to so many tokens times tiles a walk over all
// tokens is so short that splitting it, and adding the splits, costs more than it saves.
constexpr int64_t kShortWalk = 1 << 17;

constexpr int64_t kLeastSteps = 4;  // of a split
constexpr int64_t kMostSplits = 64;
constexpr int64_t kMostWorkspace = 32 << 20;  // bytes

int64_t count_tiles(const WeightGradientProblem& problem, GradientTile tile) {
  int64_t tiles = 0;
  for (const GradientShape& gradient : problem.gradients) {
    tiles += size_of(tile).count(gradient.blocks, gradient.width, gradient.rank);
  }
  return tiles;
}

/// A tile that holds all latents if one does, so that x and dy are read once.
GradientTile choose_tile(int64_t rank) {
  return rank <= size_of(GradientTile::k128x32).latents ? GradientTile::k128x32
                                                        : GradientTile::k128x64;
}

/// The fewest splits that keep nine tenths of the processors at work through all rounds of one CTA
/// each, or those that come nearest to it. Two CTAs on a processor were measured to be slower: they
/// leave twice the sums, and end less evenly.
int choose_splits(const WeightGradientProblem& problem, GradientTile tile) {
  const GradientTileSize size = size_of(tile);
  const int64_t tiles = std::max<int64_t>(count_tiles(problem, tile), 1);
  const int64_t places = std::max(problem.chip.processors, 1);
  const int64_t steps = (problem.T + kTokensPerStep - 1) / kTokensPerStep;
  const int64_t bytes = tiles * size.activations * size.latents * int64_t{sizeof(float)};
  const int64_t most = std::min({kMostSplits, steps / kLeastSteps, kMostWorkspace / bytes});
  int64_t best = 1;
  double best_use = 0;
  for (int64_t splits = 1; splits <= std::max<int64_t>(most, 1); ++splits) {
    const int64_t rounds = (tiles * splits + places - 1) / places;
    const double use = static_cast<double>(tiles * splits) / static_cast<double>(rounds * places);
    if (use > best_use) {
      best = splits;
      best_use = use;
    }
    if (use >= 0.9) break;
  }
  return static_cast<int>(best);
}

bool is_short(const WeightGradientProblem& problem) {
  return problem.T * count_tiles(problem, GradientTile::k64x64) <= kShortWalk;
}

Choice choose_way(const WeightGradientProblem& problem) {
  if (!problem.half) return Choice::impossible("operands are not of 16 bits");
  if (!problem.aligned) return Choice::impossible("rows are not 16-byte aligned");
  if (problem.T > kMaxExtent) return Choice::impossible("more than 2^30 tokens");
  if (!problem.narrow) return Choice::impossible("a gradient is fp64");
  if (is_short(problem)) return Choice::own("aligned 16-bit operands, a short walk");
  if (problem.drops) return Choice::own("dropout while reading, without a copy of the input");
  if (largest_rank(problem) > size_of(GradientTile::k128x64).latents) {
    return Choice::library("more tokens than a short walk and a rank above 64");
  }
  return Choice::own("aligned 16-bit operands, one reading of each");
}

std::string_view why_not_sm90(const WeightGradientProblem& problem) {
  if (!problem.chip.sm90) return "no code for compute capability 9.0a runs there";
  if (problem.repeats) return "rows of an operand repeat";
  return {};
}

GradientTile choose_bulk_tile(int64_t rank) {
  for (const GradientTile tile : {GradientTile::kBulk128x32, GradientTile::kBulk128x64}) {
    if (rank <= size_of(tile).latents) return tile;
  }
  return GradientTile::kBulk128x128;
}

// Measured on an H100: up to so many latents the kernel of 8.0 ends as early or earlier. With
// dropout steps gained nothing by this one on an H200, at r 64.
constexpr int64_t kNarrowRank = 32;

bool prefers_sm90(const WeightGradientProblem& problem) {
  const int64_t rank = largest_rank(problem);
  return !is_short(problem) && !problem.drops && rank > kNarrowRank &&
         rank <= size_of(GradientTile::kBulk128x128).latents;
}

}  // namespace

int64_t largest_rank(const WeightGradientProblem& problem) {
  int64_t rank = 0;
  for (const GradientShape& gradient : problem.gradients) rank = std::max(rank, gradient.rank);
  return rank;
}

WeightGradientSelection select_weight_gradient(const WeightGradientProblem& problem) {
  Choice choice = choose_way(problem);
  if (choice.possible && problem.forced != ForcedPath::kSm80) {
    const bool forced = problem.forced == ForcedPath::kSm90;
    const std::string_view obstacle = why_not_sm90(problem);
    if (obstacle.empty() && (forced || prefers_sm90(problem))) {
      const GradientTile tile = choose_bulk_tile(largest_rank(problem));
      return {Choice::own("aligned 16-bit operands, bulk copies"), tile,
              choose_splits(problem, tile)};
    }
    if (forced) choice = Choice::impossible(obstacle);
  }
  if (is_short(problem)) return {choice, GradientTile::k64x64, 1};
  const GradientTile tile = choose_tile(largest_rank(problem));
  return {choice, tile, choose_splits(problem, tile)};
}

}  // namespace gralora

#include "dispatch/select_project.h"

#include <string_view>

namespace gralora {
namespace {

constexpr int64_t kAlignment = 16;

// Measured on an H100 (4096 and 1024 wide): the kernel is faster than a library product and an
// exchange of its blocks up to so many columns, or up to so many latents of a block.
constexpr int64_t kMostColumns = size_of(ProjectTile::k64x32).columns;
constexpr int64_t kFewLatents = 1 << 16;

// Measured on an H100, in layers 1024 and 4096 wide: bringing the sums of a split width together
// costs more than it saves with more tokens, and with a narrower block.
constexpr int64_t kMostSplitTokens = 128;
constexpr int64_t kLeastSplitWidth = 512;

// Bulk copies: with fewer tokens small tiles or split widths are faster; with few CTAs each walks
// alone, so the walk must be short, all the shorter the fewer they are; beyond one tile's columns x
// is read again for every slice, and library products are faster.
constexpr int64_t kLeastBulkTokens = 256;
constexpr int64_t kShortBulkWalk = 16, kMiddleBulkWalk = 32;
constexpr int64_t kMostBulkColumns = size_of(ProjectTile::kBulk128x256).columns;

// Measured on an H200 with 512 and 1024 tokens: tiles that halve 65 to 128 columns, and read x
// twice, are faster where whole ones would be few. Not tried with more latents.
constexpr int64_t kMostHalvedLatents = 1 << 17;

bool is_aligned(uint64_t address) { return address % kAlignment == 0; }

int64_t count_tiles(const ProjectProblem& problem, ProjectTile tile) {
  const ProjectTileSize size = size_of(tile);
  return (problem.T + size.tokens - 1) / size.tokens * problem.inner *
         ((problem.columns + size.columns - 1) / size.columns);
}

/// Whether three quarters of the multiprocessors get a block.
bool fills_chip(const ProjectProblem& problem, ProjectTile tile, int splits) {
  return count_tiles(problem, tile) * splits * 4 >= int64_t{problem.chip.processors} * 3;
}

struct Tiling {
  ProjectTile tile;
  int splits;
};

/// As many CTAs share a tile as it takes to give most multiprocessors one, or as find work; one
/// alone where the walk is short.
Tiling split_width(const ProjectProblem& problem, ProjectTile tile) {
  const int64_t steps = (problem.width + size_of(tile).depth - 1) / size_of(tile).depth;
  const auto is_useful = [&](int splits) {
    const int64_t split_steps = (steps + splits - 1) / splits;
    return splits <= problem.chip.cluster && split_steps * (splits - 1) < steps;
  };
  int splits = 1;
  if (problem.T > kMostSplitTokens || problem.width < kLeastSplitWidth) return {tile, splits};
  while (!fills_chip(problem, tile, splits) && is_useful(splits * 2)) splits *= 2;
  return {tile, splits};
}

/// The tile that reads the operands least often among those that give most multiprocessors a block:
/// a chip that is not full reads nothing fast. Splitting the width fills it without more reading;
/// the CTAs' sums then have to be brought together, so not those of the largest tile.
Tiling choose_tiling(const ProjectProblem& problem) {
  const bool wide = problem.columns > size_of(ProjectTile::k64x32).columns;
  if (wide && fills_chip(problem, ProjectTile::k128x64, 1)) return {ProjectTile::k128x64, 1};
  const Tiling middle = split_width(problem, ProjectTile::k64x32);
  const bool has_rows = problem.T > size_of(ProjectTile::k16x32).tokens;
  if (has_rows && fills_chip(problem, middle.tile, middle.splits)) return middle;
  return split_width(problem, ProjectTile::k16x32);
}

/// Tensor maps count tokens in 32 bits, and may not repeat.
std::string_view why_not_sm90(const ProjectProblem& problem, bool width_is_contiguous) {
  if (!problem.chip.sm90) return "no code for compute capability 9.0a runs there";
  if (problem.T > kMaxExtent) return "more than 2^30 tokens";
  if (problem.T > 1 && problem.x_row_stride == 0) return "rows of the input repeat";
  if (problem.inner > 1 && problem.factor_block_stride == 0) return "blocks of the factor repeat";
  const bool repeats_rows = width_is_contiguous
                                ? problem.columns > 1 && problem.factor_column_stride == 0
                                : problem.width > 1 && problem.factor_width_stride == 0;
  if (repeats_rows) return "rows of the factor repeat";
  return {};
}

/// Whether at least one of every `many` multiprocessors gets a CTA.
bool fills_one_of(int64_t many, const ProjectProblem& problem, ProjectTile tile) {
  return count_tiles(problem, tile) * many >= problem.chip.processors;
}

/// A tile with all columns, so that x is read once, unless they are too many; or where the large
/// ones would be too few, a small one that reads x from the cache again.
ProjectTile choose_bulk_tile(const ProjectProblem& problem) {
  for (const ProjectTile tile : {ProjectTile::kBulk64x32, ProjectTile::kBulk64x64}) {
    if (problem.columns <= size_of(tile).columns) return tile;
  }
  if (problem.columns > size_of(ProjectTile::kBulk128x128).columns) {
    return ProjectTile::kBulk128x256;
  }
  const bool few = problem.T * problem.columns <= kMostHalvedLatents &&
                   !fills_one_of(3, problem, ProjectTile::kBulk128x128);
  return few ? ProjectTile::kBulk64x64 : ProjectTile::kBulk128x128;
}

/// Whether the kernels can run, whichever of them.
Choice choose_way(const ProjectProblem& problem, bool width_is_contiguous) {
  if (!problem.half) return Choice::impossible("operands are not of 16 bits");
  if (problem.width % kGroup != 0) {
    return Choice::impossible("the block width is not a multiple of 8");
  }
  if (problem.width > kMaxExtent || problem.columns > kMaxExtent) {
    return Choice::impossible("a block is wider than 2^30");
  }
  const bool odd_rows = problem.T > 1 && problem.x_row_stride % kGroup != 0;
  if (odd_rows || !is_aligned(problem.x_address)) {
    return Choice::impossible("rows of the input are not 16-byte aligned");
  }
  // The stride of an axis with one place may be any number.
  if (!width_is_contiguous && problem.columns > 1 && problem.factor_column_stride != 1) {
    return Choice::impossible("no axis of the factor has unit stride");
  }
  const bool odd_factor_rows =
      width_is_contiguous ? problem.columns > 1 && problem.factor_column_stride % kGroup != 0
                          : problem.factor_width_stride % kGroup != 0;
  const bool odd_blocks = problem.inner > 1 && problem.factor_block_stride % kGroup != 0;
  if (odd_factor_rows || odd_blocks || !is_aligned(problem.factor_address)) {
    return Choice::impossible("rows of the factor are not 16-byte aligned");
  }
  if (!problem.aligned_latent) {
    return Choice::impossible("rows of the latent are not 16-byte aligned");
  }
  if (problem.drops) return Choice::own("dropout while reading, without a copy of the input");
  if (problem.outer == 1) return Choice::library("one outer block: the product needs no exchange");
  if (problem.columns > kMostColumns && problem.T * problem.columns > kFewLatents) {
    return Choice::library("more than 32 columns and 2^16 latents");
  }
  return Choice::own("aligned 16-bit operands");
}

/// The widest tile leaves no registers for threads that drop.
bool can_drop(const ProjectProblem& problem) {
  return !problem.drops || problem.columns <= size_of(ProjectTile::kBulk128x128).columns;
}

// Measured on an H200 with 2048 and 8192 tokens. With fewer, few multiprocessors would drop.
constexpr int64_t kLeastDroppedTokens = 2048;

bool prefers_sm90(const ProjectProblem& problem) {
  const int64_t least = problem.drops ? kLeastDroppedTokens : kLeastBulkTokens;
  if (problem.T < least || problem.columns > kMostBulkColumns) return false;
  const ProjectTile tile = choose_bulk_tile(problem);
  const int64_t depth = size_of(tile).depth, steps = (problem.width + depth - 1) / depth;
  if (fills_one_of(3, problem, tile)) return true;
  const bool is_short =
      steps <= kShortBulkWalk || (steps <= kMiddleBulkWalk && fills_one_of(5, problem, tile));
  return is_short && problem.columns <= 64;
}

}  // namespace

ProjectSelection select_project(const ProjectProblem& problem) {
  const bool width_is_contiguous = problem.factor_width_stride == 1 &&
                                   (problem.factor_column_stride != 1 || problem.columns == 1);
  Choice choice = choose_way(problem, width_is_contiguous);
  if (choice.possible && problem.forced != ForcedPath::kSm80) {
    const bool forced = problem.forced == ForcedPath::kSm90;
    const std::string_view obstacle = why_not_sm90(problem, width_is_contiguous);
    if (obstacle.empty() && can_drop(problem) && (forced || prefers_sm90(problem))) {
      const std::string_view reason = problem.drops
                                          ? "dropout where bulk copies have brought the input"
                                          : "aligned 16-bit operands, bulk copies";
      return {Choice::own(reason), choose_bulk_tile(problem), 1, width_is_contiguous};
    }
    if (forced && !obstacle.empty()) choice = Choice::impossible(obstacle);
  }
  const Tiling tiling = choose_tiling(problem);
  return {choice, tiling.tile, tiling.splits, width_is_contiguous};
}

}  // namespace gralora

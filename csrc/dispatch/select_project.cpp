#include "dispatch/select_project.h"

namespace gralora {
namespace {

constexpr int64_t kAlignment = 16;

// Measured on an H100 (4096 and 1024 wide): the kernel is faster than a library product and an
// exchange of its blocks up to so many columns, or up to so many latents of a block.
constexpr int64_t kMostColumns = size_of(ProjectTile::k64x32).columns;
constexpr int64_t kFewLatents = 1 << 16;

bool is_aligned(uint64_t address) { return address % kAlignment == 0; }

int64_t count_blocks(const ProjectProblem& problem, ProjectTile tile) {
  const ProjectTileSize size = size_of(tile);
  return (problem.T + size.tokens - 1) / size.tokens * problem.inner *
         ((problem.columns + size.columns - 1) / size.columns);
}

/// The tile that reads the operands least often among those that give most multiprocessors a block:
/// a chip that is not full reads nothing fast.
ProjectTile choose_tile(const ProjectProblem& problem) {
  const auto fills = [&](ProjectTile tile) {
    return count_blocks(problem, tile) * 4 >= int64_t{problem.processors} * 3;
  };
  const bool wide = problem.columns > size_of(ProjectTile::k64x32).columns;
  if (wide && fills(ProjectTile::k128x64)) return ProjectTile::k128x64;
  return fills(ProjectTile::k64x32) ? ProjectTile::k64x32 : ProjectTile::k16x32;
}

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
  if (!width_is_contiguous && problem.factor_column_stride != 1) {
    return Choice::impossible("no axis of the factor has unit stride");
  }
  const int64_t pitch =
      width_is_contiguous ? problem.factor_column_stride : problem.factor_width_stride;
  const bool odd_blocks = problem.inner > 1 && problem.factor_block_stride % kGroup != 0;
  if (pitch % kGroup != 0 || odd_blocks || !is_aligned(problem.factor_address)) {
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

}  // namespace

ProjectSelection select_project(const ProjectProblem& problem) {
  const bool width_is_contiguous =
      problem.factor_width_stride == 1 && problem.factor_column_stride != 1;
  return {choose_way(problem, width_is_contiguous), choose_tile(problem), width_is_contiguous};
}

}  // namespace gralora

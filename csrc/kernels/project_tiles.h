// The tiles that projections come in: constants, apart from the policy that chooses one
// (dispatch/select_project.cpp).
#pragma once

namespace gralora {

/// Tokens x columns of one CTA. The last ones are those of compute capability 9.0a
/// (project_sm90.cu).
enum class ProjectTile {
  k16x32,
  k64x32,
  k128x64,
  kBulk64x32,
  kBulk64x64,
  kBulk128x128,
  kBulk128x256
};

constexpr bool is_bulk(ProjectTile tile) { return tile >= ProjectTile::kBulk64x32; }

struct ProjectTileSize {
  int tokens, columns;
  int depth;  // of the width, in one step
};

inline constexpr int kMostProjectSplits = 8;  // the portable size of a cluster

constexpr ProjectTileSize size_of(ProjectTile tile) {
  switch (tile) {
    case ProjectTile::k16x32:
      return {16, 32, 128};
    case ProjectTile::k64x32:
    case ProjectTile::kBulk64x32:
      return {64, 32, 64};
    case ProjectTile::k128x64:
      return {128, 64, 64};
    case ProjectTile::kBulk64x64:
      return {64, 64, 64};
    case ProjectTile::kBulk128x128:
      return {128, 128, 64};
    case ProjectTile::kBulk128x256:
      break;
  }
  return {128, 256, 64};
}

}  // namespace gralora

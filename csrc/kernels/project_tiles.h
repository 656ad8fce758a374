// The tiles that projections come in: constants, apart from the policy that chooses one
// (dispatch/select_project.cpp).
#pragma once

namespace gralora {

/// Tokens x columns of one CTA.
enum class ProjectTile { k16x32, k64x32, k128x64 };

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
      return {64, 32, 64};
    case ProjectTile::k128x64:
      break;
  }
  return {128, 64, 64};
}

}  // namespace gralora

// The tiles that projections come in: constants, apart from the policy that chooses one
// (dispatch/select_project.cpp).
#pragma once

namespace gralora {

/// Tokens x columns of one CTA.
enum class ProjectTile { k16x32, k64x32 };

struct ProjectTileSize {
  int tokens, columns;
};

constexpr ProjectTileSize size_of(ProjectTile tile) {
  return tile == ProjectTile::k16x32 ? ProjectTileSize{16, 32} : ProjectTileSize{64, 32};
}

}  // namespace gralora

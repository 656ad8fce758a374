// The tiles that extended products come in: constants, apart from the policy that chooses one
// (dispatch/select_extended_product.cpp).
#pragma once

namespace gralora {

/// Tokens x columns of one CTA.
enum class ProductTile { k128x256, k128x128 };

struct ProductTileSize {
  int tokens, columns;
};

// Where tiles make their latents themselves: of one block of the rows, and of all.
inline constexpr int kTileLatents = 16;
inline constexpr int kMostTileLatents = 64;
inline constexpr int kTileDepth = 64;  // a multiple of which a block of the rows then is wide

inline constexpr int kMaxProducts = 3;     // that are added up, or results
inline constexpr int kProductCluster = 2;  // CTAs that share the columns of their tiles
inline constexpr int kProductStoreWarps = 3;

constexpr ProductTileSize size_of(ProductTile tile) {
  return tile == ProductTile::k128x256 ? ProductTileSize{128, 256} : ProductTileSize{128, 128};
}

// Of a cluster: tokens of a tile, or columns of an activation.
inline constexpr int kProductRows = size_of(ProductTile::k128x256).tokens * kProductCluster;
static_assert(size_of(ProductTile::k128x128).tokens * kProductCluster == kProductRows);

}  // namespace gralora

// The tiles of thin products: constants, apart from the policy that takes them
// (dispatch/select_thin_product.cpp).
#pragma once

namespace gralora {

struct ThinTileSize {
  int tokens, columns;
  int depth;  // in one step
};

/// A step reads rows of 256 bytes of a weight whose depth is contiguous, else rows of 128.
constexpr ThinTileSize thin_tile_size(bool depth_is_contiguous) {
  return depth_is_contiguous ? ThinTileSize{16, 32, 128} : ThinTileSize{16, 64, 64};
}

}  // namespace gralora

// The latents that an extended product's tile makes for itself: beside each step's products for the
// tile's columns stand those of the same rows with the 16 columns that a block of the rows has in
// the projection's factor for the tile's block. When the walk ends the latents are in shared
// memory, rounded, as the left operand of the steps over the factor.
//
// So a tile waits for no other one and rows are read once; it pays with 16 columns of products
// beside its own 128 or 256, again in each tile of the same block.
#pragma once

#include "kernels/extended_product_params.cuh"
#include "kernels/extended_product_stores.cuh"
#include "kernels/ptx_sm90.cuh"

namespace gralora::extended_product {

/// A warp's 16 rows of a stage, a fragment for each product of its depth. Measured on an H200:
/// 1 % faster than products that read them from shared memory (docs/kernels.md).
struct HeldRows {
  uint32_t fragment[4][4];

  /// From the warp's first row.
  __device__ void load(uint32_t rows) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int chunk = (k * 2 + lane / 16) ^ (lane & 7);
      ptx::load_matrices(fragment[k], rows + lane % 16 * 128 + chunk * 16);
    }
  }
};

/// A thread's sums of one block of the rows: 64 of these by its 16 columns.
using LatentSums = float[kTileLatents / 8][4];

/// A warpgroup's latents of 64 rows, in the memory of its warps' boxes: rows of 128 bytes, swizzled
/// as a stage's are.
template <class T, class Tile>
class TileLatents {
 public:
  static_assert(Tile::kBoxes * kBoxBytes * 4 == kPartBytes, "the boxes of four warps are a part");

  /// `boxes` are those of the warpgroup `group`.
  __device__ TileLatents(const Params& p, uint32_t boxes, int group)
      : p_(p), boxes_(boxes), group_(group) {}

  /// Rounds the sums of the rows' block `block`, whose products have ended, to their columns, and
  /// stores them for the backward pass, once for all tiles of a block.
  __device__ void keep(int block, const TilePlace& at) {
    if (block == 0) wait_for_boxes();
#pragma unroll
    for (int v = 0; v < kTileLatents / 8; ++v) ptx::hold(sums[v]);
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = this->warp() % 4;
    const float scaling = p_.projection.scaling;
    stage_columns<T>(boxes_ + warp * kBoxBytes, block * kTileLatents / 8, sums[0], sums[1],
                     scaling);
    if (at.column > 0) return;
    const int64_t token = at.token + group_ * 64 + warp * kBoxRows + lane / 4;
    const Projection& projection = p_.projection;
    const int64_t plane = p_.outputs[at.output].first_block + at.block;
    T* const to = static_cast<T*>(projection.latent) + plane * projection.plane +
                  token * projection.pitch + block * kTileLatents + lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (token + half * 8 >= projection.T) continue;
#pragma unroll
      for (int v = 0; v < kTileLatents / 8; ++v) {
        const float(&e)[4] = sums[v];
        *reinterpret_cast<uint32_t*>(to + half * 8 * projection.pitch + v * 8) =
            round_pair<T>(e[half * 2] * scaling, e[half * 2 + 1] * scaling);
      }
    }
  }

  /// After all of them: shows them to the warpgroup's products. Their address.
  __device__ uint32_t show() const {
    ptx::show_to_copies();
    ptx::synchronize_warpgroup(group_);
    return boxes_;
  }

  /// After those products: lets the warps use their boxes again.
  __device__ void release() const { ptx::synchronize_warpgroup(group_); }

  LatentSums sums;

 private:
  __device__ static int warp() { return static_cast<int>(threadIdx.x - 128) / 32; }

  /// Until nothing of the tile before is on its way from any of the warps' boxes.
  __device__ void wait_for_boxes() const {
    if (ptx::is_elected()) ptx::wait_for_box_reads<0>();
    ptx::synchronize_warpgroup(group_);
  }

  const Params& p_;
  uint32_t boxes_;
  int group_;
};

}  // namespace gralora::extended_product

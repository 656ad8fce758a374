// How a warp's sums of an extended product leave its registers: each warp has boxes in shared
// memory for it (Tile::kBoxes). A tile's rows go on by bulk stores, latents and gradients by the
// hands of other warps (extended_product_storer.cuh).
#pragma once

#include "kernels/block_product.cuh"
#include "kernels/extended_product_params.cuh"
#include "kernels/ptx_sm90.cuh"

namespace gralora::extended_product {

/// 16 columns of a warp's 16 rows to its box: rows of 128 bytes, swizzled as maps say.
template <class T>
__device__ void stage_columns(uint32_t box, int v, const float (&a)[4], const float (&b)[4],
                              float scaling) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t fragment[4] = {
      round_pair<T>(a[0] * scaling, a[1] * scaling), round_pair<T>(a[2] * scaling, a[3] * scaling),
      round_pair<T>(b[0] * scaling, b[1] * scaling), round_pair<T>(b[2] * scaling, b[3] * scaling)};
  const int chunk = (v + lane / 16) ^ (lane & 7);
  ptx::store_matrices(box + lane % 16 * 128 + chunk * 16, fragment);
}

/// A warp's 16 rows of a tile, by boxes that are written under the next item's products.
template <class T, class Tile>
__device__ void store_rows(const Params& p, float (&sums)[Tile::kColumns / 8][4],
                           const TilePlace& at, int warp, uint32_t boxes) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int token = at.token + warp * kBoxRows;
  const Output& output = p.outputs[at.output];
  const T* const bias = static_cast<const T*>(output.bias);
#pragma unroll
  for (int box = 0; box < Tile::kColumns / kBoxColumns; ++box) {
    const int column0 = at.column + box * kBoxColumns;
    const uint32_t to = boxes + box % Tile::kBoxes * kBoxBytes;
    if (ptx::is_elected()) ptx::wait_for_box_reads<Tile::kBoxes - 1>();
    __syncwarp();
    if (bias != nullptr) {
#pragma unroll
      for (int v = 0; v < 8; ++v) {
        const int column = column0 + v * 8 + lane % 4 * 2;
        if (column >= output.width) continue;  // widths are even
        const Pair<T> pair =
            *reinterpret_cast<const Pair<T>*>(bias + at.block * output.width + column);
        float(&e)[4] = sums[box * 8 + v];
        e[0] += static_cast<float>(pair.first);
        e[1] += static_cast<float>(pair.second);
        e[2] += static_cast<float>(pair.first);
        e[3] += static_cast<float>(pair.second);
      }
    }
#pragma unroll
    for (int v = 0; v < 8; v += 2) {
      stage_columns<T>(to, v, sums[box * 8 + v], sums[box * 8 + v + 1], 1.0f);
    }
    ptx::show_to_copies();
    __syncwarp();
    if (ptx::is_elected()) ptx::store_box(&output.out, column0, token, at.block, to);
  }
}

/// 64 columns of a warp's latents, scaled, to its first box.
template <class T>
__device__ void stage_latents(uint32_t box, const float (*sums)[4], float scaling) {
#pragma unroll
  for (int v = 0; v < 8; v += 2) stage_columns<T>(box, v, sums[v], sums[v + 1], scaling);
}

/// Where a gradient's number lies in a warp's boxes, as fp32. Eights of ranks change places, so
/// that no way through it meets one bank all the time.
__device__ inline int place_in_boxes(int row, int rank) {
  return row * 64 + (rank ^ (row & 7) * 8);
}

/// 64 ranks of a warp's 16 columns of an activation to its boxes.
__device__ inline void stage_gradient(float* boxes, const float (*sums)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int v = 0; v < 8; ++v) {
    const int row = lane / 4, rank = v * 8 + lane % 4 * 2;
    *reinterpret_cast<float2*>(boxes + place_in_boxes(row, rank)) = {sums[v][0], sums[v][1]};
    *reinterpret_cast<float2*>(boxes + place_in_boxes(row + 8, rank)) = {sums[v][2], sums[v][3]};
  }
}

}  // namespace gralora::extended_product

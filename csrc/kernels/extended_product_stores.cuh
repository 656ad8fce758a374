// How a warp's sums of an extended product leave: a tile's rows by bulk stores, latents and
// gradients by ordinary ones. Each warp has boxes in shared memory for it (kBoxes).
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
    const uint32_t to = boxes + box % kBoxes * kBoxBytes;
    if (lane == 0) ptx::wait_for_box_reads<kBoxes - 1>();
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
    if (lane == 0) ptx::store_box(&output.out, column0, token, at.block, to);
  }
}

/// A warp's 16 rows of latents of one block of the rows: to the plane of each block of the result,
/// 16 bytes at a time, from `first` on. Its boxes are not under way.
template <class T, int kParts>
__device__ void store_latents(const Projection& p, const float (*sums)[4], int token, int first,
                              uint32_t box) {
  constexpr int kChunks = kBoxColumns / kChunk;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  T* const latent = static_cast<T*>(p.latent) + first;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
#pragma unroll
    for (int v = 0; v < 8; v += 2) {
      stage_columns<T>(box, v, sums[part * 8 + v], sums[part * 8 + v + 1], p.scaling);
    }
    __syncwarp();
    const int chunk = lane % kChunks, column = part * kBoxColumns + chunk * kChunk;
    const int q = column / p.s;
    T* const to = latent + q * p.plane + (column - q * p.s);
#pragma unroll
    for (int row = lane / kChunks; row < kBoxRows; row += 32 / kChunks) {
      if (column >= p.columns || token + row >= p.T) continue;
      const uint4 values = ptx::load_chunk(box + row * 128 + (chunk ^ (row & 7)) * 16);
      *reinterpret_cast<uint4*>(to + (token + row) * p.pitch) = values;
    }
    __syncwarp();
  }
}

/// A warp's 16 columns of an activation, of a gradient's sums: 64 ranks at a time by way of
/// `staging`, so that the code is short and neighbouring lanes store neighbouring numbers whichever
/// axis is contiguous.
template <int kParts, class Out>
__device__ void store_gradient(const GradientSum& sum, const float (*sums)[4], int block,
                               int column, float* staging) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // Eights of ranks change places, so that neither way through it meets one bank all the time.
  const auto place = [](int row, int rank) { return row * 64 + (rank ^ (row & 7) * 8); };
  Out* const out = static_cast<Out*>(sum.out) + int64_t{block} * sum.width * sum.rank;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
#pragma unroll
    for (int v = 0; v < 8; ++v) {
      const float(&e)[4] = sums[part * 8 + v];
      const int row = lane / 4, rank = v * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(staging + place(row, rank)) = {e[0], e[1]};
      *reinterpret_cast<float2*>(staging + place(row + 8, rank)) = {e[2], e[3]};
    }
    __syncwarp();
#pragma unroll 4
    for (int e = lane; e < kBoxRows * 64; e += 32) {
      const int row = sum.rank_first ? e % kBoxRows : e / 64;
      const int in_part = sum.rank_first ? e / kBoxRows : e % 64;
      const int width = column + row, rank = part * 64 + in_part;
      if (width >= sum.width || rank >= sum.rank) continue;
      out[sum.rank_first ? int64_t{rank} * sum.width + width : int64_t{width} * sum.rank + rank] =
          Out(staging[place(row, in_part)]);
    }
    __syncwarp();
  }
}

template <int kParts>
__device__ void store_gradient(const GradientSum& sum, const float (*sums)[4], int block,
                               int column, float* staging) {
  switch (sum.out_type) {
    case ElementType::kFloat32:
      return store_gradient<kParts, float>(sum, sums, block, column, staging);
    case ElementType::kBFloat16:
      return store_gradient<kParts, __nv_bfloat16>(sum, sums, block, column, staging);
    default:
      return store_gradient<kParts, __half>(sum, sums, block, column, staging);
  }
}

}  // namespace gralora::extended_product

// out[b, r, c] = sum_t left[b, t, r] * right[b, t, c] for bfloat16 and float16 operands: dA_j from
// x_j and G_j, dB_i from H_i and dy_i, dlora_A from lora_G and x, dlora_B from dy and lora_H, all
// of one call in one launch.
//
// A CTA owns 64 x 64 numbers of one gradient (kernels/block_product.cuh) and walks along all
// tokens, so that a sum is made in one order, in fp32, and rounded once, to the gradient's dtype.
// That gives enough CTAs to fill a chip only because a layer is wide: the walk is not split, and
// the kernel is for so few tokens that it is short (dispatch/select_weight_gradient.cpp).
//
// Both operands lie with the tokens along rows, so both are transposed on their way into fragments.
// Shared memory: four stages of 16 KiB. Instantiated by weight_gradient_bf16.cu and
// weight_gradient_fp16.cu, called by weight_gradient.cu.
#pragma once

#include "kernels/block_product.cuh"
#include "kernels/weight_gradient.h"

namespace gralora::weight_gradient {

using GradientTile = Tile<kGradientTile, kGradientTile, 64, 4, 2, 1, 4>;

__host__ __device__ inline int64_t count_tiles(const TokenSum& sum) {
  return int64_t{sum.blocks} * ((sum.rows + GradientTile::kRows - 1) / GradientTile::kRows) *
         ((sum.columns + GradientTile::kColumns - 1) / GradientTile::kColumns);
}

template <class Out>
__device__ void store(const Sums<GradientTile>& sums, const TokenSum& sum, int64_t block, int row0,
                      int column0) {
  const WarpPlace<GradientTile> place;
  Out* const out = static_cast<Out*>(sum.out) + block * sum.rows * sum.columns;
  const bool pairs = sum.columns % 2 == 0;
#pragma unroll
  for (int half = 0; half < GradientTile::kWarpRows / 8; ++half) {
    const int row = row0 + place.row + half * 8 + place.lane / 4;
    if (row >= sum.rows) continue;
#pragma unroll
    for (int v = 0; v < GradientTile::kWarpColumns / 8; ++v) {
      const int column = column0 + place.column + v * 8 + place.lane % 4 * 2;
      if (column >= sum.columns) continue;
      const float first = sums.value[half / 2][v][half % 2 * 2];
      const float second = sums.value[half / 2][v][half % 2 * 2 + 1];
      Out* const to = out + int64_t{row} * sum.columns + column;
      if (pairs) {
        struct alignas(2 * sizeof(Out)) Pair {
          Out first, second;
        };
        *reinterpret_cast<Pair*>(to) = {Out(first), Out(second)};
      } else {
        to[0] = Out(first);
        if (column + 1 < sum.columns) to[1] = Out(second);
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(GradientTile::kThreads, 2)
    weight_gradient_kernel(const WeightGradientParams p) {
  extern __shared__ __align__(128) unsigned char ring[];
  int64_t tile = blockIdx.x;
  int which = 0;
  while (which + 1 < p.count && tile >= count_tiles(p.sums[which])) {
    tile -= count_tiles(p.sums[which]);
    ++which;
  }
  const TokenSum& sum = p.sums[which];
  const auto column_tiles =
      static_cast<uint32_t>((sum.columns + GradientTile::kColumns - 1) / GradientTile::kColumns);
  const auto row_tiles =
      static_cast<uint32_t>((sum.rows + GradientTile::kRows - 1) / GradientTile::kRows);
  const auto index = static_cast<uint32_t>(tile);
  const int column0 = static_cast<int>(index % column_tiles) * GradientTile::kColumns;
  const int row0 = static_cast<int>(index / column_tiles % row_tiles) * GradientTile::kRows;
  const auto block = static_cast<int64_t>(index / column_tiles / row_tiles);

  const Operand<T> left{static_cast<const T*>(sum.left) + block * sum.left_block_stride + row0,
                        sum.left_pitch, sum.rows - row0};
  const Operand<T> right{
      static_cast<const T*>(sum.right) + block * sum.right_block_stride + column0, sum.right_pitch,
      sum.columns - column0};
  Sums<GradientTile> sums;
  accumulate_product<T, GradientTile, false, false>(sums, mma::shared_address(ring), left, right,
                                                    p.T);
  switch (sum.out_type) {
    case ElementType::kFloat32:
      return store<float>(sums, sum, block, row0, column0);
    case ElementType::kBFloat16:
      return store<__nv_bfloat16>(sums, sum, block, row0, column0);
    default:
      return store<__half>(sums, sum, block, row0, column0);
  }
}

template <class T>
cudaError_t launch(const WeightGradientParams& p, cudaStream_t stream) {
  const auto kernel = weight_gradient_kernel<T>;
  const cudaError_t status = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, GradientTile::kSharedBytes);
  if (status != cudaSuccess) return status;
  int64_t tiles = 0;
  for (int which = 0; which < p.count; ++which) tiles += count_tiles(p.sums[which]);
  if (tiles == 0) return cudaSuccess;
  kernel<<<static_cast<unsigned>(tiles), GradientTile::kThreads, GradientTile::kSharedBytes,
           stream>>>(p);
  return cudaGetLastError();
}

cudaError_t launch_bf16(const WeightGradientParams& params, cudaStream_t stream);
cudaError_t launch_fp16(const WeightGradientParams& params, cudaStream_t stream);

}  // namespace gralora::weight_gradient

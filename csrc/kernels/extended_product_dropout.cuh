// Dropout of what the adapter adds to a tile, in the registers that hold its sums: after the steps
// over latents and before those over the base product's rows, which are not dropped.
#pragma once

#include "kernels/dropout_mask.cuh"
#include "kernels/extended_product_params.cuh"
#include "kernels/quad.cuh"

namespace gralora::extended_product {

/// A warp's 16 rows. Four lanes hold the eight columns of a group of the generator, two each: each
/// of them makes the numbers of another group, and they swap.
template <class Tile>
__device__ void drop_sums(const Params& p, float (&sums)[Tile::kColumns / 8][4],
                          const TilePlace& at, int warp) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t column = int64_t{at.block} * p.outputs[at.output].width + at.column;
  const ChunkDropout dropout(p.dropout, p.row_width, at.token + warp * kBoxRows + lane / kQuad,
                             column + lane % kQuad * philox::kGroup);
  const auto scale = static_cast<float>(p.dropout.rule.scale);
  const auto drop = [&](float& sum, uint32_t number) {
    sum = dropout.keeps(number) ? sum * scale : 0.0f;
  };
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int v = 0; v < Tile::kColumns / 8; v += kQuad) {
      philox::Words words = dropout.numbers(half * 8, v * philox::kGroup);
      transpose_pieces(words.word, lane);
#pragma unroll
      for (int i = 0; i < kQuad; ++i) {
        drop(sums[v + i][half * 2], words.word[i] & 0xffff);
        drop(sums[v + i][half * 2 + 1], words.word[i] >> 16);
      }
    }
  }
}

}  // namespace gralora::extended_product

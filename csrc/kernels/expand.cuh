// out[t, (i, o)] = drop(sum_q H[i, t, q] * B[i, q, o] + sum_q lora_H[t, q] * lora_B[(i, o), q])
//                + bias[(i, o)] (+ out)
// for bfloat16 and float16: the adapter's term of y from H, B, lora_H, lora_B, and that of dx from
// G, A transposed, lora_G, lora_A.
//
// A CTA owns a tile of one block (kernels/block_product.cuh); the depth is the rank, so most of its
// time is the store. Grid part and plain part go into the same sums, which are rounded once:
// together, and with bias and `out` where the term is added to them. Four lanes hold eight
// neighbouring columns of four fragments in pieces; they swap them, so that each has one fragment's
// eight columns whole: 16 bytes to read and write, and one group of the dropout generator.
//
// Tile 128 x 128 reads each latent and each number of a factor least often, 64 x 64 gives more CTAs
// where tokens are few. Where the caller says that the factors are ready, they are read while the
// kernel ahead still computes latents.
//
// Shared memory: three stages of 8 or 16 KiB. Instantiated by expand_bf16.cu and expand_fp16.cu,
// called by expand.cu.
#pragma once

#include "kernels/block_product.cuh"
#include "kernels/expand.h"
#include "kernels/launch.cuh"
#include "kernels/quad.cuh"

namespace gralora::expand {

using SmallTile = Tile<64, 64, 32, 4, 2, 1, 3>;
using LargeTile = Tile<128, 128, 32, 2, 4, 1, 3>;

/// The latents come from the kernel ahead, the factors do not.
struct WaitForLatents {
  __device__ void operator()() const {
    ptx::wait_for_earlier_kernels();
    ptx::release_next_kernel();
  }
};

template <class T, class Tile, bool kRankIsContiguous>
__device__ void accumulate_part(Sums<Tile>& sums, uint32_t ring, const ExpandPart& part,
                                const T* latent, const T* factor, int tokens, int columns) {
  accumulate_product<T, Tile, true, kRankIsContiguous>(
      sums, ring, {latent, part.latent_pitch, tokens}, {factor, part.factor_pitch, columns},
      part.rank, NoDropout{}, WaitForLatents{});
}

/// A part's contribution to the tile at token0 and at `column0` of block `block`.
template <class T, class Tile>
__device__ void add_part(Sums<Tile>& sums, uint32_t ring, const ExpandPart& part, int64_t block,
                         int64_t token0, int64_t column0, int tokens, int columns) {
  if (part.rank == 0) return;
  const T* latent =
      static_cast<const T*>(part.latent) + block * part.latent_plane + token0 * part.latent_pitch;
  const T* factor = static_cast<const T*>(part.factor) + block * part.factor_block_stride;
  if (part.rank_is_contiguous) {
    accumulate_part<T, Tile, true>(sums, ring, part, latent, factor + column0 * part.factor_pitch,
                                   tokens, columns);
  } else {
    accumulate_part<T, Tile, false>(sums, ring, part, latent, factor + column0, tokens, columns);
  }
}

/// One CTA's work.
template <class T, class Tile_, bool kDrops>
struct Expansion {
  using Params = ExpandParams;
  using Tile = Tile_;
  static_assert(Tile::kWarpColumns == kQuad * 8, "a lane takes one of four fragments whole");
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kSharedBytes = Tile::kSharedBytes;
  // Four small CTAs share a processor: with as few steps as a rank has, more of them hide more
  // latency.
  static constexpr int kBlocksPerProcessor = Tile::kSums <= 16 ? 4 : 2;

  __device__ static void run(const Params& p, uint32_t index, unsigned char* ring) {
    if (!p.factors_are_ready) WaitForLatents{}();
    const auto tiles = static_cast<uint32_t>((p.width + Tile::kColumns - 1) / Tile::kColumns);
    const int column0 = static_cast<int>(index % tiles) * Tile::kColumns;
    const auto block = static_cast<int64_t>(index / tiles % static_cast<uint32_t>(p.blocks));
    const int64_t token0 =
        static_cast<int64_t>(index / tiles / static_cast<uint32_t>(p.blocks)) * Tile::kRows;
    const int tokens = static_cast<int>(min(p.T - token0, int64_t{Tile::kRows}));
    const int columns = p.width - column0;

    Sums<Tile> sums;
    const uint32_t shared = ptx::shared_address(ring);
    add_part<T>(sums, shared, p.grid, block, token0, column0, tokens, columns);
    add_part<T>(sums, shared, p.plain, 0, token0, block * p.width + column0, tokens, columns);

    const WarpPlace<Tile> place;
    const int64_t pitch = int64_t{p.blocks} * p.width;
    const int column = place.column + place.lane % kQuad * 8;  // of the fragment this lane takes
    const int64_t out_column = block * p.width + column0 + column;
    T* const out = static_cast<T*>(p.out) + token0 * pitch + out_column;
    float bias[kQuad][2] = {};  // of the columns that this lane holds
    if (p.bias != nullptr) {
#pragma unroll
      for (int v = 0; v < kQuad; ++v) {
        const int held = place.column + v * 8 + place.lane % kQuad * 2;
        if (held >= columns) continue;
        const Pair<T> pair = *reinterpret_cast<const Pair<T>*>(static_cast<const T*>(p.bias) +
                                                               block * p.width + column0 + held);
        bias[v][0] = static_cast<float>(pair.first);
        bias[v][1] = static_cast<float>(pair.second);
      }
    }
    const float scale = kDrops ? static_cast<float>(p.dropout.rule.scale) : 1.0f;
    const auto dropout = [&] {
      if constexpr (kDrops) {
        return ChunkDropout(p.dropout, pitch, token0, out_column);
      } else {
        return NoDropout{};
      }
    }();
#pragma unroll
    for (int half = 0; half < Tile::kWarpRows / 8; ++half) {
      const int row = place.row + half * 8 + place.lane / kQuad;
      uint4* const to = reinterpret_cast<uint4*>(out + row * pitch);
      const bool inside = row < tokens && column < columns;
      alignas(16) uint32_t before[kQuad] = {};
      if (p.accumulate) {
        if (inside) *reinterpret_cast<uint4*>(before) = *to;
        transpose_pieces(before, place.lane);
      }
      alignas(16) uint32_t after[kQuad];
#pragma unroll
      for (int v = 0; v < kQuad; ++v) {
        float first = sums.value[half / 2][v][half % 2 * 2] * scale + bias[v][0];
        float second = sums.value[half / 2][v][half % 2 * 2 + 1] * scale + bias[v][1];
        if (p.accumulate) {
          const Pair<T> pair = *reinterpret_cast<const Pair<T>*>(&before[v]);
          first += static_cast<float>(pair.first);
          second += static_cast<float>(pair.second);
        }
        after[v] = round_pair<T>(first, second);
      }
      transpose_pieces(after, place.lane);
      uint4 chunk = *reinterpret_cast<const uint4*>(after);
      if constexpr (kDrops) {
        chunk = dropout(chunk, row, 0);
      }
      if (inside) *to = chunk;
    }
  }
};

template <class Tile>
int64_t count_blocks(const ExpandParams& p) {
  return (p.T + Tile::kRows - 1) / Tile::kRows * p.blocks *
         ((p.width + Tile::kColumns - 1) / Tile::kColumns);
}

template <class T, class Tile, ExpandTile tile>
cudaError_t launch_tile(const ExpandParams& p, cudaStream_t stream) {
  static_assert(Tile::kRows == size_of(tile).tokens && Tile::kColumns == size_of(tile).columns);
  const int64_t blocks = count_blocks<Tile>(p);
  return p.dropout.rng_state != nullptr ? start_work<Expansion<T, Tile, true>>(blocks, p, stream)
                                        : start_work<Expansion<T, Tile, false>>(blocks, p, stream);
}

template <class T>
cudaError_t launch(const ExpandParams& p, cudaStream_t stream) {
  switch (p.tile) {
    case ExpandTile::k64x64:
      return launch_tile<T, SmallTile, ExpandTile::k64x64>(p, stream);
    case ExpandTile::k128x128:
      return launch_tile<T, LargeTile, ExpandTile::k128x128>(p, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_bf16(const ExpandParams& params, cudaStream_t stream);
cudaError_t launch_fp16(const ExpandParams& params, cudaStream_t stream);

}  // namespace gralora::expand

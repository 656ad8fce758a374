// A tile of a product whose depth is split among the CTAs of a thread block cluster (compute
// capability 9.0 and newer): they run at the same time and read each other's shared memory.
#pragma once

#include "kernels/block_product.cuh"
#include "kernels/project_tiles.h"

namespace gralora::cluster {

/// Adds the sums of a cluster's `blocks` CTAs in the order of their ranks, so that the same inputs
/// give the same bits. Each CTA ends with its share of them: `finish(v, half, first, second)` gets
/// the sums [half / 2][v][half % 2 * 2] and the one after, on the threads of the warps that hold a
/// tile's sums (add_over_depth). Every thread of the cluster calls it; `ring` is no longer needed
/// for anything else but add_over_depth's exchange.
template <class Tile, class Finish>
__device__ void add_over_cluster(const Sums<Tile>& sums, unsigned char* ring, int blocks,
                                 const Finish& finish) {
  constexpr int kHolders = 32 * Tile::kWarpsRows * Tile::kWarpsColumns;
  constexpr int kHalves = Tile::kWarpRows / 8;
  constexpr int kPairs = Tile::kWarpColumns / 8 * kHalves;
  static_assert(Tile::kExchangeBytes + kHolders * Tile::kSums * 4 <= Tile::kSharedBytes);
  const bool holds = threadIdx.x < kHolders;
  float2* const mine =
      reinterpret_cast<float2*>(ring + Tile::kExchangeBytes) + threadIdx.x % kHolders;
  if (holds) {
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const int v = pair / kHalves, half = pair % kHalves;
      mine[pair * kHolders] = {sums.value[half / 2][v][half % 2 * 2],
                               sums.value[half / 2][v][half % 2 * 2 + 1]};
    }
  }
  ptx::synchronize_cluster();
  if (holds) {
    const uint32_t address = ptx::shared_address(mine);
    for (int pair = static_cast<int>(ptx::cluster_rank()); pair < kPairs; pair += blocks) {
      float2 part[kMostProjectSplits];
#pragma unroll
      for (int other = 0; other < kMostProjectSplits; ++other) {
        if (other < blocks) {
          part[other] =
              ptx::load_pair_of_block(address + pair * kHolders * 8, static_cast<uint32_t>(other));
        }
      }
      float2 total = part[0];
#pragma unroll
      for (int other = 1; other < kMostProjectSplits; ++other) {
        if (other < blocks) total = {total.x + part[other].x, total.y + part[other].y};
      }
      finish(pair / kHalves, pair % kHalves, total.x, total.y);
    }
  }
  ptx::synchronize_cluster();  // nobody's memory goes while another one reads it
}

}  // namespace gralora::cluster

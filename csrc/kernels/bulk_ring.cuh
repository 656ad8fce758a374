// A ring of stages in shared memory that bulk copies fill and warpgroups empty, for compute
// capability 9.0a.
//
// Each stage has two barriers. `filled` ends a phase when all bytes of the stage have come, `freed`
// when every warp that multiplies has done with them, in all CTAs of the cluster where copies go to
// all of them. A stage is used once in every round through the ring, so whoever waits knows the
// phase by the round's parity.
#pragma once

#include "kernels/bulk_sizes.h"
#include "kernels/ptx_sm90.cuh"

namespace gralora {

/// A place in the ring and the parity of the round, as both sides walk through it.
template <int kStages>
struct Turn {
  int stage = 0;
  uint32_t round = 0;

  __device__ void advance() {
    if (++stage < kStages) return;
    stage = 0;
    round ^= 1;
  }
};

/// `Tile` has kStages, kLeftBytes, kStageBytes, kThreads (that multiply) and kCluster.
template <class Tile>
class BulkRing {
 public:
  using Turn = gralora::Turn<Tile::kStages>;
  /// `stages` is aligned to 1024 bytes. Every thread of the CTA makes one, before anything else.
  __device__ BulkRing(const unsigned char* stages, const unsigned char* barriers)
      : stages_(ptx::shared_address(stages)), barriers_(ptx::shared_address(barriers)) {
    if (threadIdx.x == 0) {
      for (int stage = 0; stage < Tile::kStages; ++stage) {
        ptx::make_barrier(filled(stage), 1);
        ptx::make_barrier(freed(stage), Tile::kThreads / 32 * Tile::kCluster);
      }
      ptx::publish_barriers();
    }
    if constexpr (Tile::kCluster > 1) {
      ptx::synchronize_cluster();
    } else {
      __syncthreads();
    }
  }

  __device__ uint32_t left(const Turn& turn) const {
    return stages_ + turn.stage * Tile::kStageBytes;
  }
  __device__ uint32_t right(const Turn& turn) const { return left(turn) + Tile::kLeftBytes; }

  /// Waits for the stage and announces its bytes; the barrier that the copies report to.
  __device__ uint32_t begin_filling(const Turn& turn) const {
    wait_until_free(turn);
    return announce(turn, Tile::kStageBytes);
  }
  __device__ void wait_until_free(const Turn& turn) const {
    ptx::wait(freed(turn.stage), turn.round ^ 1);  // a fresh barrier lets the first round pass
  }
  __device__ uint32_t announce(const Turn& turn, int bytes) const {
    ptx::arrive_and_expect(filled(turn.stage), bytes);
    return filled(turn.stage);
  }
  __device__ void wait_until_filled(const Turn& turn) const {
    ptx::wait(filled(turn.stage), turn.round);
  }

  /// By every warp that multiplies, to all CTAs whose copies come here.
  __device__ void free(int stage) const {
    const uint32_t lane = threadIdx.x % 32;
    if constexpr (Tile::kCluster > 1) {
      if (lane < Tile::kCluster) ptx::arrive_at_block(freed(stage), lane);
    } else if (lane == 0) {
      ptx::arrive(freed(stage));
    }
  }

 private:
  __device__ uint32_t filled(int stage) const { return barriers_ + stage * kBarrierBytes; }
  __device__ uint32_t freed(int stage) const { return filled(stage) + 8; }

  uint32_t stages_, barriers_;
};

}  // namespace gralora

// The product of block_product.cuh by compute capability 9.0a's own means: one thread asks for
// whole boxes of both operands (bulk copies through tensor maps), warpgroups multiply them where
// they lie in shared memory.
//
// Each stage of the ring has two barriers. `filled` ends a phase when all bytes of the stage have
// come, `freed` when every warp that multiplies has done with them. A stage is used once in every
// round through the ring, so both wait for the parity of the round. The copying warp runs as far
// ahead as there are stages: with one CTA or two on an SM, 190 KiB and more are on their way.
//
// Boxes that reach beyond the tensor, along any axis, are filled up with zeros, in both operands
// along the depth: an Inf or NaN reaches only its own row or column.
#pragma once

#include "kernels/bulk_tile.cuh"
#include "kernels/ptx_sm90.cuh"

namespace gralora {

template <int kWarpgroups, int kColumns, bool kLeftDepth, bool kRightDepth, int kBlocks>
__device__ void BulkTile<kWarpgroups, kColumns, kLeftDepth, kRightDepth, kBlocks>::synchronize() {
  ptx::synchronize_threads<kThreads>();
}

/// An operand [blocks, ...], whose part for a CTA begins at row or column `extent`, at `depth`.
struct BoxedOperand {
  const CUtensorMap* map;
  int block, extent, depth;
};

/// The ring of stages in shared memory.
template <class Tile>
class BulkRing {
 public:
  /// `memory` is aligned to 1024 bytes. Every thread of the CTA makes one, before anything else.
  __device__ explicit BulkRing(const unsigned char* memory) : stages_(ptx::shared_address(memory)) {
    if (threadIdx.x == 0) {
      for (int step = 0; step < Tile::kStages; ++step) {
        ptx::make_barrier(filled(step), 1);
        ptx::make_barrier(freed(step), Tile::kThreads / 32);
      }
      ptx::publish_barriers();
    }
    __syncthreads();
  }

  __device__ uint32_t left(int step) const { return stages_ + stage(step) * Tile::kStageBytes; }
  __device__ uint32_t right(int step) const { return left(step) + Tile::kLeftBytes; }

  /// Waits for the stage and announces its bytes; the barrier that the copies report to.
  __device__ uint32_t begin_filling(int step) const {
    if (step >= Tile::kStages) ptx::wait(freed(step), round(step) ^ 1);
    ptx::arrive_and_expect(filled(step), Tile::kStageBytes);
    return filled(step);
  }
  __device__ void wait_until_filled(int step) const { ptx::wait(filled(step), round(step)); }

  /// By every warp that multiplies.
  __device__ void free(int step) const {
    if (threadIdx.x % 32 == 0) ptx::arrive(freed(step));
  }

 private:
  __device__ static int stage(int step) { return step % Tile::kStages; }
  __device__ static uint32_t round(int step) {
    return static_cast<uint32_t>(step / Tile::kStages % 2);
  }
  __device__ uint32_t filled(int step) const {
    return stages_ + Tile::kStages * Tile::kStageBytes + stage(step) * Tile::kBarrierBytes;
  }
  __device__ uint32_t freed(int step) const { return filled(step) + 8; }

  uint32_t stages_;
};

/// One operand's boxes of a stage. kParts of 64 rows or columns each, or all of them in one box.
template <bool kDepthIsContiguous, int kParts, int kPartBytes>
__device__ void copy_boxes(uint32_t to, const BoxedOperand& operand, int done, uint32_t barrier) {
  const int depth = operand.depth + done;
  if constexpr (kDepthIsContiguous) {
    ptx::copy_box(to, operand.map, depth, operand.extent, operand.block, barrier);
  } else {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      ptx::copy_box(to + part * kPartBytes, operand.map, operand.extent + part * 64, depth,
                    operand.block, barrier);
    }
  }
}

/// sums += left right over `steps` times Tile::kDepth, on the threads that hold them; the last warp
/// copies. All threads of the CTA come here together, after the kernels before.
template <class T, class Tile>
__device__ void accumulate_boxes(Sums<Tile>& sums, const unsigned char* memory,
                                 const BoxedOperand& left, const BoxedOperand& right, int steps) {
  const BulkRing<Tile> ring(memory);
  if (threadIdx.x >= Tile::kThreads) {
    if (threadIdx.x > Tile::kThreads) return;  // one thread copies
    for (int step = 0; step < steps; ++step) {
      const uint32_t filled = ring.begin_filling(step);
      copy_boxes<Tile::kLeftDepth, Tile::kRows / 64, Tile::kPartBytes>(ring.left(step), left,
                                                                       step * Tile::kDepth, filled);
      copy_boxes<Tile::kRightDepth, Tile::kRightParts, Tile::kPartBytes>(
          ring.right(step), right, step * Tile::kDepth, filled);
    }
    return;
  }
  constexpr int kPartColumns = Tile::kColumns / Tile::kRightParts;
  const int group = static_cast<int>(threadIdx.x) / 128;
  for (int step = 0; step < steps; ++step) {
    ring.wait_until_filled(step);
    ptx::begin_products();
#pragma unroll
    for (int k = 0; k < Tile::kDepth; k += 16) {
      const uint64_t rows =
          ptx::describe_part<Tile::kLeftDepth>(ring.left(step) + group * Tile::kPartBytes, k);
#pragma unroll
      for (int part = 0; part < Tile::kRightParts; ++part) {
        ptx::multiply_add_parts<T, kPartColumns, Tile::kLeftDepth, Tile::kRightDepth>(
            &sums.value[0][part * 8], rows,
            ptx::describe_part<Tile::kRightDepth>(ring.right(step) + part * Tile::kPartBytes, k));
      }
    }
    ptx::commit_products();
    ptx::wait_for_products();
    ring.free(step);
  }
  // What comes after may use the ring's memory.
  Tile::synchronize();
}

}  // namespace gralora

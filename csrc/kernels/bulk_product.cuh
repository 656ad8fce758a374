// The product of block_product.cuh by compute capability 9.0a's own means: one thread asks for
// whole boxes of both operands (bulk copies through tensor maps), warpgroups multiply them where
// they lie in shared memory.
//
// The copying thread runs as far ahead as the ring has stages (bulk_ring.cuh): with one CTA or two
// on an SM, 190 KiB and more are on their way.
//
// Boxes that reach beyond the tensor, along any axis, are filled up with zeros, in both operands
// along the depth: an Inf or NaN reaches only its own row or column.
#pragma once

#include "kernels/bulk_dropout.cuh"
#include "kernels/bulk_ring.cuh"
#include "kernels/bulk_tile.cuh"
#include "kernels/ptx_products_sm90.cuh"

namespace gralora {

template <int kWarpgroups, int kColumns, bool kLeftDepth, bool kRightDepth, int kBlocks,
          bool kDrops>
__device__ void
BulkTile<kWarpgroups, kColumns, kLeftDepth, kRightDepth, kBlocks, kDrops>::synchronize() {
  ptx::synchronize_threads<kThreads>();
}

/// An operand [blocks, ...], whose part for a CTA begins at row or column `extent`, at `depth`.
struct BoxedOperand {
  const CUtensorMap* map;
  int block, extent, depth;
};

/// One operand's boxes of a stage. kParts of 64 rows or columns each, or all of them in one box.
template <bool kDepthIsContiguous, int kParts>
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

/// A CTA's ring, with the barriers of what is dropped. Every thread of the CTA makes one, before
/// anything else.
template <class Tile>
struct BulkStages {
  DroppedStages<Tile> dropped;
  BulkRing<Tile> ring;

  __device__ explicit BulkStages(const unsigned char* memory)
      : dropped(memory + Tile::kDroppedAt), ring(memory, memory + Tile::kBarriersAt) {}
};

/// sums += drop(left) right over `steps` times Tile::kDepth, on the threads that hold them; the
/// warp behind them copies, those behind it drop where the tile can. All threads of the CTA come
/// here together, after the kernels before.
template <class T, class Tile>
__device__ void accumulate_boxes(Sums<Tile>& sums, const BulkStages<Tile>& stages,
                                 const BoxedOperand& left, const BoxedOperand& right, int steps,
                                 const BoxedDropout& dropout) {
  const BulkRing<Tile>& ring = stages.ring;
  typename BulkRing<Tile>::Turn turn;
  if (Tile::kDrops && threadIdx.x >= Tile::kThreads + 32) {
    if (dropout.acts) stages.dropped.drop(ring, dropout, steps);
    return;
  }
  if (threadIdx.x >= Tile::kThreads) {
    if (!ptx::is_elected()) return;  // one thread copies
    for (int step = 0; step < steps; ++step, turn.advance()) {
      const uint32_t filled = ring.begin_filling(turn);
      copy_boxes<Tile::kLeftDepth, Tile::kRows / 64>(ring.left(turn), left, step * Tile::kDepth,
                                                     filled);
      copy_boxes<Tile::kRightDepth, Tile::kRightParts>(ring.right(turn), right, step * Tile::kDepth,
                                                       filled);
    }
    return;
  }
  constexpr int kPartColumns = Tile::kColumns / Tile::kRightParts;
  const int group = ptx::of_warp(static_cast<int>(threadIdx.x) / 128);
  for (int step = 0; step < steps; ++step, turn.advance()) {
    ring.wait_until_filled(turn);
    if (Tile::kDrops && dropout.acts) stages.dropped.wait(turn);
    ptx::begin_products();
#pragma unroll
    for (int k = 0; k < Tile::kDepth; k += 16) {
      const uint64_t rows =
          ptx::describe_part<Tile::kLeftDepth>(ring.left(turn) + group * kPartBytes, k);
#pragma unroll
      for (int part = 0; part < Tile::kRightParts; ++part) {
        ptx::multiply_add_parts<T, kPartColumns, Tile::kLeftDepth, Tile::kRightDepth>(
            &sums.value[0][part * 8], rows,
            ptx::describe_part<Tile::kRightDepth>(ring.right(turn) + part * kPartBytes, k));
      }
    }
    ptx::commit_products();
    ptx::wait_for_products<0>();
    ring.free(turn.stage);
  }
#pragma unroll
  for (int v = 0; v < Tile::kColumns / 8; ++v) ptx::hold(sums.value[0][v]);
  // What comes after may use the ring's memory.
  Tile::synchronize();
}

}  // namespace gralora

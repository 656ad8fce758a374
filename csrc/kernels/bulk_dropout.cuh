// Dropout of a product's left operand where bulk copies have brought it (bulk_product.cuh). They
// pass through no thread, so four warps of their own clear what is dropped, in shared memory,
// between a stage's copies and its products: the generator's arithmetic hides under the copies of
// other stages.
#pragma once

#include "kernels/bulk_ring.cuh"
#include "kernels/dropout_mask.cuh"

namespace gralora {

/// Where the left operand lies in the tensor that goes through dropout: [T, width], by the row and
/// column at which it begins. Not every product of a launch drops.
struct BoxedDropout {
  DropoutSource source;
  int64_t width, row, column;
  bool acts;
};

/// The stages whose left operand has been dropped, one barrier each, beside those of the ring; none
/// of a tile that does not drop.
template <class Tile>
class DroppedStages {
 public:
  using Turn = typename BulkRing<Tile>::Turn;
  /// Before the CTA's ring, which shows the barriers.
  __device__ explicit DroppedStages(const unsigned char* barriers)
      : barriers_(ptx::shared_address(barriers)) {
    if constexpr (Tile::kDrops) {
      if (threadIdx.x != 0) return;
      for (int stage = 0; stage < Tile::kStages; ++stage) {
        ptx::make_barrier(barrier(stage), Tile::kDropThreads);
      }
    }
  }

  __device__ void wait(const Turn& turn) const { ptx::wait(barrier(turn.stage), turn.round); }

  /// By the threads that drop: clears the left operand of stage after stage.
  __device__ void drop(const BulkRing<Tile>& ring, const BoxedDropout& boxed, int steps) const {
    constexpr int kPartChunks = kPartBytes / 16, kRowChunks = 8;
    const int thread = static_cast<int>(threadIdx.x) - Tile::kAllThreads + Tile::kDropThreads;
    const ChunkDropout dropout(boxed.source, boxed.width, boxed.row, boxed.column);
    Turn turn;
    for (int step = 0; step < steps; ++step, turn.advance()) {
      ring.wait_until_filled(turn);
#pragma unroll 2
      for (int chunk = 0; chunk < Tile::kRows / 64 * kPartChunks; chunk += Tile::kDropThreads) {
        const int part = (chunk + thread) / kPartChunks;
        const int row = (chunk + thread) % kPartChunks / kRowChunks, column = thread % kRowChunks;
        const uint32_t at =
            ring.left(turn) + part * kPartBytes + row * 128 + (column ^ (row & 7)) * 16;
        // The depth is along the columns or along the rows, the parts along the other.
        const int rows = row + (Tile::kLeftDepth ? part * 64 : step * Tile::kDepth);
        const int columns = column * 8 + (Tile::kLeftDepth ? step * Tile::kDepth : part * 64);
        ptx::store_chunk(at, dropout(ptx::load_chunk(at), rows, columns));
      }
      ptx::show_to_copies();
      ptx::arrive(barrier(turn.stage));
    }
  }

 private:
  __device__ uint32_t barrier(int stage) const { return barriers_ + stage * kDroppedBytes; }

  uint32_t barriers_;
};

}  // namespace gralora

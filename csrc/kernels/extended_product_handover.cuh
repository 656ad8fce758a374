// How the warps of an extended product that multiply hand latents and gradients to those that store
// them. Such results leave by ordinary stores, scattered, and latents with fences behind them: a
// warp that did that itself would keep the tensor cores waiting for 4 us (measured on an H200).
//
// What is handed over are the boxes of all warps, 64 columns of each at a time, and a word that
// says which. Two barriers take turns: one ends its phase when all of them are full, the other when
// they have been read. Every thread arrives for itself: an arrival passes on what its own thread
// has written or read.
#pragma once

#include "kernels/extended_product_tiles.h"
#include "kernels/ptx_sm90.cuh"

namespace gralora::extended_product {

/// The warps that store, beside the one that copies.
constexpr int kStoreWarps = kProductStoreWarps;

template <class Tile>
class Handover {
 public:
  // Two barriers and the word.
  static constexpr int kBytes = 2 * 8 + 8;

  /// By one thread of a CTA, before its first barrier.
  __device__ static void make_barriers(uint32_t memory) {
    const Handover handover(memory);
    ptx::make_barrier(handover.full(), Tile::kThreads);
    ptx::make_barrier(handover.taken(), kStoreWarps * 32);
    ptx::publish_barriers();
  }

  __device__ explicit Handover(uint32_t memory) : memory_(memory) {}

  /// Returns when the boxes may be written again. A warp that multiplies.
  __device__ void wait_until_taken() const { ptx::wait(taken(), turn_ ^ 1); }

  /// After the warp's boxes are full.
  __device__ void give(uint32_t word, int warp) {
    if (warp == 0 && threadIdx.x % 32 == 0) ptx::store_word(this->word(), word);
    ptx::arrive(full());
    turn_ ^= 1;
  }

  /// The word of the next boxes, which are full. A warp that stores.
  __device__ uint32_t take() const {
    ptx::wait(full(), turn_);
    return ptx::load_word(word());
  }

  /// Lets the boxes be written again.
  __device__ void give_back() {
    ptx::arrive(taken());
    turn_ ^= 1;
  }

 private:
  __device__ uint32_t full() const { return memory_; }
  __device__ uint32_t taken() const { return memory_ + 8; }
  __device__ uint32_t word() const { return memory_ + 16; }

  uint32_t memory_;
  uint32_t turn_ = 0;
};

}  // namespace gralora::extended_product

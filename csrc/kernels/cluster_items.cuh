// How the CTAs of a cluster agree on what to do next, for compute capability 9.0a: the first draws
// a number from a counter that all clusters draw from, and sends it to the other.
//
// Whichever cluster is free takes the next item, so it does not matter when clusters start or how
// many of them run at once: a GPU that other kernels share is as full as it can be.
#pragma once

#include "kernels/ptx_sm90.cuh"

namespace gralora {

/// One thread of each CTA has one.
class ClusterItems {
 public:
  // Two barriers, and two words that take turns.
  static constexpr int kBytes = 2 * 8 + 2 * 4;
  static constexpr int kCluster = 2;

  /// By one thread of each CTA, before the cluster's first barrier.
  __device__ static void make_barriers(uint32_t memory) {
    ptx::make_barrier(memory, 1);
    ptx::make_barrier(memory + 8, 1);
    ptx::publish_barriers();
  }

  /// Without a counter the clusters take items in turn.
  __device__ ClusterItems(int32_t* counter, uint32_t memory, int rank)
      : counter_(counter), memory_(memory), rank_(rank) {}

  /// Asks for the next item, and does not wait for it.
  __device__ void look_ahead() {
    if (counter_ == nullptr || rank_ != 0) return;
    ahead_ = ptx::draw_number(counter_);
    has_ahead_ = true;
  }

  /// The next item, or a number beyond the last one.
  __device__ int next() {
    const uint32_t turn = count_++;
    if (counter_ == nullptr) {
      return static_cast<int>((blockIdx.x + turn * gridDim.x) / kCluster);
    }
    const uint32_t sent = memory_, taken = memory_ + 8, word = memory_ + 16 + turn % 2 * 4;
    if (rank_ == 0) {
      if (!has_ahead_) look_ahead();
      has_ahead_ = false;
      ptx::wait(taken, turn % 2 ^ 1);
      ptx::send_word_to_block(word, static_cast<uint32_t>(ahead_), sent, 1);
      return ahead_;
    }
    ptx::arrive_and_expect(sent, 4);
    ptx::wait(sent, turn % 2);
    const auto item = static_cast<int>(ptx::load_word(word));
    ptx::arrive_at_block(taken, 0);
    return item;
  }

 private:
  int32_t* counter_;
  uint32_t memory_;
  int rank_;
  uint32_t count_ = 0;
  int ahead_ = 0;
  bool has_ahead_ = false;
};

}  // namespace gralora

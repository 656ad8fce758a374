// The copying thread of an extended product: all boxes of all items of its CTA, as far ahead as the
// ring has stages.
#pragma once

#include <type_traits>

#include "kernels/bulk_ring.cuh"
#include "kernels/cluster_items.cuh"
#include "kernels/extended_product_params.cuh"

namespace gralora::extended_product {

/// An item as the warps that multiply are told it, by a word that comes with each stage.
constexpr uint32_t kNoItem = ~0u;
__device__ inline uint32_t note_of(const ProductItem& item) {
  return static_cast<uint32_t>(item.index) * 2 + item.projects;
}
__device__ inline ProductItem item_of(uint32_t note) {
  return {(note & 1) != 0, static_cast<int32_t>(note >> 1)};
}

template <class Tile, bool kDepthIsContiguous>
class Copier {
 public:
  __device__ Copier(const Params& p, const BulkRing<Tile>& ring, uint32_t notes,
                    const ClusterItems& items, int rank)
      : p_(p), ring_(ring), notes_(notes), items_(items), rank_(rank) {}

  __device__ void copy_items() {
    const int all = p_.order.items();
    for (int number = items_.next(); number < all; number = items_.next()) {
      const ProductItem item = p_.order[number];
      note_ = note_of(item);
      if (item.projects) {
        copy_projection(place_projection(p_, item.index));
      } else {
        copy_tile(place_tile<Tile>(p_, item.index, rank_));
      }
    }
    note_ = kNoItem;
    begin_filling(0);
  }

 private:
  // So many stages before an item's end the next is asked for: its number is there in time, yet
  // other clusters that are done earlier have had their choice.
  static constexpr int kStepsAhead = 6;
  // So many steps of a projection are on their way to L2: the rows come from far, and the ring alone
  // does not hold enough of them.
  static constexpr int kStepsPrefetched = 16;

  /// Announces the bytes of a stage and of the note beside it.
  __device__ uint32_t begin_filling(int bytes) {
    const uint32_t filled = ring_.begin_filling(turn_, bytes + 4);
    ptx::send_word_to_block(notes_ + turn_.stage * 4, note_, filled, rank_);
    return filled;
  }

  __device__ void copy_tile(const TilePlace& at) {
    const int ask = max(p_.base_steps - kStepsAhead, 0);
    for (int step = 0; step < p_.base_steps; ++step) {
      if (step == ask) items_.look_ahead();
      copy_step<kDepthIsContiguous>(&p_.rows, &p_.weight, step * Tile::kDepth, 0, at);
    }
    if (p_.order.projections > 0) {
      ptx::wait_for_counter(p_.projected + at.token / Tile::kRows, count_projected<Tile>(p_));
      ptx::show_results_to_copies();
    }
    for (int q = 0; q < p_.rank; q += Tile::kDepth) {
      copy_step<!kDepthIsContiguous>(&p_.latent, &p_.factor, q, at.block, at);
    }
  }

  template <bool kRightDepth>
  __device__ void copy_step(const CUtensorMap* left, const CUtensorMap* right, int depth,
                            int left_block, const TilePlace& at) {
    const uint32_t filled = begin_filling(Tile::kStageBytes);
    ptx::copy_box(ring_.left(turn_), left, depth, at.token, left_block, filled);
    copy_share<kRightDepth>(right, depth, at, filled);
    turn_.advance();
  }

  /// This CTA's share of a right operand's stage, to all CTAs of the cluster.
  template <bool kRightDepth>
  __device__ void copy_share(const CUtensorMap* map, int depth, const TilePlace& at,
                             uint32_t filled) {
    constexpr int kParts = Tile::kRightParts / Tile::kCluster;
    constexpr uint16_t kAll = (1 << Tile::kCluster) - 1;
    const uint32_t to = ring_.right(turn_);
    if constexpr (kRightDepth) {
      const int first = rank_ * kParts;
      ptx::copy_box_to_blocks(to + first * kPartBytes, map, depth, at.column + first * 64, at.block,
                              filled, kAll);
    } else {
#pragma unroll
      for (int share = 0; share < kParts; ++share) {
        const int part = rank_ * kParts + share;
        ptx::copy_box_to_blocks(to + part * kPartBytes, map, at.column + part * 64, depth, at.block,
                                filled, kAll);
      }
    }
  }

  __device__ void copy_projection(const ProjectionPlace& at) {
    for (int row = at.first_row; row < at.end_row; ++row) {
      const int token = first_token<Tile>(row, rank_);
      for (int step = 0; step < kStepsPrefetched; ++step) prefetch_step(at, token, step);
      const bool is_last = row == at.end_row - 1;
      copy_projected_row(at, token, is_last);
    }
  }

  /// A step of a row's walk over the blocks' widths, one after the other.
  __device__ void prefetch_step(const ProjectionPlace& at, int token, int step) {
    const int block = step / p_.projection.steps, inside = step - block * p_.projection.steps;
    if (block >= at.blocks) return;
    ptx::prefetch_box(&p_.projection.rows, inside * Tile::kDepth, token, at.first_block + block);
  }

  __device__ void copy_projected_row(const ProjectionPlace& at, int token, bool is_last) {
    const Projection& projection = p_.projection;
    const int stage_steps = steps_of_stage<Tile>(projection);
    const int step_bytes = Tile::kLeftBytes + parts_of(projection.columns) * kPartBytes;
    int left = at.blocks * projection.steps;
    for (int b = 0; b < at.blocks; ++b) {
      for (int step = 0; step < projection.steps; step += stage_steps) {
        const int steps = min(stage_steps, projection.steps - step);
        if (is_last && left > kStepsAhead && left - steps <= kStepsAhead) items_.look_ahead();
        left -= steps;
        const uint32_t filled = begin_filling(steps * step_bytes);
        for (int half = 0; half < steps; ++half) {
          copy_projected_step(token, at.first_block + b, (step + half) * Tile::kDepth,
                              ring_.left(turn_) + half * step_bytes, filled);
          prefetch_step(at, token, b * projection.steps + step + half + kStepsPrefetched);
        }
        turn_.advance();
      }
    }
  }

  __device__ void copy_projected_step(int token, int block, int depth, uint32_t to,
                                      uint32_t filled) {
    const Projection& projection = p_.projection;
    ptx::copy_box(to, &projection.rows, depth, token, block, filled);
    to += Tile::kLeftBytes;
    if constexpr (kDepthIsContiguous) {
      for (int part = 0; part < parts_of(projection.columns); ++part) {
        ptx::copy_box(to + part * kPartBytes, &projection.factor, part * 64, depth, block, filled);
      }
    } else {
      ptx::copy_box(to, &projection.factor, depth, 0, block, filled);
    }
  }

  const Params& p_;
  const BulkRing<Tile>& ring_;
  uint32_t notes_;
  ClusterItems items_;
  int rank_;
  typename BulkRing<Tile>::Turn turn_;
  uint32_t note_ = kNoItem;
};

}  // namespace gralora::extended_product

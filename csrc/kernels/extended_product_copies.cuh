// The copying thread of an extended product: all boxes of all items of its CTA, as far ahead as the
// ring has stages.
#pragma once

#include "kernels/bulk_ring.cuh"
#include "kernels/cluster_items.cuh"
#include "kernels/extended_product_handover.cuh"
#include "kernels/extended_product_params.cuh"

namespace gralora::extended_product {

/// An item as the warps that multiply are told it, by a word that comes with each stage.
constexpr uint32_t kNoItem = ~0u;
__device__ inline uint32_t note_of(const ProductItem& item) {
  return static_cast<uint32_t>(item.index) << 2 | static_cast<uint32_t>(item.work);
}
__device__ inline ProductItem item_of(uint32_t note) {
  return {static_cast<ProductWork>(note & 3), static_cast<int32_t>(note >> 2)};
}

template <class Tile, bool kDepthIsContiguous, bool kDrops>
class Copier {
 public:
  __device__ Copier(const Params& p, const BulkRing<Tile>& ring, uint32_t notes,
                    const ClusterItems& items, int rank)
      : p_(p), ring_(ring), notes_(notes), items_(items), rank_(rank) {}

  __device__ void copy_items() {
    // All that tiles read and write in global memory comes after their first boxes; where all but
    // the latent is there, all that they write comes after their first ones of that.
    if (!p_.latent_is_ahead) ptx::wait_for_earlier_kernels();
    const int all = p_.order.items();
    for (int number = items_.next(); number < all; number = items_.next()) {
      const ProductItem item = p_.order[number];
      note_ = note_of(item);
      switch (item.work) {
        case ProductWork::kTile:
          if constexpr (Tile::kProjects) {
            copy_projecting_tile(place_tile<Tile>(p_, item.index, rank_));
          } else {
            copy_tile(place_tile<Tile>(p_, item.index, rank_));
          }
          break;
        case ProductWork::kProjection:
          if constexpr (!kDrops && !Tile::kProjects)
            copy_projection(place_projection<Tile>(p_, item.index, rank_));
          break;
        case ProductWork::kGradient:
          // Backward passes alone have them.
          if constexpr (!kDepthIsContiguous) {
            copy_gradient(place_gradient<Tile>(p_, item.index, rank_));
          }
      }
    }
    note_ = kNoItem;
    begin_filling(0);
    // Also where all items were gradients that did not wait: the next kernel relies on it.
    ptx::wait_for_earlier_kernels();
  }

 private:
  // So many stages before an item's end the next is asked for: its number is there in time, yet
  // other clusters that are done earlier have had their choice.
  static constexpr int kStepsAhead = 6;

  /// Announces the bytes of a stage, with the note beside it.
  __device__ uint32_t begin_filling(int bytes) {
    ring_.wait_until_free(turn_);
    ptx::store_word(notes_ + turn_.stage * 4, note_);
    return ring_.announce(turn_, bytes);
  }

  __device__ void copy_tile(const TilePlace& at) {
    if constexpr (kDrops) copy_latents(at);
    int until_ask = max(p_.base_steps - kStepsAhead, 0);
    for (int t = 0; t < p_.term_count; ++t) {
      const Term& term = p_.terms[t];
      for (int step = 0; step < term.steps; ++step) {
        if (until_ask-- == 0) items_.look_ahead();
        // One of the two counts is one.
        copy_step<kDepthIsContiguous>(&term.rows, &p_.weights[t + at.output], step * Tile::kDepth,
                                      0, at);
      }
    }
    if constexpr (!kDrops) copy_latents(at);
  }

  /// Of a tile that makes its latents: the columns of the projection's factor come with each step,
  /// and the steps over the other factor find their left operand there.
  __device__ void copy_projecting_tile(const TilePlace& at) {
    constexpr uint16_t kAll = (1 << Tile::kCluster) - 1;
    constexpr int kShare = Tile::kDepth / Tile::kCluster;
    const Output& output = p_.outputs[at.output];
    const ProjectionTerm& term = p_.projection.terms[0];
    const int block = output.first_block + at.block;
    int until_ask = max(p_.base_steps - kStepsAhead, 0), depth = 0;
    for (int inner = 0; inner < term.inner; ++inner) {
      for (int step = 0; step < term.steps; ++step, depth += Tile::kDepth) {
        if (until_ask-- == 0) items_.look_ahead();
        const uint32_t filled = begin_filling(Tile::kStageBytes);
        ptx::copy_box(ring_.left(turn_), &p_.terms[0].rows, depth, at.token, 0, filled);
        copy_share<true>(&p_.weights[at.output], depth, at, filled);
        ptx::copy_box_to_blocks(ring_.right(turn_) + Tile::kRightBytes +
                                    rank_ * Tile::kProjectingBytes / Tile::kCluster,
                                &term.factor, block * kTileLatents,
                                step * Tile::kDepth + rank_ * kShare, inner, filled, kAll);
        turn_.advance();
      }
    }
    copy_share<false>(&output.factor, 0, at, begin_filling(Tile::kRightBytes));
    turn_.advance();
  }

  __device__ void copy_latents(const TilePlace& at) {
    if (p_.order.projections > 0) {
      ptx::wait_for_counter(p_.projected + at.token / Tile::kRows,
                            p_.projection.inner * kStoreWarps);
      ptx::show_results_to_copies();
    }
    ptx::wait_for_earlier_kernels();
    for (int q = 0; q < p_.rank; q += Tile::kDepth) {
      const Output& output = p_.outputs[at.output];
      copy_step<!kDepthIsContiguous>(&p_.latent, &output.factor, q, output.first_block + at.block,
                                     at);
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
    const ProjectionTerm& term = p_.projection.terms[at.term];
    with_parts<Tile::kRightParts>(parts_of(p_.projection.columns), [&](auto parts) {
      copy_walk<parts>(term.steps, [&](int depth, uint32_t to, uint32_t filled) {
        copy_projected_step<parts>(term, at, depth, to, filled);
      });
    });
  }

  __device__ void copy_gradient(const GradientPlace& at) {
    const Gradient& gradient = p_.gradients[at.gradient];
    if (gradient.waits) ptx::wait_for_earlier_kernels();
    if (gradient.waits && p_.order.projections > 0) {
      ptx::wait_for_counter(
          p_.span_projected + at.span,
          rows_of_span(p_, at.span) * p_.projection.inner * Tile::kCluster * kStoreWarps);
      ptx::show_results_to_copies();
    }
    with_parts<Tile::kRightParts>(parts_of(gradient.sum.rank), [&](auto parts) {
      copy_walk<parts>(at.steps, [&](int token, uint32_t to, uint32_t filled) {
        copy_summed_step<parts>(gradient, at, at.first_step * Tile::kDepth + token, to, filled);
      });
    });
  }

  /// All steps of a projection or a gradient: copy_step(depth, to, filled) for each, and for one
  /// beyond the last where that fills its stage up: with zeros, which nobody multiplies. One thread
  /// asks for the boxes of steps that are soon multiplied, so each instruction counts here.
  template <int kParts, class CopyStep>
  __device__ void copy_walk(int steps, const CopyStep& copy_step) {
    constexpr int kStageSteps = steps_of_stage<Tile>(kParts);
    constexpr int kStepBytes = bytes_of_step<Tile>(kParts);
    const int ask = max(steps - kStepsAhead, 0) / kStageSteps * kStageSteps;
#pragma unroll 1
    for (int step = 0; step < steps; step += kStageSteps) {
      if (step == ask) items_.look_ahead();
      const uint32_t filled = begin_filling(kStageSteps * kStepBytes);
#pragma unroll
      for (int part = 0; part < kStageSteps; ++part) {
        copy_step((step + part) * Tile::kDepth, ring_.left(turn_) + part * kStepBytes, filled);
      }
      turn_.advance();
    }
  }

  /// The rows are this CTA's own; of the factor each CTA brings its share for all.
  template <int kParts>
  __device__ void copy_projected_step(const ProjectionTerm& term, const ProjectionPlace& at,
                                      int depth, uint32_t to, uint32_t filled) {
    constexpr uint16_t kAll = (1 << Tile::kCluster) - 1;
    ptx::copy_box(to, &term.rows, depth, at.token, at.block, filled);
    to += Tile::kLeftBytes;
    if constexpr (kDepthIsContiguous) {
      constexpr int kDepthShare = Tile::kDepth / Tile::kCluster;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        ptx::copy_box_to_blocks(to + part * kPartBytes + rank_ * kPartBytes / Tile::kCluster,
                                &term.factor, part * 64, depth + rank_ * kDepthShare, at.block,
                                filled, kAll);
      }
    } else {
      ptx::copy_box_to_blocks(to + rank_ * kParts * kPartBytes / Tile::kCluster, &term.factor,
                              depth, rank_ * kParts * 64 / Tile::kCluster, at.block, filled, kAll);
    }
  }

  /// The columns of the activation are this CTA's own; of the latent's tokens each CTA brings its
  /// share for all.
  template <int kParts>
  __device__ void copy_summed_step(const Gradient& gradient, const GradientPlace& at, int token,
                                   uint32_t to, uint32_t filled) {
    constexpr uint16_t kAll = (1 << Tile::kCluster) - 1;
    constexpr int kTokenShare = Tile::kDepth / Tile::kCluster;
#pragma unroll
    for (int part = 0; part < Tile::kRows / 64; ++part) {
      ptx::copy_box(to + part * kPartBytes, &gradient.activation, at.column + part * 64, token,
                    at.block, filled);
    }
    to += Tile::kLeftBytes;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      ptx::copy_box_to_blocks(to + part * kPartBytes + rank_ * kPartBytes / Tile::kCluster,
                              &gradient.latent, part * 64, token + rank_ * kTokenShare, at.block,
                              filled, kAll);
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

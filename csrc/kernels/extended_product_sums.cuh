// The warpgroups of an extended product that multiply: each has the sums of 64 rows of its CTA's
// item, and stores them, or hands them to others to store, while the next item's boxes come.
#pragma once

#include "kernels/bulk_ring.cuh"
#include "kernels/extended_product_copies.cuh"
#include "kernels/extended_product_dropout.cuh"
#include "kernels/extended_product_handover.cuh"
#include "kernels/extended_product_latents.cuh"
#include "kernels/extended_product_params.cuh"
#include "kernels/extended_product_storer.cuh"
#include "kernels/extended_product_stores.cuh"
#include "kernels/ptx_products_sm90.cuh"

namespace gralora::extended_product {

/// A warpgroup's sums of 64 rows, and its way through the ring.
template <class T, class Tile>
class Consumer {
 public:
  __device__ Consumer(const BulkRing<Tile>& ring, int group)
      : ring_(ring), rows_(group * kPartBytes) {}

  /// The item that the next stage begins, by its note.
  __device__ uint32_t begin_item(uint32_t notes, int rank) const {
    ring_.wait_until_filled(turn_);
    // Read by the lane that lets this CTA's copies have the stage again (BulkRing::free).
    const bool reads = static_cast<int>(threadIdx.x) % 32 == rank;
    return __shfl_sync(~0u, reads ? ptx::load_word(notes + turn_.stage * 4) : 0, rank);
  }

  /// kProducts steps of 16 along the depth from the next stage, whose operands begin `offset` bytes
  /// in. One group of products stays under way; the stage of the one before is free when that has
  /// ended.
  template <int kColumns, bool kLeftDepth, bool kRightDepth, int kProducts>
  __device__ void multiply(bool adds, int offset = 0) {
    ring_.wait_until_filled(turn_);
    ptx::begin_products();
#pragma unroll
    for (int k = 0; k < kProducts; ++k) {
      ptx::multiply_add_parts<T, kColumns, kLeftDepth, kRightDepth>(
          sums, ptx::describe_part<kLeftDepth>(ring_.left(turn_) + offset + rows_, k * 16),
          ptx::describe_part<kRightDepth>(ring_.right(turn_) + offset, k * 16),
          k > 0 || adds ? 1 : 0);
    }
    ptx::commit_products();
  }
  /// A step of a tile that makes its latents: the products for those, onto what they hold or as the
  /// first, and then those for the tile's columns. `held` is in use until the group has ended.
  __device__ void project_and_multiply(LatentSums& latents, bool continues, bool adds,
                                       HeldRows& held) {
    ring_.wait_until_filled(turn_);
    const uint32_t left = ring_.left(turn_) + rows_, right = ring_.right(turn_);
    const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
    held.load(left + warp * kBoxRows * 128);
    ptx::begin_products();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      ptx::multiply_add_narrow<T>(latents, held.fragment[k],
                                  ptx::describe_narrow(right + Tile::kRightBytes, k * 16),
                                  k > 0 || continues ? 1 : 0);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      ptx::multiply_add_parts<T, Tile::kColumns, true, true>(
          sums, ptx::describe_part<true>(left, k * 16), ptx::describe_part<true>(right, k * 16),
          k > 0 || adds ? 1 : 0);
    }
    ptx::commit_products();
  }

  /// kProducts steps of 16 of `left`, 64 rows that lie elsewhere, and the next stage's other
  /// operand.
  template <int kProducts>
  __device__ void multiply_kept(uint32_t left) {
    ring_.wait_until_filled(turn_);
    ptx::begin_products();
#pragma unroll
    for (int k = 0; k < kProducts; ++k) {
      ptx::multiply_add_parts<T, Tile::kColumns, true, false>(
          sums, ptx::describe_part<true>(left, k * 16),
          ptx::describe_part<false>(ring_.right(turn_), k * 16));
    }
    ptx::commit_products();
  }

  __device__ void move_on(bool frees) {
    ptx::wait_for_products<1>();
    if (frees) ring_.free(before_);
    before_ = turn_.stage;
    turn_.advance();
  }

  /// Ends a chain: all its sums are there.
  __device__ void finish() {
    hold_sums();
    ring_.free(before_);
  }

  /// With no group under way: the stage is free at once. For walks whose products are short, and
  /// that wait for their boxes.
  __device__ void finish_stage() {
    ptx::wait_for_products<0>();
    ring_.free(turn_.stage);
    turn_.advance();
  }

  /// Whatever reads the sums comes after all products.
  __device__ void hold_sums() {
    ptx::wait_for_products<0>();
#pragma unroll
    for (int v = 0; v < Tile::kColumns / 8; ++v) ptx::hold(sums[v]);
  }

  float sums[Tile::kColumns / 8][4];

 private:
  const BulkRing<Tile>& ring_;
  typename BulkRing<Tile>::Turn turn_;
  int before_ = 0;
  uint32_t rows_;
};

/// What a warpgroup does with the items that the copying thread brings.
template <class T, class Tile, bool kDepthIsContiguous, bool kDrops>
class Multiplier {
 public:
  __device__ Multiplier(const Params& p, const BulkRing<Tile>& ring, uint32_t notes,
                        const Handover<Tile>& handover, unsigned char* boxes, int rank)
      : p_(p),
        group_(ptx::of_warp(warp() / 4)),
        consumer_(ring, group_),
        notes_(notes),
        handover_(handover),
        staging_(reinterpret_cast<float*>(boxes + warp() * Tile::kBoxes * kBoxBytes)),
        boxes_(ptx::shared_address(boxes) + warp() * Tile::kBoxes * kBoxBytes),
        rank_(rank) {}

  __device__ void multiply_items() {
    for (uint32_t note = consumer_.begin_item(notes_, rank_); note != kNoItem;
         note = consumer_.begin_item(notes_, rank_)) {
      const ProductItem item = item_of(note);
      switch (item.work) {
        case ProductWork::kTile:
          multiply_tile(item.index);
          break;
        case ProductWork::kProjection:
          if constexpr (!kDrops && !Tile::kProjects) project(item);
          break;
        case ProductWork::kGradient:
          // Backward passes alone have them.
          if constexpr (!kDepthIsContiguous) sum_gradient(item);
      }
    }
    handover_.wait_until_taken();
    handover_.give(kNoItem, warp());
    if (ptx::is_elected()) ptx::wait_for_boxes();
  }

 private:
  __device__ static int warp() { return static_cast<int>(threadIdx.x - 128) / 32; }

  template <int kProducts>
  __device__ void multiply_rank(bool adds) {
    consumer_.template multiply<Tile::kColumns, true, !kDepthIsContiguous, kProducts>(adds);
  }

  /// All steps over the latent and the factor, onto what the sums hold or as a tile's first.
  __device__ void multiply_latents(bool adds) {
    // The rank's last stage has zeros beyond it: only the products that it needs.
    for (int rest = p_.rank; rest > 0; rest -= Tile::kDepth, adds = true) {
      if (rest > 48) {
        multiply_rank<4>(adds);
      } else if (rest > 32) {
        multiply_rank<3>(adds);
      } else if (rest > 16) {
        multiply_rank<2>(adds);
      } else {
        multiply_rank<1>(adds);
      }
      consumer_.move_on(adds);
    }
  }

  /// Steps over rows and weights, onto what the sums hold.
  __device__ void multiply_terms(int steps) {
    for (int step = 0; step < steps; ++step) {
      consumer_.template multiply<Tile::kColumns, true, kDepthIsContiguous, 4>(true);
      consumer_.move_on(true);
    }
  }

  __device__ TilePlace multiply_base_first(int index) {
    consumer_.template multiply<Tile::kColumns, true, kDepthIsContiguous, 4>(false);
    // Its divisions take place under the products.
    const TilePlace at = place_tile<Tile>(p_, index, rank_);
    consumer_.move_on(false);
    multiply_terms(p_.base_steps - 1);
    multiply_latents(true);
    return at;
  }

  __device__ TilePlace multiply_dropped_first(int index) {
    const TilePlace at = place_tile<Tile>(p_, index, rank_);
    multiply_latents(false);
    multiply_terms(p_.dropped_steps);
    consumer_.finish();
    drop_sums<Tile>(p_, consumer_.sums, at, warp());
    consumer_.template multiply<Tile::kColumns, true, kDepthIsContiguous, 4>(true);
    consumer_.move_on(false);
    multiply_terms(p_.base_steps - p_.dropped_steps - 1);
    return at;
  }

  __device__ TilePlace multiply_projecting(int index) {
    const TilePlace at = place_tile<Tile>(p_, index, rank_);
    TileLatents<T, Tile> latents(p_, boxes_ - warp() % 4 * kBoxBytes, group_);
    const int inner = p_.projection.inner;
    for (int block = 0; block < inner; ++block) {
      // In turns, since products of two steps are under way.
      HeldRows even, odd;
      const int steps = p_.projection.terms[0].steps;
      for (int step = 0; step < steps; step += 2) {
        const bool adds = block + step > 0;
        consumer_.project_and_multiply(latents.sums, step > 0, adds, even);
        consumer_.move_on(adds);
        if (step + 1 == steps) break;
        consumer_.project_and_multiply(latents.sums, true, true, odd);
        consumer_.move_on(true);
      }
      // The other warpgroup's products go on meanwhile.
      consumer_.hold_sums();
      latents.keep(block, at);
    }
    const uint32_t left = latents.show();
    static_assert(kTileLatents == 16 && kMostTileLatents == 64, "a product each, of one stage");
    switch (inner) {
      case 1:
        consumer_.template multiply_kept<1>(left);
        break;
      case 2:
        consumer_.template multiply_kept<2>(left);
        break;
      case 3:
        consumer_.template multiply_kept<3>(left);
        break;
      default:
        consumer_.template multiply_kept<4>(left);
    }
    consumer_.move_on(true);
    consumer_.finish();
    latents.release();
    return at;
  }

  __device__ void multiply_tile(int index) {
    const TilePlace at = [&] {
      if constexpr (Tile::kProjects) {
        return multiply_projecting(index);
      } else if constexpr (kDrops) {
        return multiply_dropped_first(index);
      } else {
        return multiply_base_first(index);
      }
    }();
    if constexpr (!Tile::kProjects) consumer_.finish();
    handover_.wait_until_taken();
    store_rows<T, Tile>(p_, consumer_.sums, at, warp(), boxes_);
  }

  __device__ void project(const ProductItem& item) {
    const int term = place_projection<Tile>(p_, item.index, rank_).term;
    with_parts<Tile::kRightParts>(parts_of(p_.projection.columns), [&](auto parts) {
      multiply_walk<parts, true, !kDepthIsContiguous>(p_.projection.terms[term].steps);
      hand_over<parts>(item, [&](const float(*sums)[4]) {
        stage_latents<T>(boxes_, sums, p_.projection.scaling);
      });
    });
  }

  __device__ void sum_gradient(const ProductItem& item) {
    const GradientPlace at = place_gradient<Tile>(p_, item.index, rank_);
    with_parts<Tile::kRightParts>(parts_of(p_.gradients[at.gradient].sum.rank), [&](auto parts) {
      multiply_walk<parts, false, false>(at.steps);
      hand_over<parts>(item, [&](const float(*sums)[4]) { stage_gradient(staging_, sums); });
    });
  }

  /// stage(sums) to the warp's boxes, 64 columns at a time, for other warps to store.
  template <int kParts, class Stage>
  __device__ void hand_over(const ProductItem& item, const Stage& stage) {
    free_boxes();
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      handover_.wait_until_taken();
      stage(&consumer_.sums[part * 8]);
      handover_.give(word_of(item, part), warp());
    }
  }

  /// All steps of a projection or a gradient.
  template <int kParts, bool kLeftDepth, bool kRightDepth>
  __device__ void multiply_walk(int steps) {
    constexpr int kStageSteps = steps_of_stage<Tile>(kParts);
    for (int step = 0; step < steps; step += kStageSteps) {
      consumer_.template multiply<kParts * 64, kLeftDepth, kRightDepth, 4>(step > 0);
      if (kStageSteps > 1 && step + 1 < steps) {
        consumer_.template multiply<kParts * 64, kLeftDepth, kRightDepth, 4>(
            true, bytes_of_step<Tile>(kParts));
      }
      consumer_.finish_stage();
    }
    consumer_.hold_sums();
  }

  /// Returns when nothing of the warp's boxes is under way.
  __device__ static void free_boxes() {
    if (ptx::is_elected()) ptx::wait_for_box_reads<0>();
    __syncwarp();
  }

  const Params& p_;
  int group_;
  Consumer<T, Tile> consumer_;
  uint32_t notes_;
  Handover<Tile> handover_;
  float* staging_;  // the warp's boxes, for ordinary stores
  uint32_t boxes_;
  int rank_;
};

}  // namespace gralora::extended_product

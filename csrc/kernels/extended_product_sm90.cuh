// The frozen layer's product with a reduction axis that is longer by the adapter's rank: after the
// steps over rows and weight come those over the latent and the factor, into the same sums. The
// adapter's term costs no pass over the result, and the result is rounded once. The latent is there
// before, or made by the kernel just before, beside which tiles begin; or made on the way: then
// projections are items among the tiles (product_order.h), whose reads of the rows hide under the
// other clusters' products. Gradients of factors may be items too.
//
// One CTA per SM does item after item (cluster_items.cuh). Two CTAs form a cluster: they have
// neighbouring tokens and the same columns, and each brings half of the right operand for both. In
// a CTA one thread asks for boxes (extended_product_copies.cuh), two warpgroups of 64 tokens each
// multiply them, and store a tile by bulk copies while the next one's products run
// (extended_product_sums.cuh), and three warps store latents and gradients
// (extended_product_storer.cuh): what counts is that the tensor cores never wait. Columns are cut
// into tiles within a block, since a block has its own latent and factor.
//
// What the adapter adds to dx may go through dropout, which the base product's part does not: then
// the steps over latents come first, the warpgroups drop their sums (extended_product_dropout.cuh),
// and the base product is added to what is left. A kernel of its own, so that the others keep
// theirs.
//
// The weight and the factor have opposite axes contiguous, in the forward pass (W by its depth, B
// by its width) and in the backward pass (W by its width, A by its rank): a step's body is compiled
// for each, nothing is repacked. The projection's factor lies as the other one does.
//
// Few tiles leave nothing to hide a projection under. There each tile may make its latents itself
// (extended_product_latents.cuh), in a kernel of its own too.
//
// Shared memory: 224 KiB, four stages of 48 KiB or six of 32, and 32 KiB for the results under way;
// or 216 and 220 KiB, where stages bring 2 KiB more and half as many results are under way.
#pragma once

#include "kernels/extended_product_copies.cuh"
#include "kernels/extended_product_handover.cuh"
#include "kernels/extended_product_storer.cuh"
#include "kernels/extended_product_sums.cuh"

namespace gralora::extended_product {

template <class T, class Tile_, bool kDepthIsContiguous, bool kDrops>
struct ExtendedProduct {
  using Params = extended_product::Params;
  using Tile = Tile_;
  using Ring = BulkRing<Tile>;
  // The first warpgroup copies, with one thread, and stores what is handed to its other warps; it
  // leaves most of its registers to those that multiply.
  static constexpr int kThreads = 128 + Tile::kThreads;
  static constexpr int kCopyRegisters = 56, kMultiplyRegisters = 224;
  static constexpr int kBoxesAt = Tile::kStages * Tile::kStageBytes;
  static constexpr int kBarriersAt = kBoxesAt + Tile::kWarps * Tile::kBoxes * kBoxBytes;
  static constexpr int kHandoverAt = kBarriersAt + Tile::kStages * kBarrierBytes;
  static constexpr int kItemsAt = kHandoverAt + Handover<Tile>::kBytes;
  static constexpr int kNotesAt = kItemsAt + ClusterItems::kBytes;
  static constexpr int kSharedBytes = kNotesAt + Tile::kStages * 4;
  static constexpr int kBlocksPerProcessor = 1;
  static_assert(kSharedBytes <= 227 * 1024);

  __device__ static void run(const Params& p, uint32_t, unsigned char* memory) {
    const uint32_t shared = ptx::shared_address(memory);
    if (threadIdx.x == 0) {
      ClusterItems::make_barriers(shared + kItemsAt);
      Handover<Tile>::make_barriers(shared + kHandoverAt);
    }
    const Ring ring(memory, memory + kBarriersAt);
    const auto rank = static_cast<int>(ptx::cluster_rank());
    const Handover<Tile> handover(shared + kHandoverAt);
    if (threadIdx.x < 128) {
      ptx::give_registers<kCopyRegisters>();
      if (threadIdx.x >= 32) {
        Storer<T, Tile, !kDepthIsContiguous>(p, handover, memory + kBoxesAt, rank).store_items();
      } else if (ptx::is_elected()) {
        for (const CUtensorMap* map :
             {&p.terms[0].rows, &p.weights[0], &p.latent, &p.outputs[0].factor}) {
          ptx::prefetch_map(map);
        }
        Copier<Tile, kDepthIsContiguous, kDrops>(
            p, ring, shared + kNotesAt, ClusterItems(p.next_item, shared + kItemsAt, rank), rank)
            .copy_items();
        ptx::release_next_kernel();
      }
    } else {
      ptx::take_registers<kMultiplyRegisters>();
      Multiplier<T, Tile, kDepthIsContiguous, kDrops>(p, ring, shared + kNotesAt, handover,
                                                      memory + kBoxesAt, rank)
          .multiply_items();
    }
    __syncwarp();
    // A CTA's memory is there until the other one's copies have come and its barriers are not used
    // any more.
    ptx::synchronize_cluster();
  }
};

}  // namespace gralora::extended_product

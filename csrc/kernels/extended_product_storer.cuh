// The warps of an extended product that store latents and gradients, from the boxes that those that
// multiply hand over: 128 rows or columns of 64 numbers each at a time.
#pragma once

#include "kernels/block_product.cuh"
#include "kernels/extended_product_copies.cuh"
#include "kernels/extended_product_handover.cuh"
#include "kernels/extended_product_params.cuh"
#include "kernels/extended_product_stores.cuh"

namespace gralora::extended_product {

/// What is handed over: an item's note, and which 64 of its columns.
__device__ inline uint32_t word_of(const ProductItem& item, int part) {
  return note_of(item) | static_cast<uint32_t>(part) << 30;
}
static_assert(kMostItems <= int64_t{1} << 28, "an index, and two bits on either side");

/// Eight numbers side by side, 16-byte aligned.
template <class Out>
__device__ void store_eight(Out* to, const float (&values)[8]) {
  if constexpr (sizeof(Out) == 4) {
    reinterpret_cast<float4*>(to)[0] = {values[0], values[1], values[2], values[3]};
    reinterpret_cast<float4*>(to)[1] = {values[4], values[5], values[6], values[7]};
  } else {
    *reinterpret_cast<uint4*>(to) = {
        round_pair<Out>(values[0], values[1]), round_pair<Out>(values[2], values[3]),
        round_pair<Out>(values[4], values[5]), round_pair<Out>(values[6], values[7])};
  }
}

/// kGradients: whether there may be gradients among the items, as in backward passes.
template <class T, class Tile, bool kGradients>
class Storer {
 public:
  __device__ Storer(const Params& p, const Handover<Tile>& handover, unsigned char* boxes, int rank)
      : p_(p), handover_(handover), boxes_(boxes), rank_(rank) {}

  __device__ void store_items() {
    // What is stored first may need nothing of the kernel before, and yet lie where that one reads.
    ptx::wait_for_earlier_kernels();
    for (uint32_t word = handover_.take(); word != kNoItem; word = handover_.take()) {
      const ProductItem item = item_of(word & ~(3u << 30));
      const auto part = static_cast<int>(word >> 30);
      if (!kGradients || item.work == ProductWork::kProjection) {
        store_latents(item.index, part);
      } else if constexpr (kGradients) {
        store_gradient(item.index, part);
      }
    }
  }

 private:
  static constexpr int kThreads = kStoreWarps * 32;
  __device__ static int thread() { return static_cast<int>(threadIdx.x) - 32; }

  /// 128 tokens' latents of one block of the rows: to the plane of each block of the result, 16
  /// bytes at a time.
  __device__ void store_latents(int index, int part) {
    constexpr int kChunks = kBoxColumns / kChunk;
    static_assert(kThreads % kChunks == 0, "a thread keeps its columns");
    const ProjectionPlace at = place_projection<Tile>(p_, index, rank_);
    const Projection& projection = p_.projection;
    const int chunk = thread() % kChunks, column = part * kBoxColumns + chunk * kChunk;
    const int q = column / projection.s;
    T* const to = static_cast<T*>(projection.latent) + at.column + q * projection.plane +
                  (column - q * projection.s);
    const uint32_t boxes = ptx::shared_address(boxes_);
    if (column < projection.columns) {
#pragma unroll 4
      for (int row = thread() / kChunks; row < Tile::kRows; row += kThreads / kChunks) {
        if (at.token + row >= projection.T) break;
        const uint32_t from =
            boxes + row / kBoxRows * Tile::kBoxes * kBoxBytes + row % kBoxRows * 128;
        *reinterpret_cast<uint4*>(to + (at.token + row) * projection.pitch) =
            ptx::load_chunk(from + (chunk ^ (row & 7)) * 16);
      }
    }
    handover_.give_back();
    if (part + 1 < parts_of(projection.columns)) return;
    // Each lane shows its own writes, one of them counts for all.
    ptx::show_results_to_copies();
    __syncwarp();
    if (threadIdx.x % 32 != 0) return;
    ptx::add_to_counter(p_.projected + at.token / Tile::kRows, 1);
    if (p_.gradient_count > 0) ptx::add_to_counter(p_.all_projected, 1);
  }

  /// 128 columns of an activation by 64 ranks.
  __device__ void store_gradient(int index, int part) {
    const GradientPlace at = place_gradient<Tile>(p_, index, rank_);
    const GradientSum& sum = p_.gradients[at.gradient].sum;
    switch (sum.out_type) {
      case ElementType::kFloat32:
        store_gradient<float>(sum, at, part);
        break;
      case ElementType::kBFloat16:
        store_gradient<__nv_bfloat16>(sum, at, part);
        break;
      default:
        store_gradient<__half>(sum, at, part);
    }
    handover_.give_back();
  }

  template <class Out>
  __device__ void store_gradient(const GradientSum& sum, const GradientPlace& at, int part) {
    const int widths = min(sum.width - at.column, Tile::kRows);
    const int ranks = min(sum.rank - part * 64, 64);
    Out* const out = static_cast<Out*>(sum.out) + int64_t{at.block} * sum.width * sum.rank;
    if (sum.rank_first) {
      store_lines<true>(out + int64_t{part} * 64 * sum.width + at.column, sum.width, ranks, widths);
    } else {
      store_lines<false>(out + int64_t{at.column} * sum.rank + part * 64, sum.rank, widths, ranks);
    }
  }

  /// Lines of up to 128 columns for each rank, or of up to 64 ranks for each column.
  template <bool kRankFirst, class Out>
  __device__ void store_lines(Out* out, int pitch, int lines, int length) const {
    constexpr int kMostLines = kRankFirst ? 64 : Tile::kRows;
    constexpr int kEights = (kRankFirst ? Tile::kRows : 64) / 8;
    const bool whole = pitch % 8 == 0;  // eights are aligned, and none is cut
    for (int task = thread(); task < kMostLines * kEights; task += kThreads) {
      // Neighbouring lanes have neighbouring lines where ranks come first, and meet no bank twice.
      // Else they have neighbouring eights, which lie side by side here and where they are stored.
      const int line = kRankFirst ? task % kMostLines : task / kEights;
      const int first = (kRankFirst ? task / kMostLines : task % kEights) * 8;
      if (line >= lines || first >= length) continue;
      alignas(16) float values[8];
      if constexpr (kRankFirst) {
#pragma unroll
        for (int e = 0; e < 8; ++e) values[e] = *number(first + e, line);
      } else {
        const auto* const eight = reinterpret_cast<const float4*>(number(line, first));
        reinterpret_cast<float4*>(values)[0] = eight[0];
        reinterpret_cast<float4*>(values)[1] = eight[1];
      }
      Out* const to = out + int64_t{line} * pitch + first;
      if (whole) {
        store_eight(to, values);
        continue;
      }
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        if (first + e < length) to[e] = Out(values[e]);
      }
    }
  }

  __device__ const float* number(int column, int rank) const {
    const auto* box =
        reinterpret_cast<const float*>(boxes_ + column / kBoxRows * Tile::kBoxes * kBoxBytes);
    return box + place_in_boxes(column % kBoxRows, rank);
  }

  const Params& p_;
  Handover<Tile> handover_;
  const unsigned char* boxes_;
  int rank_;
};

}  // namespace gralora::extended_product

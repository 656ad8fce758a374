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
  __device__ static int warp() { return thread() / 32; }

  // A warp's share of a gradient's columns: every third eight of them. In sixteens of bytes, as
  // they lie in the boxes: those of eight columns, and of all.
  static constexpr int kEights = Tile::kRows / 8;
  static constexpr int kEightSums = 8 * kBoxColumns / 4, kSums = kEights * kEightSums;
  static constexpr int kTasks = (kEights + kStoreWarps - 1) / kStoreWarps * 64;

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
    if (p_.gradient_count == 0) return;
    const int row_tile = at.token / (Tile::kRows * Tile::kCluster);
    ptx::add_to_counter(p_.span_projected + span_of(p_, row_tile), 1);
  }

  /// 128 columns of an activation by 64 ranks.
  __device__ void store_gradient(int index, int part) {
    const GradientPlace at = place_gradient<Tile>(p_, index, rank_);
    const GradientSum& sum = p_.gradients[at.gradient].sum;
    if (p_.order.gradients.spans > 1 && !add_span(at, part)) {
      handover_.give_back();
      return;
    }
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

  /// Adds the warp's share of a span's sums, of 64 ranks, to that of the spans before, which are
  /// earlier items. The last span leaves all in the boxes: then true.
  __device__ bool add_span(const GradientPlace& at, int part) {
    static_assert(Tile::kBoxes * kBoxBytes == kBoxRows * kBoxColumns * 4, "boxes lie side by side");
    constexpr int kAtOnce = kEightSums / 32;
    const Gradient& gradient = p_.gradients[at.gradient];
    const int64_t share = int64_t{at.share} * parts_of(gradient.sum.rank) + part;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const bool is_first = at.span == 0, is_last = at.span + 1 == p_.order.gradients.spans;
    int32_t* const ended = gradient.ended + share * kStoreWarps + warp();
    float4* const boxes = reinterpret_cast<float4*>(boxes_) + lane;
    float4* const before = reinterpret_cast<float4*>(gradient.partials) + share * kSums + lane;
    float4* const to = is_last ? boxes : before;
    if (!is_first && lane == 0) ptx::wait_for_counter(ended, at.span);
    __syncwarp();
    for (int first = warp() * kEightSums; first < kSums; first += kStoreWarps * kEightSums) {
      float4 sums[kAtOnce] = {};
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (!is_first) sums[i] = before[first + i * 32];
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const float4 more = boxes[first + i * 32];
        to[first + i * 32] = {sums[i].x + more.x, sums[i].y + more.y, sums[i].z + more.z,
                              sums[i].w + more.w};
      }
    }
    __syncwarp();
    if (!is_last && lane == 0) ptx::add_to_counter(ended, 1);
    return is_last;
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
    const bool whole = pitch % 8 == 0;  // eights are aligned, and none is cut
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int task = lane; task < kTasks; task += 32) {
      // A warp has eights of columns, by eights of ranks. Neighbouring lanes have neighbouring
      // lines where ranks come first, and meet no bank twice. Else they have neighbouring eights of
      // ranks, which lie side by side here and where they are stored.
      const int eight = warp() + task / 64 * kStoreWarps, inside = task % 64;
      if (eight >= kEights) break;
      const int line = kRankFirst ? inside : eight * 8 + inside / 8;
      const int first = kRankFirst ? eight * 8 : inside % 8 * 8;
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
  unsigned char* boxes_;
  int rank_;
};

}  // namespace gralora::extended_product

// What both merge kernels share: which tile of W a CTA owns, and how its threads read and write it.
//
// A CTA of 256 threads owns a 64 x 128 tile inside one block pair; a thread owns four groups of
// eight consecutive weights (for 16-bit weights, 16 bytes each). Where a thread's groups lie is the
// kernel's own business, since it follows from how it holds its sums.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/merge.h"
#include "kernels/merge_group.h"

namespace gralora::merge {

inline constexpr int kTileRows = 64;
inline constexpr int kTileColumns = 128;
inline constexpr int kThreads = 256;
inline constexpr int kGroup = kMergeGroup;
inline constexpr int kGroups = kTileRows * kTileColumns / (kThreads * kGroup);
static_assert(kGroups == 4, "a thread's weights and sums must fit its registers");

/// The tile that a CTA works on. A CTA takes a strip of up to `strip` tiles, one below the other in
/// the same block pair, so that what belongs to the columns is prepared once; neighbouring CTAs
/// walk along a row of W: they touch neighbouring memory at the same time.
struct Tile {
  uint32_t i, j;                // block pair
  uint32_t row, column;         // of the tile within its block
  int rows_left, columns_left;  // of the tile's rows and columns, those within the block

  __device__ Tile(const MergeParams& p, int strip) {
    // 32-bit divisions: a 64-bit one costs as much as everything else that a thread does here.
    const auto column_tiles =
        static_cast<uint32_t>((p.column_width + kTileColumns - 1) / kTileColumns);
    const auto strips =
        static_cast<uint32_t>((p.row_width + kTileRows * strip - 1) / (kTileRows * strip));
    uint32_t index = blockIdx.x;
    column = index % column_tiles * kTileColumns;
    index /= column_tiles;
    j = index % static_cast<uint32_t>(p.column_blocks);
    index /= static_cast<uint32_t>(p.column_blocks);
    row = index % strips * kTileRows * strip;
    i = index / strips;
    rows_left = static_cast<int>(p.row_width - row);
    columns_left = static_cast<int>(p.column_width - column);
  }

  /// Moves to the tile below; past the block's end rows_left is not positive.
  __device__ void descend() {
    row += kTileRows;
    rows_left -= kTileRows;
  }

  /// Offset of the tile's first weight.
  __device__ int64_t weight(const MergeParams& p) const {
    return (i * p.row_width + row) * p.row_stride + j * p.column_width + column;
  }

  /// Offset of the tile's first element of a factor: along the rows or along the columns.
  __device__ int64_t factor(const FactorView& view, uint32_t along) const {
    return i * view.row_block_stride + j * view.column_block_stride + along * view.wide_stride;
  }
};

/// Eight consecutive weights.
template <class T>
struct alignas(kMergeAlignment) Group {
  T element[kGroup];
};

/// Reads the group at `from`, of which `columns_left` weights are within the block; none where the
/// row is not. kVector: groups are whole and 16-byte aligned.
template <bool kVector, class T>
__device__ void read_group(Group<T>& group, const T* from, bool has_row, int columns_left) {
  if (!has_row) return;
  if constexpr (kVector) {
    if (columns_left > 0) group = *reinterpret_cast<const Group<T>*>(from);
  } else {
#pragma unroll
    for (int v = 0; v < kGroup; ++v) {
      if (v < columns_left) group.element[v] = from[v];
    }
  }
}

template <bool kVector, class T>
__device__ void write_group(const Group<T>& group, T* to, bool has_row, int columns_left) {
  if (!has_row) return;
  if constexpr (kVector) {
    if (columns_left > 0) *reinterpret_cast<Group<T>*>(to) = group;
  } else {
#pragma unroll
    for (int v = 0; v < kGroup; ++v) {
      if (v < columns_left) to[v] = group.element[v];
    }
  }
}

template <class Sum, class Element>
__device__ Sum widen(Element value) {
  if constexpr (sizeof(Element) == 2) {
    return static_cast<Sum>(static_cast<float>(value));
  } else {
    return static_cast<Sum>(value);
  }
}

/// Hands `ranks` ranks of a factor's `kWidth` entries, from `base` on, to `store(wide, rank,
/// value)`; zero beyond `width` and beyond `ranks` (up to kRanks, a power of two). Neighbouring
/// threads read along whichever axis is contiguous.
template <class Sum, int kWidth, int kRanks, class Store>
__device__ void stage_factor(const FactorView& view, int64_t base, int width, int ranks,
                             const Store& store) {
  const auto stage = [&](auto element) {
    using Element = decltype(element);
    const Element* data = static_cast<const Element*>(view.data) + base;
    // Thread e of the CTA takes entries e, e + 256, ...: a fixed step along one axis.
    const bool rank_is_fastest = view.rank_stride == 1;
    const int thread = static_cast<int>(threadIdx.x);
    const int wide = rank_is_fastest ? thread / kRanks : thread % kWidth;
    const int rank = rank_is_fastest ? thread % kRanks : thread / kWidth;
    const int wide_step = rank_is_fastest ? kThreads / kRanks : 0;
    const int rank_step = rank_is_fastest ? 0 : kThreads / kWidth;
    const Element* from = data + wide * view.wide_stride + rank * view.rank_stride;
    const int64_t step = wide_step * view.wide_stride + rank_step * view.rank_stride;
    constexpr int kPerThread = kWidth * kRanks / kThreads;
    Element values[kPerThread];
#pragma unroll
    for (int u = 0; u < kPerThread; ++u) {
      const bool inside = wide + u * wide_step < width && rank + u * rank_step < ranks;
      values[u] = inside ? __ldg(from) : Element(0.0f);
      from += step;
    }
#pragma unroll
    for (int u = 0; u < kPerThread; ++u) {
      store(wide + u * wide_step, rank + u * rank_step, widen<Sum>(values[u]));
    }
  };
  // A float64 factor meets only float64 sums: dispatch/select_merge sends other pairs elsewhere.
  if constexpr (sizeof(Sum) == 8) {
    if (view.type == ElementType::kFloat64) return stage(double{});
  }
  switch (view.type) {
    case ElementType::kFloat32:
      return stage(float{});
    case ElementType::kBFloat16:
      return stage(__nv_bfloat16{});
    default:
      return stage(__half{});
  }
}

/// CTAs that a merge takes with strips of this many tiles.
inline int64_t count_strips(const MergeParams& p, int strip) {
  const int64_t rows = int64_t{kTileRows} * strip;
  return p.row_blocks * p.column_blocks * ((p.row_width + rows - 1) / rows) *
         ((p.column_width + kTileColumns - 1) / kTileColumns);
}

}  // namespace gralora::merge

// What both merge kernels share: which tile of W a CTA owns, and how its threads read and write it.
//
// A CTA of 256 threads owns a 64 x 128 tile inside one block pair; a thread owns four groups of
// eight consecutive weights (for 16-bit weights, 16 bytes each). Where a thread's groups lie is the
// kernel's own business, since it follows from how it holds its sums.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/merge.h"

namespace gralora::merge {

inline constexpr int kTileRows = 64;
inline constexpr int kTileColumns = 128;
inline constexpr int kThreads = 256;
inline constexpr int kGroup = 8;
inline constexpr int kGroups = kTileRows * kTileColumns / (kThreads * kGroup);
static_assert(kGroups == 4, "a thread's weights and sums must fit its registers");

/// The tile of this CTA. Neighbouring CTAs walk along a row of W: they touch neighbouring memory at
/// the same time.
struct Tile {
  int64_t i, j;                 // block pair
  int64_t row, column;          // of the tile within its block
  int rows_left, columns_left;  // of the tile's rows and columns, those within the block
  int64_t weight;               // element offset of the tile's corner in W

  __device__ explicit Tile(const MergeParams& p) {
    const int64_t column_tiles = (p.column_width + kTileColumns - 1) / kTileColumns;
    const int64_t row_tiles = (p.row_width + kTileRows - 1) / kTileRows;
    int64_t index = blockIdx.x;
    column = index % column_tiles * kTileColumns;
    index /= column_tiles;
    j = index % p.column_blocks;
    index /= p.column_blocks;
    row = index % row_tiles * kTileRows;
    i = index / row_tiles;
    rows_left = static_cast<int>(min(p.row_width - row, int64_t{kTileRows}));
    columns_left = static_cast<int>(min(p.column_width - column, int64_t{kTileColumns}));
    weight = (i * p.row_width + row) * p.row_stride + j * p.column_width + column;
  }

  /// Offset of the tile's first element of a factor: along the rows or along the columns.
  __device__ int64_t factor(const FactorView& view, int64_t along) const {
    return i * view.row_block_stride + j * view.column_block_stride + along * view.wide_stride;
  }
};

/// Eight consecutive weights.
template <class T>
struct alignas(16) Group {
  T element[kGroup];
};

/// Reads one group at (row, column) of the tile; kVector: groups are whole and 16-byte aligned.
template <bool kVector, class T>
__device__ void read_group(Group<T>& group, const T* weight, const Tile& tile, int64_t row_stride,
                           int row, int column) {
  if (row >= tile.rows_left) return;
  const T* from = weight + tile.weight + row * row_stride + column;
  if constexpr (kVector) {
    if (column < tile.columns_left) group = *reinterpret_cast<const Group<T>*>(from);
  } else {
#pragma unroll
    for (int v = 0; v < kGroup; ++v) {
      if (column + v < tile.columns_left) group.element[v] = from[v];
    }
  }
}

template <bool kVector, class T>
__device__ void write_group(const Group<T>& group, T* weight, const Tile& tile, int64_t row_stride,
                            int row, int column) {
  if (row >= tile.rows_left) return;
  T* to = weight + tile.weight + row * row_stride + column;
  if constexpr (kVector) {
    if (column < tile.columns_left) *reinterpret_cast<Group<T>*>(to) = group;
  } else {
#pragma unroll
    for (int v = 0; v < kGroup; ++v) {
      if (column + v < tile.columns_left) to[v] = group.element[v];
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
  switch (view.type) {
    case ElementType::kFloat64:
      return stage(double{});
    case ElementType::kFloat32:
      return stage(float{});
    case ElementType::kBFloat16:
      return stage(__nv_bfloat16{});
    case ElementType::kFloat16:
      return stage(__half{});
  }
}

inline int64_t count_tiles(const MergeParams& p) {
  return p.row_blocks * p.column_blocks * ((p.row_width + kTileRows - 1) / kTileRows) *
         ((p.column_width + kTileColumns - 1) / kTileColumns);
}

}  // namespace gralora::merge

// W[i, o, j, c] (+)= alpha * ( sum_q R[i, j, o, q] * C[i, j, c, q]  +  sum_q R0[o, q] * C0[c, q] )
//
// W    [row_blocks*row_width, column_blocks*column_width]   unit column stride, read once, written
// once R, C the grid factors seen from block pair (i, j), rank s;  R0, C0 the plain factors, rank
// r0
//      (kernels/merge.h: any strides, any element type)
//
// One CTA of 256 threads owns a 64 x 128 tile inside one block pair; a thread owns 4 rows x 8
// consecutive columns. It first starts its loads of W (64 bytes in flight per thread for 16-bit
// weights), then the CTA stages up to 32 ranks of both factors in shared memory as sums' type, and
// the wait for W hides under the multiply-adds. For s = 16 these take about 40% of the time that
// the tile's bytes need at full bandwidth, so fp32 arithmetic costs nothing and rounds only once.
//
// Shared memory: (64 + 128) * 32 * 4 B = 24 KiB (48 KiB for fp64). Registers: 32 sums + 16 of W;
// two to three CTAs per SM keep 32 to 48 KiB of reads in flight, above the 18 KiB that cover the
// latency.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/merge.h"

namespace gralora {
namespace {

constexpr int kTileRows = 64;
constexpr int kTileColumns = 128;
constexpr int kRankChunk = 32;
constexpr int kThreadRows = 4;
constexpr int kThreadColumns = 8;
constexpr int kThreads = (kTileRows / kThreadRows) * (kTileColumns / kThreadColumns);
constexpr int kHalf = kThreadColumns / 2;
constexpr int kColumnThreads = kTileColumns / kThreadColumns;
static_assert(kThreads == 256, "the launch bounds and the tile must agree");

template <class T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};

/// Eight consecutive weights: 16 bytes of a 16-bit type, more 16-byte pieces of a wider one.
template <class T>
struct alignas(16) WeightGroup {
  T element[kThreadColumns];
};

template <class Sum>
__device__ Sum load_factor(const FactorView& view, int64_t index) {
  switch (view.type) {
    case ElementType::kFloat64:
      return static_cast<Sum>(static_cast<const double*>(view.data)[index]);
    case ElementType::kFloat32:
      return static_cast<Sum>(static_cast<const float*>(view.data)[index]);
    case ElementType::kBFloat16:
      return static_cast<Sum>(
          static_cast<float>(static_cast<const __nv_bfloat16*>(view.data)[index]));
    default:
      return static_cast<Sum>(static_cast<float>(static_cast<const __half*>(view.data)[index]));
  }
}

/// Where column `c` of the tile stands in shared memory: the first halves of all threads' column
/// groups, then the second halves, so that neighbouring threads read neighbouring 16-byte words.
__device__ int column_slot(int c) {
  const int thread = c / kThreadColumns;
  const int within = c % kThreadColumns;
  return (within / kHalf) * (kTileColumns / 2) + thread * kHalf + within % kHalf;
}

/// Stages `ranks` ranks from `first_rank` on of one factor: tile[rank][slot]. What lies beyond the
/// block's width is zero.
template <class Sum, int kWidth, bool kColumns>
__device__ void stage_factor(Sum (*tile)[kWidth], const FactorView& view, int64_t base,
                             int64_t width, int64_t first_rank, int ranks) {
  const bool rank_is_fastest = view.rank_stride == 1;
  for (int e = threadIdx.x; e < kWidth * ranks; e += kThreads) {
    const int wide = rank_is_fastest ? e / ranks : e % kWidth;
    const int rank = rank_is_fastest ? e % ranks : e / kWidth;
    const int64_t index = base + wide * view.wide_stride + (first_rank + rank) * view.rank_stride;
    tile[rank][kColumns ? column_slot(wide) : wide] =
        wide < width ? load_factor<Sum>(view, index) : Sum(0);
  }
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2) merge_kernel(MergeParams p) {
  using Sum = typename SumOf<T>::type;
  __shared__ alignas(16) Sum row_tile[kRankChunk][kTileRows];
  __shared__ alignas(16) Sum column_tile[kRankChunk][kTileColumns];

  // Neighbouring CTAs walk along a row of W: they touch neighbouring memory at the same time.
  const int64_t column_tiles = (p.column_width + kTileColumns - 1) / kTileColumns;
  const int64_t row_tiles = (p.row_width + kTileRows - 1) / kTileRows;
  int64_t tile = blockIdx.x;
  const int64_t column_tile_index = tile % column_tiles;
  tile /= column_tiles;
  const int64_t j = tile % p.column_blocks;
  tile /= p.column_blocks;
  const int64_t row_tile_index = tile % row_tiles;
  const int64_t i = tile / row_tiles;

  const int64_t tile_row = row_tile_index * kTileRows;           // within the block
  const int64_t tile_column = column_tile_index * kTileColumns;  // within the block
  const int64_t rows_left = p.row_width - tile_row;
  const int64_t columns_left = p.column_width - tile_column;
  const int thread_row = (threadIdx.x / kColumnThreads) * kThreadRows;
  const int thread_column = (threadIdx.x % kColumnThreads) * kThreadColumns;

  T* weight = static_cast<T*>(p.weight) + (i * p.row_width + tile_row + thread_row) * p.row_stride +
              j * p.column_width + tile_column + thread_column;

  WeightGroup<T> held[kThreadRows];
  const bool owns_columns = thread_column < columns_left;
#pragma unroll
  for (int u = 0; u < kThreadRows; ++u) {
    const bool owns_row = thread_row + u < rows_left;
    if constexpr (kVector) {
      if (!p.overwrite && owns_row && owns_columns) {
        held[u] = *reinterpret_cast<const WeightGroup<T>*>(weight + u * p.row_stride);
      }
    } else {
#pragma unroll
      for (int v = 0; v < kThreadColumns; ++v) {
        if (!p.overwrite && owns_row && thread_column + v < columns_left) {
          held[u].element[v] = weight[u * p.row_stride + v];
        }
      }
    }
  }

  Sum sum[kThreadRows][kThreadColumns] = {};
  const auto multiply = [&](const FactorView& rows, const FactorView& columns, int64_t rank) {
    const int64_t row_base =
        i * rows.row_block_stride + j * rows.column_block_stride + tile_row * rows.wide_stride;
    const int64_t column_base = i * columns.row_block_stride + j * columns.column_block_stride +
                                tile_column * columns.wide_stride;
    for (int64_t first = 0; first < rank; first += kRankChunk) {
      const int ranks = static_cast<int>(rank - first < kRankChunk ? rank - first : kRankChunk);
      __syncthreads();  // the previous chunk has been read by all
      stage_factor<Sum, kTileRows, false>(row_tile, rows, row_base, rows_left, first, ranks);
      stage_factor<Sum, kTileColumns, true>(column_tile, columns, column_base, columns_left, first,
                                            ranks);
      __syncthreads();
      for (int q = 0; q < ranks; ++q) {
        Sum row[kThreadRows], column[kThreadColumns];
#pragma unroll
        for (int u = 0; u < kThreadRows; ++u) row[u] = row_tile[q][thread_row + u];
#pragma unroll
        for (int v = 0; v < kThreadColumns; ++v) {
          column[v] =
              column_tile[q][(v / kHalf) * (kTileColumns / 2) + thread_column / 2 + v % kHalf];
        }
#pragma unroll
        for (int u = 0; u < kThreadRows; ++u) {
#pragma unroll
          for (int v = 0; v < kThreadColumns; ++v) sum[u][v] += row[u] * column[v];
        }
      }
    }
  };
  multiply(p.rows, p.columns, p.s);
  multiply(p.plain_rows, p.plain_columns, p.r0);

  const Sum alpha = static_cast<Sum>(p.alpha);
#pragma unroll
  for (int u = 0; u < kThreadRows; ++u) {
    if (thread_row + u >= rows_left) break;
    WeightGroup<T> result;
#pragma unroll
    for (int v = 0; v < kThreadColumns; ++v) {
      const Sum old = p.overwrite ? Sum(0) : static_cast<Sum>(held[u].element[v]);
      result.element[v] = static_cast<T>(old + alpha * sum[u][v]);
    }
    if constexpr (kVector) {
      if (owns_columns) {
        *reinterpret_cast<WeightGroup<T>*>(weight + u * p.row_stride) = result;
      }
    } else {
#pragma unroll
      for (int v = 0; v < kThreadColumns; ++v) {
        if (thread_column + v < columns_left) weight[u * p.row_stride + v] = result.element[v];
      }
    }
  }
}

template <class T>
cudaError_t launch(const MergeParams& p, cudaStream_t stream) {
  const int64_t tiles = p.row_blocks * p.column_blocks *
                        ((p.row_width + kTileRows - 1) / kTileRows) *
                        ((p.column_width + kTileColumns - 1) / kTileColumns);
  if (tiles > INT32_MAX) return cudaErrorInvalidConfiguration;
  const auto kernel = p.vector ? merge_kernel<T, true> : merge_kernel<T, false>;
  kernel<<<static_cast<unsigned>(tiles), kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_merge(const MergeParams& params, cudaStream_t stream) {
  switch (params.type) {
    case ElementType::kFloat64:
      return launch<double>(params, stream);
    case ElementType::kFloat32:
      return launch<float>(params, stream);
    case ElementType::kBFloat16:
      return launch<__nv_bfloat16>(params, stream);
    case ElementType::kFloat16:
      return launch<__half>(params, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace gralora

// W[i, o, j, c] (+)= alpha * ( sum_q R[i, j, o, q] * C[i, j, c, q]  +  sum_q R0[o, q] * C0[c, q] )
// for float32 and float64 weights, with ordinary multiply-adds in the weight's own type.
//
// - W [row_blocks*row_width, column_blocks*column_width], unit column stride: read and written once
// - R, C: the grid factors seen from block pair (i, j), of rank s (kernels/merge.h)
// - R0, C0: the plain factors, of rank r0; all factors with any strides and element type
//
// The tile is merge_tile.cuh's; a thread owns 4 rows x 8 consecutive columns. It starts its loads
// of W (128 bytes for fp32) before the CTA stages 16 ranks of both factors in shared memory, and
// the wait hides under the multiply-adds.
//
// Shared memory: (64 + 128) * 16 * 4 B = 12 KiB (24 KiB for fp64). Registers: 32 sums and 32 of W
// in the weight's type: two CTAs per SM for fp32, one for fp64. Called by kernels/merge.cu.
#include "kernels/merge_launch.h"
#include "kernels/merge_tile.cuh"

namespace gralora::merge {
namespace {

constexpr int kStrip = 1;
constexpr int kRanks = 16;
constexpr int kColumnThreads = kTileColumns / kGroup;
constexpr int kHalf = kGroup / 2;

/// Where column `c` of the tile stands in shared memory: the first halves of all threads' groups,
/// then the second halves, so that neighbouring threads read neighbouring 16-byte words.
__device__ int column_slot(int c) {
  return c % kGroup / kHalf * (kTileColumns / 2) + c / kGroup * kHalf + c % kHalf;
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2)
    merge_float_kernel(MergeParams p) {
  __shared__ alignas(16) T row_tile[kRanks][kTileRows];
  __shared__ alignas(16) T column_tile[kRanks][kTileColumns];

  const Tile tile(p, kStrip);
  const int thread_row = threadIdx.x / kColumnThreads * kGroups;
  const int thread_column = threadIdx.x % kColumnThreads * kGroup;
  T* own = static_cast<T*>(p.weight) + tile.weight(p) + thread_row * p.row_stride + thread_column;
  const int columns_left = tile.columns_left - thread_column;
  Group<T> held[kGroups];
  if (!p.overwrite) {
#pragma unroll
    for (int u = 0; u < kGroups; ++u) {
      read_group<kVector>(held[u], own + u * p.row_stride, thread_row + u < tile.rows_left,
                          columns_left);
    }
  }

  T sum[kGroups][kGroup] = {};
  const auto multiply = [&](const FactorView& rows, const FactorView& columns, int64_t rank) {
    for (int64_t first = 0; first < rank; first += kRanks) {
      const int ranks = static_cast<int>(min(rank - first, int64_t{kRanks}));
      __syncthreads();  // the previous ranks have been read by all
      stage_factor<T, kTileRows, kRanks>(
          rows, tile.factor(rows, tile.row) + first * rows.rank_stride, tile.rows_left, ranks,
          [&](int wide, int q, T value) { row_tile[q][wide] = value; });
      stage_factor<T, kTileColumns, kRanks>(
          columns, tile.factor(columns, tile.column) + first * columns.rank_stride,
          tile.columns_left, ranks,
          [&](int wide, int q, T value) { column_tile[q][column_slot(wide)] = value; });
      __syncthreads();
      for (int q = 0; q < ranks; ++q) {
        T row[kGroups], column[kGroup];
#pragma unroll
        for (int u = 0; u < kGroups; ++u) row[u] = row_tile[q][thread_row + u];
#pragma unroll
        for (int v = 0; v < kGroup; ++v) {
          column[v] =
              column_tile[q][v / kHalf * (kTileColumns / 2) + thread_column / 2 + v % kHalf];
        }
#pragma unroll
        for (int u = 0; u < kGroups; ++u) {
#pragma unroll
          for (int v = 0; v < kGroup; ++v) sum[u][v] += row[u] * column[v];
        }
      }
    }
  };
  multiply(p.rows, p.columns, p.s);
  multiply(p.plain_rows, p.plain_columns, p.r0);

  const T alpha = static_cast<T>(p.alpha);
#pragma unroll
  for (int u = 0; u < kGroups; ++u) {
    Group<T> result;
#pragma unroll
    for (int v = 0; v < kGroup; ++v) {
      result.element[v] = (p.overwrite ? T(0) : held[u].element[v]) + alpha * sum[u][v];
    }
    write_group<kVector>(result, own + u * p.row_stride, thread_row + u < tile.rows_left,
                         columns_left);
  }
}

template <class T>
cudaError_t launch(const MergeParams& p, cudaStream_t stream) {
  const auto kernel = p.vector ? merge_float_kernel<T, true> : merge_float_kernel<T, false>;
  kernel<<<static_cast<unsigned>(count_strips(p, kStrip)), kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_float32(const MergeParams& params, cudaStream_t stream) {
  return launch<float>(params, stream);
}

cudaError_t launch_float64(const MergeParams& params, cudaStream_t stream) {
  return launch<double>(params, stream);
}

}  // namespace gralora::merge

// W[i, o, j, c] (+)= alpha * ( sum_q R[i, j, o, q] * C[i, j, c, q]  +  sum_q R0[o, q] * C0[c, q] )
// for bfloat16 and float16 weights, on tensor cores.
//
// - W [row_blocks*row_width, column_blocks*column_width], unit column stride: read and written once
// - R, C: the grid factors seen from block pair (i, j), of rank s (kernels/merge.h)
// - R0, C0: the plain factors, of rank r0; all factors with any strides and element type
//
// The tile is merge_tile.cuh's. Its eight warps stand 4 x 2; a warp owns 16 rows x 64 columns as
// eight mma.sync m16n8k16 (bf16 operands, fp32 sums). The columns of four neighbouring MMA tiles
// are dealt out so that a thread's sums are eight consecutive columns: 16-byte accesses of W.
//
// kParts: a factor enters as one bf16 number where all factors are bf16, else as three whose sum is
// the fp32 value; products of parts are kept down to 2^-24 of the whole (six MMAs), so that the
// only rounding that shows is the weight's own.
//
// A CTA walks down a strip of four tiles. Where the whole rank fits one MMA step (s <= 16 and no
// plain part) the column factor is staged once for the strip. The next tile's W (64 bytes per
// thread) is on its way while this tile's is used: two CTAs per SM keep 32 KiB of reads in flight,
// above the 18 KiB that cover the memory's latency.
//
// Shared memory: (64 + 128) * 24 * 2 B = 9 KiB a part; rows padded to 24 numbers, so that the eight
// rows of a fragment lie in different banks. Called by kernels/merge.cu.
#include "kernels/merge_launch.h"
#include "kernels/merge_tile.cuh"
#include "kernels/ptx.cuh"

namespace gralora::merge {
namespace {

constexpr int kRanks = 16;  // of one MMA
constexpr int kPitch = kRanks + 8;
constexpr int kWarpRows = 16;
constexpr int kWarpColumns = 64;
constexpr int kMmaColumns = 8;
constexpr int kSpan = 4 * kMmaColumns;  // columns whose owners are dealt out together
constexpr int kStrip = 4;
constexpr int kMaxParts = 3;

using Operand = __nv_bfloat16;

/// Splits a factor entry into parts that sum to it, the larger first. Truncation keeps the first
/// part of a finite value finite. An Inf has no further parts; times the partner's zero parts it
/// gives NaN, so of an Inf in three parts only that the weight is not finite is left.
template <int kParts, class Store>
__device__ void split(float value, const Store& store) {
  if constexpr (kParts == 1) {
    store(0, __float2bfloat16_rn(value));
  } else {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const float truncated = __uint_as_float(__float_as_uint(value) & 0xffff0000u);
      store(part, __float2bfloat16_rn(truncated));
      value = truncated == value ? 0.0f : value - truncated;
    }
  }
}

/// Where column `c` of the tile is kept: MMA tile nt of a span holds in its columns 2t, 2t+1 what
/// thread t of a quad owns as columns 8t + 2nt, 8t + 2nt + 1.
__device__ int column_slot(int c) {
  const int within = c % kSpan;
  const int owner = within / kGroup;
  const int mma_tile = within % kGroup / 2;
  return c / kSpan * kSpan + mma_tile * kMmaColumns + owner * 2 + within % 2;
}

/// One step of up to 16 ranks: sum += rows x columns for a warp's 16 x 64 weights.
template <int kParts>
__device__ void multiply_step(float (&sum)[2][4][4], const Operand (*rows)[kTileRows][kPitch],
                              const Operand (*columns)[kTileColumns][kPitch], int warp_row,
                              int warp_column, int quad, int member) {
  const auto pair = [](const Operand* at) { return *reinterpret_cast<const uint32_t*>(at); };
  uint32_t a[kParts][4];
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
#pragma unroll
    for (int f = 0; f < 4; ++f) {
      a[part][f] = pair(rows[part][warp_row + quad + f % 2 * 8] + member * 2 + f / 2 * 8);
    }
  }
#pragma unroll
  for (int span = 0; span < 2; ++span) {
#pragma unroll
    for (int nt = 0; nt < 4; ++nt) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const Operand* column =
            columns[part][warp_column + span * kSpan + nt * kMmaColumns + quad] + member * 2;
        const uint32_t b[2] = {pair(column), pair(column + 8)};
        // The parts' places add up to fewer than kParts: what is left out is below 2^-24.
#pragma unroll
        for (int other = 0; other + part < kParts; ++other)
          ptx::multiply_add<Operand>(sum[span][nt], a[other], b[0], b[1]);
      }
    }
  }
}

template <class T, bool kVector, int kParts>
__global__ void __launch_bounds__(kThreads, 2) merge_half_kernel(MergeParams p) {
  __shared__ alignas(16) Operand row_parts[kParts][kTileRows][kPitch];
  __shared__ alignas(16) Operand column_parts[kParts][kTileColumns][kPitch];

  Tile tile(p, kStrip);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int quad = lane / 4;    // row within a fragment
  const int member = lane % 4;  // column pair within a fragment
  const int warp_row = warp / 2 * kWarpRows;
  const int warp_column = warp % 2 * kWarpColumns;
  const int own_row = warp_row + quad;
  const int own_column = warp_column + member * kGroup;
  T* own = static_cast<T*>(p.weight) + tile.weight(p) + own_row * p.row_stride + own_column;
  // Group u lies u / 2 * 8 rows and u % 2 spans from the thread's first weight.
  const auto read = [&](Group<T>(&group)[kGroups], const T* from, int rows_left) {
#pragma unroll
    for (int u = 0; u < kGroups; ++u) {
      read_group<kVector>(group[u], from + u / 2 * 8 * p.row_stride + u % 2 * kSpan,
                          own_row + u / 2 * 8 < rows_left,
                          tile.columns_left - own_column - u % 2 * kSpan);
    }
  };
  const auto stage_rows = [&](const FactorView& view, int64_t first, int ranks) {
    stage_factor<float, kTileRows, kRanks>(
        view, tile.factor(view, tile.row) + first * view.rank_stride, tile.rows_left, ranks,
        [&](int wide, int q, float value) {
          split<kParts>(value, [&](int part, Operand x) { row_parts[part][wide][q] = x; });
        });
  };
  const auto stage_columns = [&](const FactorView& view, int64_t first, int ranks) {
    stage_factor<float, kTileColumns, kRanks>(
        view, tile.factor(view, tile.column) + first * view.rank_stride, tile.columns_left, ranks,
        [&](int wide, int q, float value) {
          const int slot = column_slot(wide);
          split<kParts>(value, [&](int part, Operand x) { column_parts[part][slot][q] = x; });
        });
  };

  Group<T> held[kGroups], next[kGroups];
  if (!p.overwrite) read(held, own, tile.rows_left);
  const bool one_step = p.s <= kRanks && p.r0 == 0;
  if (one_step) stage_columns(p.columns, 0, static_cast<int>(p.s));

#pragma unroll 1
  for (int t = 0; t < kStrip && tile.rows_left > 0; ++t) {
    T* below = own + kTileRows * p.row_stride;
    if (!p.overwrite && t + 1 < kStrip) read(next, below, tile.rows_left - kTileRows);

    float sum[2][4][4] = {};  // [span][MMA tile][fragment]
#pragma unroll 1
    for (int plain = 0; plain < 2; ++plain) {
      const FactorView& rows = plain ? p.plain_rows : p.rows;
      const FactorView& columns = plain ? p.plain_columns : p.columns;
      const int rank = static_cast<int>(plain ? p.r0 : p.s);
#pragma unroll 1
      for (int first = 0; first < rank; first += kRanks) {
        const int ranks = min(rank - first, kRanks);
        __syncthreads();  // the previous step has been read by all
        stage_rows(rows, first, ranks);
        if (!one_step) stage_columns(columns, first, ranks);
        __syncthreads();
        multiply_step<kParts>(sum, row_parts, column_parts, warp_row, warp_column, quad, member);
      }
    }

    const float alpha = static_cast<float>(p.alpha);
#pragma unroll
    for (int u = 0; u < kGroups; ++u) {
      Group<T> result;
#pragma unroll
      for (int v = 0; v < kGroup; ++v) {
        const float delta = alpha * sum[u % 2][v / 2][u / 2 * 2 + v % 2];
        const float old = p.overwrite ? 0.0f : static_cast<float>(held[u].element[v]);
        result.element[v] = static_cast<T>(old + delta);
      }
      write_group<kVector>(result, own + u / 2 * 8 * p.row_stride + u % 2 * kSpan,
                           own_row + u / 2 * 8 < tile.rows_left,
                           tile.columns_left - own_column - u % 2 * kSpan);
      held[u] = next[u];
    }
    tile.descend();
    own = below;
  }
}

bool is_exact_in_bfloat16(const MergeParams& p) {
  const auto exact = [](const FactorView& rows, const FactorView& columns) {
    return rows.type == ElementType::kBFloat16 && columns.type == ElementType::kBFloat16;
  };
  return (p.s == 0 || exact(p.rows, p.columns)) &&
         (p.r0 == 0 || exact(p.plain_rows, p.plain_columns));
}

template <class T>
cudaError_t launch(const MergeParams& p, cudaStream_t stream) {
  using Kernel = void (*)(MergeParams);
  const Kernel kernel =
      is_exact_in_bfloat16(p)
          ? (p.vector ? merge_half_kernel<T, true, 1> : merge_half_kernel<T, false, 1>)
          : (p.vector ? merge_half_kernel<T, true, kMaxParts>
                      : merge_half_kernel<T, false, kMaxParts>);
  kernel<<<static_cast<unsigned>(count_strips(p, kStrip)), kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_bfloat16(const MergeParams& params, cudaStream_t stream) {
  return launch<__nv_bfloat16>(params, stream);
}

cudaError_t launch_float16(const MergeParams& params, cudaStream_t stream) {
  return launch<__half>(params, stream);
}

}  // namespace gralora::merge

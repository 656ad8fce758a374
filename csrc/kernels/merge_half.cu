// W[i, o, j, c] (+)= alpha * ( sum_q R[i, j, o, q] * C[i, j, c, q]  +  sum_q R0[o, q] * C0[c, q] )
// for bfloat16 and float16 weights, on tensor cores.
//
// W    [row_blocks*row_width, column_blocks*column_width]   unit column stride, read once, written
// once R, C the grid factors seen from block pair (i, j), rank s;  R0, C0 the plain factors, rank
// r0
//      (kernels/merge.h: any strides, any element type)
//
// The tile is merge_tile.cuh's. Its eight warps stand 4 x 2; a warp owns 16 rows x 64 columns as
// eight mma.sync m16n8k16 (bf16 operands, fp32 sums). The columns of four neighbouring MMA tiles
// are dealt out so that a thread's sums are eight consecutive columns: 16-byte accesses of W.
//
// A factor enters as two bf16 numbers, value = high + low, and a product as three MMAs (high*high,
// high*low, low*high). That keeps 16 bits of the factors, exactly for bf16 and fp16 ones: far below
// the rounding of the weight, for a tenth of the time that the tile's bytes need.
//
// Each thread starts its loads of the factors and of W (64 bytes) before it waits for any. Shared
// memory: (64 + 128) * 24 * 2 parts * 2 B = 18 KiB; rows padded to 24 numbers, so that the eight
// rows of a fragment lie in different banks. Two CTAs per SM keep 32 KiB of reads in flight, above
// the 18 KiB that cover the memory's latency. Called by kernels/merge.cu.
#include "kernels/merge_launch.h"
#include "kernels/merge_tile.cuh"

namespace gralora::merge {
namespace {

constexpr int kRanks = 16;  // of one MMA
constexpr int kPitch = kRanks + 8;
constexpr int kWarpRows = 16;
constexpr int kWarpColumns = 64;
constexpr int kMmaColumns = 8;
constexpr int kSpan = 4 * kMmaColumns;  // columns whose owners are dealt out together
constexpr int kParts = 2;               // high and low

using Operand = __nv_bfloat16;

/// D += A B, A 16 x 16 row-major, B 16 x 8 column-major; fragments as the PTX manual lays them out.
__device__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// Stores a factor entry as high + low. Truncation keeps the high part finite for finite values; an
/// Inf has no low part, which would be NaN.
__device__ void store_parts(Operand* high, Operand* low, float value) {
  const float truncated = __uint_as_float(__float_as_uint(value) & 0xffff0000u);
  *high = __float2bfloat16_rn(truncated);
  *low = __float2bfloat16_rn(truncated == value ? 0.0f : value - truncated);
}

/// Where column `c` of the tile is kept: MMA tile nt of a span holds in its columns 2t, 2t+1 what
/// thread t of a quad owns as columns 8t + 2nt, 8t + 2nt + 1.
__device__ int column_slot(int c) {
  const int within = c % kSpan;
  const int owner = within / kGroup;
  const int mma_tile = within % kGroup / 2;
  return c / kSpan * kSpan + mma_tile * kMmaColumns + owner * 2 + within % 2;
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads, 2) merge_half_kernel(MergeParams p) {
  __shared__ alignas(16) Operand row_parts[kParts][kTileRows][kPitch];
  __shared__ alignas(16) Operand column_parts[kParts][kTileColumns][kPitch];

  const Tile tile(p);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int quad = lane / 4;    // row within a fragment
  const int member = lane % 4;  // column pair within a fragment
  const int warp_row = warp / 2 * kWarpRows;
  const int warp_column = warp % 2 * kWarpColumns;
  const auto row_of = [&](int u) { return warp_row + quad + u / 2 * 8; };
  const auto column_of = [&](int u) { return warp_column + u % 2 * kSpan + member * kGroup; };

  T* weight = static_cast<T*>(p.weight);
  Group<T> held[kGroups];
  if (!p.overwrite) {
#pragma unroll
    for (int u = 0; u < kGroups; ++u) {
      read_group<kVector>(held[u], weight, tile, p.row_stride, row_of(u), column_of(u));
    }
  }

  float sum[2][4][4] = {};  // [span][MMA tile][fragment]
  const auto multiply = [&](const FactorView& rows, const FactorView& columns, int64_t rank) {
    for (int64_t first = 0; first < rank; first += kRanks) {
      const int ranks = static_cast<int>(min(rank - first, int64_t{kRanks}));
      __syncthreads();  // the previous ranks have been read by all
      stage_factor<float, kTileRows, kRanks>(
          rows, tile.factor(rows, tile.row) + first * rows.rank_stride, tile.rows_left, ranks,
          [&](int wide, int q, float value) {
            store_parts(&row_parts[0][wide][q], &row_parts[1][wide][q], value);
          });
      stage_factor<float, kTileColumns, kRanks>(
          columns, tile.factor(columns, tile.column) + first * columns.rank_stride,
          tile.columns_left, ranks, [&](int wide, int q, float value) {
            const int slot = column_slot(wide);
            store_parts(&column_parts[0][slot][q], &column_parts[1][slot][q], value);
          });
      __syncthreads();

      const auto pair = [](const Operand* at) { return *reinterpret_cast<const uint32_t*>(at); };
      uint32_t a[kParts][4];
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
#pragma unroll
        for (int f = 0; f < 4; ++f) {
          const Operand* row = row_parts[part][warp_row + quad + f % 2 * 8];
          a[part][f] = pair(row + member * 2 + f / 2 * 8);
        }
      }
#pragma unroll
      for (int span = 0; span < 2; ++span) {
#pragma unroll
        for (int nt = 0; nt < 4; ++nt) {
          uint32_t b[kParts][2];
#pragma unroll
          for (int part = 0; part < kParts; ++part) {
            const Operand* column =
                column_parts[part][warp_column + span * kSpan + nt * kMmaColumns + quad];
            b[part][0] = pair(column + member * 2);
            b[part][1] = pair(column + member * 2 + 8);
          }
          multiply_add(sum[span][nt], a[0], b[0]);
          multiply_add(sum[span][nt], a[0], b[1]);
          multiply_add(sum[span][nt], a[1], b[0]);
        }
      }
    }
  };
  multiply(p.rows, p.columns, p.s);
  multiply(p.plain_rows, p.plain_columns, p.r0);

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
    write_group<kVector>(result, weight, tile, p.row_stride, row_of(u), column_of(u));
  }
}

template <class T>
cudaError_t launch(const MergeParams& p, cudaStream_t stream) {
  const auto kernel = p.vector ? merge_half_kernel<T, true> : merge_half_kernel<T, false>;
  kernel<<<static_cast<unsigned>(count_tiles(p)), kThreads, 0, stream>>>(p);
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

// latent[q, t, (p, rank)] = scaling * sum_w x[t, (p, w)] * factor[p, w, (q, rank)]
// for bfloat16 and float16: H from x and A, G from dy and B.
//
// x       [T, inner*width]          read once per slice of columns, unit column stride
// factor  [inner, width, outer*s]   unit stride along the columns (A) or along the width (B)
// latent  [outer, T, inner*s]       the permutation of (p, q) is only the address of the store
//
// For one p this is a tall product [T, width] x [width, outer*s], bound by the read of x. A CTA of
// eight warps owns kTokens tokens and kColumns columns of one p and walks along the width in steps
// of kDepth through a ring of kStages buffers that cp.async fills. Operands go from swizzled shared
// memory by ldmatrix into mma.sync m16n8k16 with fp32 sums; `scaling` enters the sum before it is
// rounded.
//
// Tile 64 x 32: three CTAs on an SM keep about 180 KiB of reads on their way, several times what
// covers the memory's latency. More columns than 32 are slices, and every CTA reads its slice of
// the factor from L2; from about 2^17 latents a block on, that traffic equals x's and a library
// product with bigger tiles is the better choice (dispatch/select_project.cpp). Tile 16 x 32: for
// so few tokens that the larger one would leave most of the chip idle.
//
// kWarpsDepth > 1 lets warps share a tile by splitting the width among them: where tokens are few,
// the loop over the width is what takes time. Their sums are added in the order of the warps, so
// the same inputs give the same bits.
//
// Beyond the last token, the last column and the end of the width the buffers hold zeros, in both
// operands along the width: an Inf or NaN reaches only its own token or column.
//
// Shared memory: kStages * (kTokens + kColumns) * kDepth * 2 B, 48 and 72 KiB: one CTA fits
// consumer GPUs' 99 KiB. Registers: 16 sums, at most 80 in all, which three CTAs on an SM leave to
// a thread. Instantiated by project_bf16.cu and project_fp16.cu, called by project.cu.
#pragma once

#include "kernels/mma.cuh"
#include "kernels/project.h"

namespace gralora::project {

template <int kTokens_, int kColumns_, int kDepth_, int kWarpsTokens_, int kWarpsColumns_,
          int kWarpsDepth_, int kStages_>
struct Tile {
  static constexpr int kTokens = kTokens_, kColumns = kColumns_, kDepth = kDepth_;
  static constexpr int kWarpsTokens = kWarpsTokens_, kWarpsColumns = kWarpsColumns_;
  static constexpr int kWarpsDepth = kWarpsDepth_, kStages = kStages_;
  static constexpr int kThreads = 32 * kWarpsTokens * kWarpsColumns * kWarpsDepth;
  static constexpr int kWarpTokens = kTokens / kWarpsTokens;
  static constexpr int kWarpColumns = kColumns / kWarpsColumns;
  static constexpr int kStageElements = (kTokens + kColumns) * kDepth;
  static constexpr int kSharedBytes = kStages * kStageElements * 2;
  static constexpr int kSums = kWarpTokens / 16 * (kWarpColumns / 8) * 4;  // of one thread

  static_assert(kThreads == 256, "the copies are dealt out among eight warps");
  static_assert(kWarpTokens % 16 == 0 && kWarpColumns % 16 == 0, "whole fragments");
  static_assert(kDepth / 16 % kWarpsDepth == 0, "whole MMA steps per warp");
  static_assert(kSums <= 16, "three CTAs share an SM's registers");
  static_assert(kSharedBytes <= 96 * 1024, "must fit consumer GPUs");
  static_assert((kWarpsDepth - 1) * kWarpsTokens * kWarpsColumns * 32 * kSums * 4 <= kSharedBytes,
                "the warps' sums are exchanged in the memory of the ring");
};

inline constexpr int kChunk = 8;  // elements of a 16-byte copy

/// Copies tiles of `kRows` x `kColumns` elements to shared memory. What a thread copies keeps its
/// place in the tile, so all but the advance along the tensor is computed once.
template <int kThreads, int kRows, int kColumns, class T>
class TileCopy {
 public:
  /// `source` is the tensor's first element of the first tile, rows are `pitch` apart.
  __device__ TileCopy(const T* source, int64_t pitch)
      : row_(static_cast<int>(threadIdx.x) / kChunks),
        column_(static_cast<int>(threadIdx.x) % kChunks * kChunk),
        offset_((row_ * kChunks + mma::swizzle<kChunks>(row_, column_ / kChunk)) * 16),
        source_(source),
        from_(source + row_ * pitch + column_),
        step_(kRowsAtOnce * pitch) {}

  /// The tile that starts `advance` elements further, of which `rows` rows and `columns` columns
  /// exist; zeros elsewhere.
  __device__ void operator()(uint32_t to, int64_t advance, int rows, int columns) const {
    const int inside = min(max(columns - column_, 0), kChunk) * 2;
    const T* from = from_ + advance;
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int row = row_ + turn * kRowsAtOnce;
      if (kRows % kRowsAtOnce != 0 && row >= kRows) break;
      const int bytes = row < rows ? inside : 0;
      mma::copy_16_bytes_async(to + offset_ + turn * kRowsAtOnce * kChunks * 16,
                               bytes > 0 ? from : source_, bytes);
      from += step_;
    }
  }

 private:
  static constexpr int kChunks = kColumns / kChunk;
  static constexpr int kRowsAtOnce = kThreads / kChunks;
  static constexpr int kTurns = (kRows + kRowsAtOnce - 1) / kRowsAtOnce;
  static_assert(kRowsAtOnce % 8 == 0, "the swizzle repeats every eight rows");

  int row_, column_;
  uint32_t offset_;
  const T* source_;
  const T* from_;
  int64_t step_;
};

template <class T, class Tile, bool kWidthIsContiguous>
__global__ void __launch_bounds__(Tile::kThreads, 3) project_kernel(const ProjectParams p) {
  extern __shared__ __align__(128) unsigned char shared[];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_depth = warp / (Tile::kWarpsTokens * Tile::kWarpsColumns);
  const int warp_tokens = warp / Tile::kWarpsColumns % Tile::kWarpsTokens * Tile::kWarpTokens;
  const int warp_columns = warp % Tile::kWarpsColumns * Tile::kWarpColumns;

  // Slices of columns are neighbours, then blocks: they share tokens of x while L2 has them.
  const int columns = p.outer * p.s;
  const auto slices = static_cast<uint32_t>((columns + Tile::kColumns - 1) / Tile::kColumns);
  const int column0 = static_cast<int>(blockIdx.x % slices) * Tile::kColumns;
  const auto block = static_cast<int>(blockIdx.x / slices % static_cast<uint32_t>(p.inner));
  const int64_t token0 =
      static_cast<int64_t>(blockIdx.x / slices / static_cast<uint32_t>(p.inner)) * Tile::kTokens;

  const T* x = static_cast<const T*>(p.x) + token0 * p.x_row_stride + block * p.width;
  const T* factor = static_cast<const T*>(p.factor) + block * p.factor_block_stride +
                    (kWidthIsContiguous ? column0 * p.factor_pitch : column0);
  const uint32_t ring = mma::shared_address(shared);
  const auto steps = static_cast<int>((p.width + Tile::kDepth - 1) / Tile::kDepth);

  using FactorCopy = std::conditional_t<kWidthIsContiguous,
                                        TileCopy<Tile::kThreads, Tile::kColumns, Tile::kDepth, T>,
                                        TileCopy<Tile::kThreads, Tile::kDepth, Tile::kColumns, T>>;
  const TileCopy<Tile::kThreads, Tile::kTokens, Tile::kDepth, T> copy_x(x, p.x_row_stride);
  const FactorCopy copy_factor(factor, p.factor_pitch);
  const int tokens_left = static_cast<int>(min(p.T - token0, int64_t{Tile::kTokens}));
  const int columns_left = columns - column0;

  const auto copy_stage = [&](int step) {
    const uint32_t to =
        ring + static_cast<uint32_t>(step % Tile::kStages * Tile::kStageElements * 2);
    const uint32_t to_factor = to + Tile::kTokens * Tile::kDepth * 2;
    const int w = step * Tile::kDepth;
    const int width_left = static_cast<int>(p.width) - w;
    copy_x(to, w, tokens_left, width_left);
    if constexpr (kWidthIsContiguous) {
      copy_factor(to_factor, w, columns_left, width_left);
    } else {
      copy_factor(to_factor, w * p.factor_pitch, width_left, columns_left);
    }
  };

  constexpr int kTokenFragments = Tile::kWarpTokens / 16;
  constexpr int kColumnPairs = Tile::kWarpColumns / 16;
  float sums[kTokenFragments][2 * kColumnPairs][4] = {};

  const auto multiply_stage = [&](int step) {
    const uint32_t x_tile =
        ring + static_cast<uint32_t>(step % Tile::kStages * Tile::kStageElements * 2);
    const uint32_t factor_tile = x_tile + Tile::kTokens * Tile::kDepth * 2;
    constexpr int kDepthChunks = Tile::kDepth / kChunk;
#pragma unroll
    for (int turn = 0; turn < Tile::kDepth / 16 / Tile::kWarpsDepth; ++turn) {
      const int depth = (turn * Tile::kWarpsDepth + warp_depth) * 16;
      uint32_t a[kTokenFragments][4];
#pragma unroll
      for (int u = 0; u < kTokenFragments; ++u) {
        const int row = warp_tokens + u * 16 + lane % 16;
        const int chunk = mma::swizzle<kDepthChunks>(row, depth / kChunk + lane / 16);
        mma::load_matrices(a[u], x_tile + static_cast<uint32_t>(row * kDepthChunks + chunk) * 16);
      }
#pragma unroll
      for (int v = 0; v < kColumnPairs; ++v) {
        uint32_t b[4];  // two fragments of 8 columns
        const int column = warp_columns + v * 16;
        if constexpr (kWidthIsContiguous) {
          const int row = column + lane % 8 + lane / 16 * 8;
          const int chunk = mma::swizzle<kDepthChunks>(row, depth / kChunk + lane / 8 % 2);
          mma::load_matrices(b,
                             factor_tile + static_cast<uint32_t>(row * kDepthChunks + chunk) * 16);
        } else {
          constexpr int kColumnChunks = Tile::kColumns / kChunk;
          const int row = depth + lane % 16;
          const int chunk = mma::swizzle<kColumnChunks>(row, column / kChunk + lane / 16);
          mma::load_matrices_transposed(
              b, factor_tile + static_cast<uint32_t>(row * kColumnChunks + chunk) * 16);
        }
#pragma unroll
        for (int u = 0; u < kTokenFragments; ++u) {
          mma::multiply_add<T>(sums[u][2 * v], a[u], b[0], b[1]);
          mma::multiply_add<T>(sums[u][2 * v + 1], a[u], b[2], b[3]);
        }
      }
    }
  };

  // Every step commits one group, an empty one past the end, so the wait counts steps.
#pragma unroll
  for (int step = 0; step < Tile::kStages - 1; ++step) {
    if (step < steps) copy_stage(step);
    mma::commit_copies();
  }
  for (int step = 0; step < steps; ++step) {
    mma::wait_for_copies<Tile::kStages - 2>();
    // Makes the copies of all threads visible, and frees the buffer that the next copy overwrites.
    __syncthreads();
    if (step + Tile::kStages - 1 < steps) copy_stage(step + Tile::kStages - 1);
    mma::commit_copies();
    multiply_stage(step);
  }

  if constexpr (Tile::kWarpsDepth > 1) {
    constexpr int kWarps = Tile::kWarpsTokens * Tile::kWarpsColumns;
    float* exchange = reinterpret_cast<float*>(shared) + warp % kWarps * 32 * Tile::kSums + lane;
    float* flat = &sums[0][0][0];
    __syncthreads();  // the ring is read no more
    if (warp_depth > 0) {
#pragma unroll
      for (int e = 0; e < Tile::kSums; ++e) {
        exchange[(warp_depth - 1) * kWarps * 32 * Tile::kSums + e * 32] = flat[e];
      }
    }
    __syncthreads();
    if (warp_depth > 0) return;
#pragma unroll
    for (int other = 0; other < Tile::kWarpsDepth - 1; ++other) {
#pragma unroll
      for (int e = 0; e < Tile::kSums; ++e) {
        flat[e] += exchange[other * kWarps * 32 * Tile::kSums + e * 32];
      }
    }
  }

  // A thread holds pairs of neighbouring columns; where s is even they are neighbours in memory
  // too.
  T* latent = static_cast<T*>(p.latent) + token0 * p.latent_pitch + block * p.s;
  const bool pairs = p.s % 2 == 0;
#pragma unroll
  for (int v = 0; v < 2 * kColumnPairs; ++v) {
    const int column = column0 + warp_columns + v * 8 + lane % 4 * 2;
    if (column >= columns) continue;
    const int q = column / p.s;
    T* const to = latent + q * p.latent_plane + (column - q * p.s);
#pragma unroll
    for (int half = 0; half < 2 * kTokenFragments; ++half) {
      const int token = warp_tokens + half * 8 + lane / 4;
      if (token >= tokens_left) continue;
      const float first = sums[half / 2][v][half % 2 * 2] * p.scaling;
      const float second = sums[half / 2][v][half % 2 * 2 + 1] * p.scaling;
      if (pairs) {
        struct alignas(4) Pair {
          T first, second;
        };
        *reinterpret_cast<Pair*>(to + token * p.latent_pitch) = {T(first), T(second)};
      } else {
        to[token * p.latent_pitch] = T(first);
        if (column + 1 < columns) {
          const int q1 = (column + 1) / p.s;
          latent[q1 * p.latent_plane + (column + 1 - q1 * p.s) + token * p.latent_pitch] =
              T(second);
        }
      }
    }
  }
}

template <class T, class Tile, bool kWidthIsContiguous>
cudaError_t launch_tile(const ProjectParams& p, cudaStream_t stream) {
  const auto kernel = project_kernel<T, Tile, kWidthIsContiguous>;
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes);
  if (status != cudaSuccess) return status;
  const int64_t slices = (p.outer * p.s + Tile::kColumns - 1) / Tile::kColumns;
  const int64_t blocks = (p.T + Tile::kTokens - 1) / Tile::kTokens * p.inner * slices;
  kernel<<<static_cast<unsigned>(blocks), Tile::kThreads, Tile::kSharedBytes, stream>>>(p);
  return cudaGetLastError();
}

template <class T, bool kWidthIsContiguous>
cudaError_t launch(const ProjectParams& p, cudaStream_t stream) {
  switch (p.tile) {
    case ProjectTile::k16x32:
      return launch_tile<T, Tile<16, 32, 128, 1, 1, 8, 4>, kWidthIsContiguous>(p, stream);
    case ProjectTile::k64x32:
      return launch_tile<T, Tile<64, 32, 64, 4, 1, 2, 6>, kWidthIsContiguous>(p, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_bf16(const ProjectParams& params, cudaStream_t stream);
cudaError_t launch_fp16(const ProjectParams& params, cudaStream_t stream);

}  // namespace gralora::project

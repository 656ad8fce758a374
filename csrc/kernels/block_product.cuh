// The product at the heart of projection, expansion and weight gradient: a CTA's tile of
// left [rows, depth] x right [depth, columns], 16-bit operands, sums in fp32.
//
// The CTA walks along the depth in steps of kDepth through a ring of kStages buffers in shared
// memory that cp.async fills. Fragments leave the swizzled buffers by ldmatrix, transposed on the
// way where an operand lies with its depth along rows, and meet in mma.sync m16n8k16.
//
// Beyond the last row, the last column and the end of the depth the buffers hold zeros, in both
// operands along the depth: an Inf or NaN reaches only its own row or column.
//
// Dropout acts on the left operand in its buffer: each thread clears what it has copied itself, so
// the barrier that publishes the copies publishes the masked ones.
#pragma once

#include <type_traits>

#include "kernels/dropout_mask.cuh"
#include "kernels/ptx.cuh"

namespace gralora {

inline constexpr int kChunk = 8;  // 16-bit elements of a 16-byte copy

/// kWarpsDepth > 1 lets warps share a tile by splitting its depth: add_over_depth() adds their
/// sums.
template <int kRows_, int kColumns_, int kDepth_, int kWarpsRows_, int kWarpsColumns_,
          int kWarpsDepth_, int kStages_>
struct Tile {
  static constexpr int kRows = kRows_, kColumns = kColumns_, kDepth = kDepth_;
  static constexpr int kWarpsRows = kWarpsRows_, kWarpsColumns = kWarpsColumns_;
  static constexpr int kWarpsDepth = kWarpsDepth_, kStages = kStages_;
  static constexpr int kThreads = 32 * kWarpsRows * kWarpsColumns * kWarpsDepth;
  static constexpr int kWarpRows = kRows / kWarpsRows;
  static constexpr int kWarpColumns = kColumns / kWarpsColumns;
  static constexpr int kStageBytes = (kRows + kColumns) * kDepth * 2;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static constexpr int kSums = kWarpRows / 16 * (kWarpColumns / 8) * 4;  // of one thread
  // That share an SM's registers: three leave 80 to a thread, two 128.
  static constexpr int kBlocksPerProcessor = kSums <= 16 ? 3 : 2;

  static_assert(kThreads == 256, "the copies are dealt out among eight warps");
  static_assert(kWarpRows % 16 == 0 && kWarpColumns % 16 == 0, "whole fragments");
  static_assert(kDepth / 16 % kWarpsDepth == 0, "whole MMA steps per warp");
  static_assert(kSums <= 64, "two CTAs share an SM's registers");
  static_assert(kSharedBytes <= 96 * 1024, "must fit consumer GPUs");
  // Of the ring's memory, in which the warps that share a tile exchange their sums.
  static constexpr int kExchangeBytes =
      (kWarpsDepth - 1) * kWarpsRows * kWarpsColumns * 32 * kSums * 4;
  static_assert(kExchangeBytes <= kSharedBytes);

  __device__ static void synchronize() { __syncthreads(); }
};

/// Neighbours that are stored together.
template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T first, second;
};

template <class T>
__device__ uint32_t round_pair(float first, float second) {
  const Pair<T> pair{T(first), T(second)};
  return *reinterpret_cast<const uint32_t*>(&pair);
}

/// An operand from the CTA's first row or column on, of which `extent` exist; `pitch` elements lie
/// between neighbours along the axis that is not contiguous.
template <class T>
struct Operand {
  const T* data;
  int64_t pitch;
  int extent;
};

/// The part of the tile that this thread's warp owns.
template <class Tile>
struct WarpPlace {
  int lane, row, column, depth;  // depth: the warp's turn among those that share the tile

  __device__ WarpPlace() {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    lane = static_cast<int>(threadIdx.x) % 32;
    row = warp / Tile::kWarpsColumns % Tile::kWarpsRows * Tile::kWarpRows;
    column = warp % Tile::kWarpsColumns * Tile::kWarpColumns;
    depth = warp / (Tile::kWarpsRows * Tile::kWarpsColumns);
  }
};

/// A thread's sums: [u][v][e] belongs to row u*16 + e/2*8 + lane/4 and column v*8 + lane%4*2 + e%2
/// of its warp's part.
template <class Tile>
struct Sums {
  float value[Tile::kWarpRows / 16][Tile::kWarpColumns / 8][4] = {};
};

/// finish(v, half, first, second) for every pair of a thread's sums.
template <class Tile, class Finish>
__device__ void for_each_pair(const Sums<Tile>& sums, const Finish& finish) {
#pragma unroll
  for (int v = 0; v < Tile::kWarpColumns / 8; ++v) {
#pragma unroll
    for (int half = 0; half < Tile::kWarpRows / 8; ++half) {
      const float(&e)[4] = sums.value[half / 2][v];
      finish(v, half, e[half % 2 * 2], e[half % 2 * 2 + 1]);
    }
  }
}

/// Where chunk `chunk` (16 bytes) of row `row` lies in a row of `kChunks` chunks: permuted so that
/// the eight rows of a fragment's matrix, read at one chunk, lie in different banks.
template <int kChunks>
__device__ int swizzle(int row, int chunk) {
  static_assert(kChunks >= 2 && (kChunks & (kChunks - 1)) == 0, "whole powers of two");
  if constexpr (kChunks >= 8) {
    return chunk ^ (row & 7);
  } else {
    // Several rows share the 128 bytes of all banks; only the next set of them needs another order.
    return chunk ^ (row / (8 / kChunks) & (kChunks - 1));
  }
}

/// Copies tiles of `kRows` x `kColumns` elements to shared memory. What a thread copies keeps its
/// place in the tile, so all but the advance along the tensor is computed once.
template <int kThreads, int kRows, int kColumns, class T>
class TileCopy {
 public:
  /// `source` is the tensor's first element of the first tile, rows are `pitch` apart.
  __device__ TileCopy(const T* source, int64_t pitch)
      : row_(static_cast<int>(threadIdx.x) / kChunks),
        column_(static_cast<int>(threadIdx.x) % kChunks * kChunk),
        offset_((row_ * kChunks + swizzle<kChunks>(row_, column_ / kChunk)) * 16),
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
      ptx::copy_16_bytes_async(to + offset_ + turn * kRowsAtOnce * kChunks * 16,
                               bytes > 0 ? from : source_, bytes);
      from += step_;
    }
  }

  /// Drops from this thread's chunks of a tile that lies `rows` and `columns` beyond the first.
  __device__ void drop(uint32_t tile, const ChunkDropout& dropout, int64_t rows,
                       int64_t columns) const {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int row = row_ + turn * kRowsAtOnce;
      if (kRows % kRowsAtOnce != 0 && row >= kRows) break;
      const uint32_t at = tile + offset_ + turn * kRowsAtOnce * kChunks * 16;
      ptx::store_chunk(at, dropout(ptx::load_chunk(at), rows + row, columns + column_));
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

/// One operand's way into shared memory: [kExtent, kDepth] with the depth contiguous, or
/// [kDepth, kExtent] with the depth along rows.
template <class Tile, int kExtent, bool kDepthIsContiguous, class T>
class OperandCopy {
 public:
  __device__ explicit OperandCopy(const Operand<T>& operand)
      : copy_(operand.data, operand.pitch), pitch_(operand.pitch), extent_(operand.extent) {}

  __device__ void operator()(uint32_t to, int done, int depth) const {
    if constexpr (kDepthIsContiguous) {
      copy_(to, done, extent_, depth - done);
    } else {
      copy_(to, done * pitch_, depth - done, extent_);
    }
  }

  __device__ void drop(uint32_t tile, const ChunkDropout& dropout, int done) const {
    if constexpr (kDepthIsContiguous) {
      copy_.drop(tile, dropout, 0, done);
    } else {
      copy_.drop(tile, dropout, done, 0);
    }
  }

 private:
  std::conditional_t<kDepthIsContiguous, TileCopy<Tile::kThreads, kExtent, Tile::kDepth, T>,
                     TileCopy<Tile::kThreads, Tile::kDepth, kExtent, T>>
      copy_;
  int64_t pitch_;
  int extent_;
};

/// For products whose operands are all there already.
struct NoWait {
  __device__ void operator()() const {}
};

/// One product's way through the ring: what it copies to a stage, and multiplies there. kLeftDepth,
/// kRightDepth: whether the operand's depth is its contiguous axis.
template <class T, class Tile, bool kLeftDepth, bool kRightDepth>
class Walk {
 public:
  __device__ Walk(const Operand<T>& left, const Operand<T>& right, int depth)
      : copy_left_(left), copy_right_(right), depth_(depth) {}

  __device__ int steps() const { return (depth_ + Tile::kDepth - 1) / Tile::kDepth; }
  __device__ void copy_left(uint32_t stage, int step) const {
    copy_left_(stage, step * Tile::kDepth, depth_);
  }
  __device__ void copy_right(uint32_t stage, int step) const {
    copy_right_(stage + kRightOffset, step * Tile::kDepth, depth_);
  }
  __device__ void drop_left(uint32_t stage, int step, const ChunkDropout& dropout) const {
    copy_left_.drop(stage, dropout, step * Tile::kDepth);
  }

  __device__ void multiply(Sums<Tile>& sums, uint32_t stage) const {
#pragma unroll
    for (int turn = 0; turn < Tile::kDepth / 16 / Tile::kWarpsDepth; ++turn) {
      const int k = (turn * Tile::kWarpsDepth + place_.depth) * 16;
      uint32_t a[Tile::kWarpRows / 16][4];
#pragma unroll
      for (int u = 0; u < Tile::kWarpRows / 16; ++u) load_left(a[u], stage, place_.row + u * 16, k);
#pragma unroll
      for (int v = 0; v < Tile::kWarpColumns / 16; ++v) {
        uint32_t b[4];  // two fragments of 8 columns
        load_right(b, stage + kRightOffset, place_.column + v * 16, k);
#pragma unroll
        for (int u = 0; u < Tile::kWarpRows / 16; ++u) {
          ptx::multiply_add<T>(sums.value[u][2 * v], a[u], b[0], b[1]);
          ptx::multiply_add<T>(sums.value[u][2 * v + 1], a[u], b[2], b[3]);
        }
      }
    }
  }

 private:
  static constexpr uint32_t kRightOffset = Tile::kRows * Tile::kDepth * 2;
  static constexpr int kDepthChunks = Tile::kDepth / kChunk;
  static constexpr int kRowChunks = Tile::kRows / kChunk;
  static constexpr int kColumnChunks = Tile::kColumns / kChunk;

  __device__ static uint32_t address(uint32_t tile, int row, int chunk) {
    return tile + static_cast<uint32_t>(row + chunk) * 16;
  }
  __device__ void load_left(uint32_t (&a)[4], uint32_t tile, int row, int k) const {
    const int lane = place_.lane;
    if constexpr (kLeftDepth) {
      const int r = row + lane % 16;
      const int chunk = swizzle<kDepthChunks>(r, k / kChunk + lane / 16);
      ptx::load_matrices(a, address(tile, r * kDepthChunks, chunk));
    } else {
      const int r = k + lane % 8 + lane / 16 * 8;
      const int chunk = swizzle<kRowChunks>(r, row / kChunk + lane / 8 % 2);
      ptx::load_matrices_transposed(a, address(tile, r * kRowChunks, chunk));
    }
  }
  __device__ void load_right(uint32_t (&b)[4], uint32_t tile, int column, int k) const {
    const int lane = place_.lane;
    if constexpr (kRightDepth) {
      const int r = column + lane % 8 + lane / 16 * 8;
      const int chunk = swizzle<kDepthChunks>(r, k / kChunk + lane / 8 % 2);
      ptx::load_matrices(b, address(tile, r * kDepthChunks, chunk));
    } else {
      const int r = k + lane % 16;
      const int chunk = swizzle<kColumnChunks>(r, column / kChunk + lane / 16);
      ptx::load_matrices_transposed(b, address(tile, r * kColumnChunks, chunk));
    }
  }

  WarpPlace<Tile> place_;
  OperandCopy<Tile, Tile::kRows, kLeftDepth, T> copy_left_;
  OperandCopy<Tile, Tile::kColumns, kRightDepth, T> copy_right_;
  int depth_;
};

/// Where a step's stage begins.
template <class Tile>
__device__ uint32_t stage_of(uint32_t ring, int step) {
  return ring + static_cast<uint32_t>(step % Tile::kStages * Tile::kStageBytes);
}

/// sums += left x right over `depth`. Every thread of the CTA calls it; `ring` is free again when
/// it returns. `wait_for_left` runs after the first copies of `right` and before those of `left`.
template <class T, class Tile, bool kLeftDepth, bool kRightDepth, class Dropout = NoDropout,
          class Wait = NoWait>
__device__ void accumulate_product(Sums<Tile>& sums, uint32_t ring, const Operand<T>& left,
                                   const Operand<T>& right, int depth, const Dropout& dropout = {},
                                   const Wait& wait_for_left = {}) {
  const Walk<T, Tile, kLeftDepth, kRightDepth> walk(left, right, depth);
  const int steps = walk.steps();
#pragma unroll
  for (int step = 0; step < Tile::kStages - 1; ++step) {
    if (step < steps) walk.copy_right(stage_of<Tile>(ring, step), step);
  }
  wait_for_left();
  // Every step commits one group, an empty one past the end, so the wait counts steps; the first
  // group has all the copies of `right` so far.
#pragma unroll
  for (int step = 0; step < Tile::kStages - 1; ++step) {
    if (step < steps) walk.copy_left(stage_of<Tile>(ring, step), step);
    ptx::commit_copies();
  }
  for (int step = 0; step < steps; ++step) {
    const uint32_t stage = stage_of<Tile>(ring, step);
    ptx::wait_for_copies<Tile::kStages - 2>();
    if constexpr (Dropout::kActive) walk.drop_left(stage, step, dropout);
    // Makes the copies of all threads visible, and frees the buffer that the next copy overwrites.
    __syncthreads();
    const int next = step + Tile::kStages - 1;
    if (next < steps) {
      walk.copy_left(stage_of<Tile>(ring, next), next);
      walk.copy_right(stage_of<Tile>(ring, next), next);
    }
    ptx::commit_copies();
    walk.multiply(sums, stage);
  }
  __syncthreads();
}

/// sums += both products, the second's copies right behind the first's. `wait` runs before those.
template <class First, class Second, class Tile, class Wait>
__device__ void accumulate_products(Sums<Tile>& sums, uint32_t ring, const First& first,
                                    const Second& second, const Wait& wait) {
  const int steps = first.steps(), all = steps + second.steps();
  const auto copy = [&](int step) {
    const uint32_t stage = stage_of<Tile>(ring, step);
    if (step < steps) {
      first.copy_left(stage, step);
      first.copy_right(stage, step);
    } else if (step < all) {
      if (step == steps) wait();
      second.copy_left(stage, step - steps);
      second.copy_right(stage, step - steps);
    }
    ptx::commit_copies();
  };
  for (int step = 0; step < Tile::kStages - 1; ++step) copy(step);
  for (int step = 0; step < all; ++step) {
    ptx::wait_for_copies<Tile::kStages - 2>();
    __syncthreads();
    copy(step + Tile::kStages - 1);
    const uint32_t stage = stage_of<Tile>(ring, step);
    if (step < steps) {
      first.multiply(sums, stage);
    } else {
      second.multiply(sums, stage);
    }
  }
  __syncthreads();
}

/// Adds the sums of the warps that share a tile, in the order of the warps, so that the same inputs
/// give the same bits. True for the warps that hold the result.
template <class Tile>
__device__ bool add_over_depth(Sums<Tile>& sums, unsigned char* ring) {
  if constexpr (Tile::kWarpsDepth > 1) {
    const WarpPlace<Tile> place;
    constexpr int kWarps = Tile::kWarpsRows * Tile::kWarpsColumns;
    const int warp = static_cast<int>(threadIdx.x) / 32 % kWarps;
    float* exchange = reinterpret_cast<float*>(ring) + warp * 32 * Tile::kSums + place.lane;
    float* flat = &sums.value[0][0][0];
    if (place.depth > 0) {
#pragma unroll
      for (int e = 0; e < Tile::kSums; ++e) {
        exchange[(place.depth - 1) * kWarps * 32 * Tile::kSums + e * 32] = flat[e];
      }
    }
    __syncthreads();
    if (place.depth > 0) return false;
#pragma unroll
    for (int other = 0; other < Tile::kWarpsDepth - 1; ++other) {
#pragma unroll
      for (int e = 0; e < Tile::kSums; ++e) {
        flat[e] += exchange[other * kWarps * 32 * Tile::kSums + e * 32];
      }
    }
  }
  return true;
}

}  // namespace gralora

// The frozen layer's product with a reduction axis that is longer by the adapter's rank: after the
// steps over rows and weight come those over the latent and the factor, into the same sums. The
// adapter's term costs no pass over the result, and the result is rounded once.
//
// One CTA per SM walks over tiles of the result. Two CTAs form a cluster: they have neighbouring
// tokens and the same columns, and each brings half of the right operand for both. In a CTA one
// thread asks for boxes, two warpgroups of 64 tokens each multiply them, and store a tile by bulk
// copies while the next one's products run: what counts is that the tensor cores never wait.
// Columns are cut into tiles within a block, since a block has its own latent and factor.
//
// The weight and the factor have opposite axes contiguous, in the forward pass (W by its depth, B
// by its width) and in the backward pass (W by its width, A by its rank): a step's body is compiled
// for each, nothing is repacked.
//
// Shared memory: 224 KiB, four stages of 48 KiB or six of 32, and 32 KiB for the results under way.
#pragma once

#include <type_traits>

#include "kernels/block_product.cuh"
#include "kernels/bulk_ring.cuh"
#include "kernels/extended_product_tiles.h"
#include "kernels/ptx_products_sm90.cuh"

namespace gralora::extended_product {

template <int kColumns_, int kStages_>
struct Tile {
  static constexpr int kRows = 128, kColumns = kColumns_, kDepth = 64, kStages = kStages_;
  static constexpr int kCluster = kProductCluster;
  static constexpr int kThreads = 256;  // that multiply: a warpgroup for 64 rows
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kLeftBytes = kRows / 64 * kPartBytes;
  static constexpr int kRightParts = kColumns / 64;
  static constexpr int kStageBytes = kLeftBytes + kRightParts * kPartBytes;
  static_assert(kRightParts % kCluster == 0, "each CTA of the cluster brings its share");
};

// A warp's results on their way to memory: boxes of 16 rows x 64 columns.
constexpr int kBoxRows = 16, kBoxColumns = 64;
constexpr int kBoxBytes = kBoxRows * kBoxColumns * 2;
constexpr int kBoxes = 2;  // of a warp

struct Params {
  CUtensorMap rows, weight, latent, factor, out;
  const void* bias;
  int32_t width, rank;
  int32_t base_steps;                       // along the depth
  int32_t row_tiles, column_tiles, blocks;  // of a cluster's rows; of a block's columns
  int32_t group;                            // row tiles that are walked together
};

/// Where a CTA's tile begins.
struct TilePlace {
  int token, column, block;
};

/// Tile by tile down the rows of a group, then on to its next columns: the group's rows and the
/// columns under way are what L2 has to hold.
template <class Tile>
__device__ TilePlace place_tile(const Params& p, int tile, int rank) {
  const int columns = p.column_tiles * p.blocks;
  const int group = tile / (p.group * columns), inside = tile - group * p.group * columns;
  const int first = group * p.group;
  const int rows = min(p.group, p.row_tiles - first);
  const int column = inside / rows, row = first + inside - column * rows;
  const int block = column / p.column_tiles;
  return {(row * Tile::kCluster + rank) * Tile::kRows,
          (column - block * p.column_tiles) * Tile::kColumns, block};
}

/// This CTA's share of a right operand's stage, to all CTAs of the cluster.
template <class Tile, bool kDepthIsContiguous>
__device__ void copy_share(uint32_t to, const CUtensorMap* map, int depth, const TilePlace& at,
                           uint32_t filled, int rank) {
  constexpr int kParts = Tile::kRightParts / Tile::kCluster;
  constexpr uint16_t kAll = (1 << Tile::kCluster) - 1;
  if constexpr (kDepthIsContiguous) {
    const int first = rank * kParts;
    ptx::copy_box_to_blocks(to + first * kPartBytes, map, depth, at.column + first * 64, at.block,
                            filled, kAll);
  } else {
#pragma unroll
    for (int share = 0; share < kParts; ++share) {
      const int part = rank * kParts + share;
      ptx::copy_box_to_blocks(to + part * kPartBytes, map, at.column + part * 64, depth, at.block,
                              filled, kAll);
    }
  }
}

/// The thread that copies: all steps of all tiles, as far ahead as there are stages.
template <class Tile, bool kDepthIsContiguous>
__device__ void copy_tiles(const Params& p, const BulkRing<Tile>& ring, int first, int stride,
                           int tiles, int rank) {
  typename BulkRing<Tile>::Turn turn;
  const auto copy = [&](auto is_contiguous, const CUtensorMap* left, const CUtensorMap* right,
                        int depth, int left_block, const TilePlace& at) {
    const uint32_t filled = ring.begin_filling(turn);
    ptx::copy_box(ring.left(turn), left, depth, at.token, left_block, filled);
    copy_share<Tile, decltype(is_contiguous)::value>(ring.right(turn), right, depth, at, filled,
                                                     rank);
    turn.advance();
  };
  for (int tile = first; tile < tiles; tile += stride) {
    const TilePlace at = place_tile<Tile>(p, tile, rank);
    for (int step = 0; step < p.base_steps; ++step) {
      copy(std::bool_constant<kDepthIsContiguous>(), &p.rows, &p.weight, step * Tile::kDepth, 0,
           at);
    }
    for (int q = 0; q < p.rank; q += Tile::kDepth) {
      copy(std::bool_constant<!kDepthIsContiguous>(), &p.latent, &p.factor, q, at.block, at);
    }
  }
}

/// A warpgroup's sums of 64 rows, and its way through the ring.
template <class T, class Tile, bool kDepthIsContiguous>
class Consumer {
 public:
  __device__ Consumer(const BulkRing<Tile>& ring, int group)
      : ring_(ring), rows_(group * kPartBytes) {}

  /// kProducts steps of 16 along the depth from the next stage. One group of products stays under
  /// way; the stage of the one before is free when that has ended.
  template <bool kRightDepth, int kProducts>
  __device__ void multiply(bool adds) {
    ring_.wait_until_filled(turn_);
    ptx::begin_products();
#pragma unroll
    for (int k = 0; k < kProducts; ++k) {
      ptx::multiply_add_parts<T, Tile::kColumns, true, kRightDepth>(
          sums, ptx::describe_part<true>(ring_.left(turn_) + rows_, k * 16),
          ptx::describe_part<kRightDepth>(ring_.right(turn_), k * 16), k > 0 || adds ? 1 : 0);
    }
    ptx::commit_products();
  }
  __device__ void move_on(bool frees) {
    ptx::wait_for_products<1>();
    if (frees) ring_.free(before_);
    before_ = turn_.stage;
    turn_.advance();
  }

  /// Ends a tile: all its sums are there.
  __device__ void finish() {
    ptx::wait_for_products<0>();
#pragma unroll
    for (int v = 0; v < Tile::kColumns / 8; ++v) ptx::hold(sums[v]);
    ring_.free(before_);
  }

  float sums[Tile::kColumns / 8][4];

 private:
  const BulkRing<Tile>& ring_;
  typename BulkRing<Tile>::Turn turn_;
  int before_ = 0;
  uint32_t rows_;
};

/// A warp's 16 rows of the sums, by boxes that are written under the next tile's products.
template <class T, class Tile>
__device__ void store_rows(const Params& p, float (&sums)[Tile::kColumns / 8][4],
                           const TilePlace& at, int warp, uint32_t boxes) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int token = at.token + warp * kBoxRows;
  const T* const bias = static_cast<const T*>(p.bias);
#pragma unroll
  for (int box = 0; box < Tile::kColumns / kBoxColumns; ++box) {
    const int column0 = at.column + box * kBoxColumns;
    const uint32_t to = boxes + box % kBoxes * kBoxBytes;
    if (lane == 0) ptx::wait_for_box_reads<kBoxes - 1>();
    __syncwarp();
    if (bias != nullptr) {
#pragma unroll
      for (int v = 0; v < 8; ++v) {
        const int column = column0 + v * 8 + lane % 4 * 2;
        if (column >= p.width) continue;  // widths are even
        const Pair<T> pair = *reinterpret_cast<const Pair<T>*>(bias + at.block * p.width + column);
        float(&e)[4] = sums[box * 8 + v];
        e[0] += static_cast<float>(pair.first);
        e[1] += static_cast<float>(pair.second);
        e[2] += static_cast<float>(pair.first);
        e[3] += static_cast<float>(pair.second);
      }
    }
#pragma unroll
    for (int v = 0; v < 8; v += 2) {
      const float(&a)[4] = sums[box * 8 + v];
      const float(&b)[4] = sums[box * 8 + v + 1];
      const uint32_t fragment[4] = {round_pair<T>(a[0], a[1]), round_pair<T>(a[2], a[3]),
                                    round_pair<T>(b[0], b[1]), round_pair<T>(b[2], b[3])};
      // Rows of 128 bytes, swizzled as the map says.
      const int chunk = (v + lane / 16) ^ (lane & 7);
      ptx::store_matrices(to + lane % 16 * 128 + chunk * 16, fragment);
    }
    ptx::show_to_copies();
    __syncwarp();
    if (lane == 0) ptx::store_box(&p.out, column0, token, at.block, to);
  }
}

template <class T, class Tile_, bool kDepthIsContiguous>
struct ExtendedProduct {
  using Params = extended_product::Params;
  using Tile = Tile_;
  using Ring = BulkRing<Tile>;
  // The first warpgroup copies, with one thread; it leaves its registers to those that multiply.
  static constexpr int kThreads = 128 + Tile::kThreads;
  static constexpr int kCopyRegisters = 40, kMultiplyRegisters = 232;
  static constexpr int kBoxesAt = Tile::kStages * Tile::kStageBytes;
  static constexpr int kBarriersAt = kBoxesAt + Tile::kWarps * kBoxes * kBoxBytes;
  static constexpr int kSharedBytes = kBarriersAt + Tile::kStages * kBarrierBytes;
  static constexpr int kBlocksPerProcessor = 1;
  static_assert(kSharedBytes <= 227 * 1024);

  __device__ static void run(const Params& p, uint32_t index, unsigned char* memory) {
    const Ring ring(memory, memory + kBarriersAt);
    const auto rank = static_cast<int>(ptx::cluster_rank());
    const int first = static_cast<int>(index) / Tile::kCluster;
    const int stride = static_cast<int>(gridDim.x) / Tile::kCluster;
    const int tiles = p.row_tiles * p.column_tiles * p.blocks;
    if (threadIdx.x < 128) {
      ptx::give_registers<kCopyRegisters>();
      if (threadIdx.x == 0) {
        for (const CUtensorMap* map : {&p.rows, &p.weight, &p.latent, &p.factor, &p.out}) {
          ptx::prefetch_map(map);
        }
        // All that the block reads and writes in global memory comes after the first boxes.
        ptx::wait_for_earlier_kernels();
        copy_tiles<Tile, kDepthIsContiguous>(p, ring, first, stride, tiles, rank);
        ptx::release_next_kernel();
      }
    } else {
      ptx::take_registers<kMultiplyRegisters>();
      multiply_tiles(p, ring, ptx::shared_address(memory) + kBoxesAt, first, stride, tiles, rank);
    }
    __syncwarp();
    // A CTA's memory is there until the other one's copies have come and its barriers are not used
    // any more.
    ptx::synchronize_cluster();
  }

 private:
  __device__ static void multiply_tiles(const Params& p, const Ring& ring, uint32_t boxes,
                                        int first, int stride, int tiles, int rank) {
    const auto warp = static_cast<int>(threadIdx.x - 128) / 32;
    Consumer<T, Tile, kDepthIsContiguous> consumer(ring, warp / 4);
    for (int tile = first; tile < tiles; tile += stride) {
      consumer.template multiply<kDepthIsContiguous, 4>(false);
      // Its divisions take place under the products.
      const TilePlace at = place_tile<Tile>(p, tile, rank);
      consumer.move_on(false);
      for (int step = 1; step < p.base_steps; ++step) {
        consumer.template multiply<kDepthIsContiguous, 4>(true);
        consumer.move_on(true);
      }
      // The rank's last stage has zeros beyond it: only the products that it needs.
      for (int rest = p.rank; rest > 0; rest -= Tile::kDepth) {
        if (rest > 48) {
          consumer.template multiply<!kDepthIsContiguous, 4>(true);
        } else if (rest > 32) {
          consumer.template multiply<!kDepthIsContiguous, 3>(true);
        } else if (rest > 16) {
          consumer.template multiply<!kDepthIsContiguous, 2>(true);
        } else {
          consumer.template multiply<!kDepthIsContiguous, 1>(true);
        }
        consumer.move_on(true);
      }
      consumer.finish();
      store_rows<T, Tile>(p, consumer.sums, at, warp, boxes + warp * kBoxes * kBoxBytes);
    }
    if (threadIdx.x % 32 == 0) ptx::wait_for_boxes();
  }
};

}  // namespace gralora::extended_product

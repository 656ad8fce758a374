// The tile of a product whose operands come by bulk copies (bulk_product.cuh), for compute
// capability 9.0a: its sums lie on the threads as those of block_product.cuh's tiles do, so what
// stores those stores these.
#pragma once

#include "kernels/block_product.cuh"
#include "kernels/bulk_sizes.h"

namespace gralora {

/// 64 rows for each of kWarpgroups warpgroups, which multiply, beside one warp that copies. The
/// depth of an operand is contiguous in memory or lies along its rows. kBlocks CTAs share an SM,
/// with as many stages as fill its shared memory. With kDrops further warps drop the left operand
/// (bulk_dropout.cuh).
template <int kWarpgroups, int kColumns_, bool kLeftDepth_, bool kRightDepth_, int kBlocks,
          bool kDrops_ = false>
struct BulkTile {
  using Dropping = BulkTile<kWarpgroups, kColumns_, kLeftDepth_, kRightDepth_, kBlocks, true>;
  static constexpr bool kDrops = kDrops_;
  static constexpr int kRows = 64 * kWarpgroups, kColumns = kColumns_, kDepth = 64;
  static constexpr bool kLeftDepth = kLeftDepth_, kRightDepth = kRightDepth_;
  static constexpr int kThreads = 128 * kWarpgroups;  // that hold the sums
  static constexpr int kDropThreads = kDrops ? 128 : 0;
  static constexpr int kAllThreads = kThreads + 32 + kDropThreads;

  // Where the depth is contiguous the parts lie behind each other: one box is as high as all.
  static constexpr int kRightParts = (kColumns + 63) / 64;
  static constexpr int kLeftBytes = kWarpgroups * kPartBytes;
  static constexpr int kRightBytes = kRightDepth ? kColumns * kDepth * 2 : kRightParts * kPartBytes;
  static constexpr int kStageBytes = kLeftBytes + kRightBytes;
  static constexpr int kCluster = 1;  // copies stay in their CTA

  // An SM of 9.0 has 228 KiB, of which every CTA loses one.
  static constexpr int kMostBytes = (228 / kBlocks - 1) * 1024;
  static constexpr int kAllBarrierBytes = kBarrierBytes + (kDrops ? kDroppedBytes : 0);
  static constexpr int kStages = kMostBytes / (kStageBytes + kAllBarrierBytes);
  static constexpr int kBarriersAt = kStages * kStageBytes;
  static constexpr int kDroppedAt = kBarriersAt + kStages * kBarrierBytes;
  static constexpr int kSharedBytes = kBarriersAt + kStages * kAllBarrierBytes;
  static constexpr int kBlocksPerProcessor = kBlocks;

  // The names of block_product.cuh's tiles: a warp has 16 rows and all columns.
  static constexpr int kWarpsRows = 4 * kWarpgroups, kWarpsColumns = 1, kWarpsDepth = 1;
  static constexpr int kWarpRows = 16, kWarpColumns = kColumns;
  static constexpr int kSums = kColumns / 8 * 4;
  static constexpr int kExchangeBytes = 0;

  static_assert(kColumns == 32 || kColumns % 64 == 0, "products of 32 or 64 columns");
  static_assert(kRightBytes % 1024 == 0, "the swizzle repeats every 1024 bytes");
  static_assert(kRows <= 256 && kColumns <= 256, "the largest box");

  /// Among the threads that hold the sums.
  __device__ static void synchronize();
};

}  // namespace gralora

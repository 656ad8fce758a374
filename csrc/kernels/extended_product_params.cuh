// What an extended product is made of on the device: tiles, maps, and where an item's rows and
// columns lie.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "kernels/bulk_sizes.h"
#include "kernels/extended_product.h"
#include "kernels/extended_product_tiles.h"
#include "kernels/product_order.h"

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

/// A warp's results on their way to memory: boxes of 16 rows x 64 columns.
constexpr int kBoxRows = 16, kBoxColumns = 64;
constexpr int kBoxBytes = kBoxRows * kBoxColumns * 2;
constexpr int kBoxes = 2;  // of a warp

/// A projection of one term's rows, by a factor of its own.
struct ProjectionTerm {
  CUtensorMap rows, factor;
  int32_t inner;  // blocks of the rows
  int32_t steps;  // along a block's width
};

/// What makes the latent.
struct Projection {
  ProjectionTerm terms[kMaxProductTerms];
  void* latent;  // [planes, T, inner*s]
  int64_t T, plane, pitch;
  float scaling;
  int32_t inner;       // of all terms
  int32_t s, columns;  // columns: of a block of the rows, the s of all planes
};

/// One of the products that are added up.
struct Term {
  CUtensorMap rows, weight;
  int32_t steps;  // along the depth
};

struct Params {
  Term terms[kMaxProductTerms];
  CUtensorMap latent, factor, out;
  Projection projection;
  const void* bias;
  int32_t width, rank;
  int32_t base_steps;  // of all terms
  int32_t term_count;
  int32_t row_tiles, column_tiles, blocks;  // of a cluster's rows; of a block's columns
  int32_t group;                            // row tiles that are walked together
  ProductOrder order;
  int32_t* next_item;  // drawn from by all clusters; null: item after item in equal strides
  int32_t* projected;  // [row_tiles * cluster]: warps' latents of a block that are in memory
};

/// Parts of 64 columns that a projection's products are made in: 1, 2 or 4.
__host__ __device__ constexpr int parts_of(int columns) {
  return columns <= 64 ? 1 : columns <= 128 ? 2 : 4;
}

/// Where a CTA's tile begins.
struct TilePlace {
  int token, column, block;
};

template <class Tile>
__device__ int first_token(int row_tile, int rank) {
  return (row_tile * Tile::kCluster + rank) * Tile::kRows;
}

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
  return {first_token<Tile>(row, rank), (column - block * p.column_tiles) * Tile::kColumns, block};
}

/// A CTA's part of a projection: the latents of its tokens from one block of a term's rows.
struct ProjectionPlace {
  int token, term, block;
  int column;  // where they begin
};

template <class Tile>
__device__ ProjectionPlace place_projection(const Params& p, int index, int rank) {
  const Projection& projection = p.projection;
  const int row = index / projection.inner, of_all = index - row * projection.inner;
  int term = 0, block = of_all;
  while (block >= projection.terms[term].inner) block -= projection.terms[term++].inner;
  return {first_token<Tile>(row, rank), term, block, of_all * projection.s};
}

/// Steps of a projection that a stage has room for: two, where they leave half of it empty.
template <class Tile>
__device__ int steps_of_stage(const Projection& projection) {
  return parts_of(projection.columns) == 1 &&
                 Tile::kStageBytes >= 2 * (Tile::kLeftBytes + kPartBytes)
             ? 2
             : 1;
}

/// What a row of tiles has been projected by when all of it is there.
template <class Tile>
__device__ int count_projected(const Params& p) {
  return p.projection.inner * Tile::kWarps;
}

}  // namespace gralora::extended_product

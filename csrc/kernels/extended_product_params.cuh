// What an extended product is made of on the device: tiles, maps, and where an item's rows and
// columns lie.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "kernels/bulk_sizes.h"
#include "kernels/dropout.h"
#include "kernels/extended_product.h"
#include "kernels/extended_product_tiles.h"
#include "kernels/product_order.h"

namespace gralora::extended_product {

/// kProjects_: the tile makes its latents itself (extended_product_latents.cuh). Then a stage
/// brings columns of the projection's factor as well, for which the results under way leave room.
template <int kColumns_, int kStages_, bool kProjects_ = false>
struct Tile {
  static constexpr int kRows = 128, kColumns = kColumns_, kDepth = 64, kStages = kStages_;
  static constexpr int kCluster = kProductCluster;
  static constexpr int kThreads = 256;  // that multiply: a warpgroup for 64 rows
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kLeftBytes = kRows / 64 * kPartBytes;
  static constexpr int kRightParts = kColumns / 64;
  static constexpr bool kProjects = kProjects_;
  static constexpr int kRightBytes = kRightParts * kPartBytes;
  static constexpr int kProjectingBytes = kProjects ? kDepth * kTileLatents * 2 : 0;
  static constexpr int kStageBytes = kLeftBytes + kRightBytes + kProjectingBytes;
  static constexpr int kBoxes = kProjects ? 1 : 2;  // of a warp
  static_assert(kRightParts % kCluster == 0, "each CTA of the cluster brings its share");
};

/// A warp's results on their way to memory: boxes of 16 rows x 64 columns.
constexpr int kBoxRows = 16, kBoxColumns = 64;
constexpr int kBoxBytes = kBoxRows * kBoxColumns * 2;

/// A projection of one term's rows, by a factor of its own.
struct ProjectionTerm {
  CUtensorMap rows, factor;
  int32_t inner;  // blocks of the rows
  int32_t steps;  // along a block's width
};

/// What makes the latent.
struct Projection {
  ProjectionTerm terms[kMaxProducts];
  void* latent;  // [all blocks, T, inner*s]
  int64_t T, plane, pitch;
  float scaling;
  int32_t inner;       // of all terms
  int32_t s, columns;  // columns: of a block of the rows, the s of all results' blocks
};

/// One of the gradients of factors: activation^T latent, summed over all tokens.
struct Gradient {
  CUtensorMap activation, latent;
  GradientSum sum;
  int32_t first_item;  // of its own among those of all gradients of a span
  bool waits;          // for a latent that is made on the way, or by the kernel before
  float* partials;     // with several spans, the sum of those before: [items, CTAs, boxes]
  int32_t* ended;      // spans that a warp has added its share of: [items, CTAs, boxes, warps]
};

/// One of the products that are added up.
struct Term {
  CUtensorMap rows;
  int32_t steps;  // along the depth
};

/// One of the results.
struct Output {
  CUtensorMap factor, out;
  const void* bias;
  int32_t width;         // of a block
  int32_t column_tiles;  // of a block
  int32_t first_column;  // of its tiles' columns among those of all results
  int32_t first_block;   // of its planes of the latent
};

struct Params {
  Term terms[kMaxProducts];
  Output outputs[kMaxProducts];
  CUtensorMap weights[kMaxProducts];  // of the terms or of the outputs
  CUtensorMap latent;
  Projection projection;
  Gradient gradients[kMaxGradients];
  int32_t gradient_count;
  int32_t token_steps;  // of all tokens
  int32_t span_rows;    // row tiles of a span that gradients are summed over, but the last one
  int32_t rank;
  int32_t base_steps;  // of all terms
  int32_t term_count, output_count;
  int32_t row_tiles, columns;  // of a cluster's rows; columns of tiles of all results
  int32_t group;               // row tiles that are walked together
  ProductOrder order;
  int32_t* next_item;       // drawn from by all clusters; null: item after item in equal strides
  int32_t* span_projected;  // times that a warp has stored its share of latents: of a span's rows,
  int32_t* projected;       // and of each CTA's rows: [row_tiles * cluster]
  bool latent_is_ahead;     // and all else is there when the kernel begins
  // With dropout the latents come before the terms, and after so many steps of these the sums are
  // dropped.
  DropoutSource dropout;
  int32_t dropped_steps;
  int32_t row_width;  // of the result
};

// Two bits of a note say what an item is, and half of all numbers are beyond the last one.
constexpr int64_t kMostItems = INT32_MAX / 16;

/// Parts of 64 columns that the products of projections and gradients are made in.
__host__ __device__ constexpr int parts_of(int columns) { return (columns + 63) / 64; }

/// work(a constant) for so many parts, of those that a tile has.
template <int kMost, class Work>
__device__ void with_parts(int parts, const Work& work) {
  constexpr int kThree = kMost < 3 ? kMost : 3;
  switch (parts) {
    case 1:
      return work(std::integral_constant<int, 1>());
    case 2:
      return work(std::integral_constant<int, 2>());
    case 3:
      return work(std::integral_constant<int, kThree>());
    default:
      return work(std::integral_constant<int, kMost>());
  }
}

/// Where a CTA's tile begins.
struct TilePlace {
  int token, column, block;
  int output;
};

template <class Tile>
__device__ int first_token(int row_tile, int rank) {
  return (row_tile * Tile::kCluster + rank) * Tile::kRows;
}

/// Tile by tile down the rows of a group, then on to its next columns: the group's rows and the
/// columns under way are what L2 has to hold.
template <class Tile>
__device__ TilePlace place_tile(const Params& p, int tile, int rank) {
  const int group = tile / (p.group * p.columns), inside = tile - group * p.group * p.columns;
  const int first = group * p.group;
  const int rows = min(p.group, p.row_tiles - first);
  int column = inside / rows;
  const int row = first + inside - column * rows;
  int output = 0;
  while (output + 1 < p.output_count && column >= p.outputs[output + 1].first_column) ++output;
  column -= p.outputs[output].first_column;
  const int block = column / p.outputs[output].column_tiles;
  return {first_token<Tile>(row, rank),
          (column - block * p.outputs[output].column_tiles) * Tile::kColumns, block, output};
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

/// A step of the walks besides those of tiles: 128 rows, or columns of an activation, and so many
/// parts of the other operand.
template <class Tile>
__host__ __device__ constexpr int bytes_of_step(int parts) {
  return Tile::kLeftBytes + parts * kPartBytes;
}

/// Such steps that a stage has room for: two, where they leave half of it empty.
template <class Tile>
__host__ __device__ constexpr int steps_of_stage(int parts) {
  return Tile::kStageBytes >= 2 * bytes_of_step<Tile>(parts) ? 2 : 1;
}

/// The span of the tokens that a row of tiles belongs to.
__device__ inline int span_of(const Params& p, int row_tile) {
  return min(row_tile / p.span_rows, p.order.gradients.spans - 1);
}

__device__ inline int rows_of_span(const Params& p, int span) {
  const int first = span * p.span_rows;
  return span + 1 < p.order.gradients.spans ? p.span_rows : p.row_tiles - first;
}

/// A CTA's part of a gradient: as many columns of the activation as a tile has rows, and the tokens
/// of a span.
struct GradientPlace {
  int gradient, block, column;
  int share;  // the CTA's columns, counted over all blocks
  int span;
  int first_step, steps;
};

template <class Tile>
__device__ GradientPlace place_gradient(const Params& p, int index, int rank) {
  constexpr int kColumns = Tile::kRows * Tile::kCluster;
  constexpr int kRowSteps = kColumns / Tile::kDepth;
  const ProductGradients& all = p.order.gradients;
  const int span = all.spans > 1 ? index / all.late : 0;
  index -= span * all.late;
  int which = 0;
  while (which + 1 < p.gradient_count && index >= p.gradients[which + 1].first_item) ++which;
  const Gradient& gradient = p.gradients[which];
  const int item = index - gradient.first_item;
  const int of_block = (gradient.sum.width + kColumns - 1) / kColumns;
  const int block = item / of_block;
  const int first_step = span * p.span_rows * kRowSteps;
  return {.gradient = which,
          .block = block,
          .column = ((item - block * of_block) * Tile::kCluster + rank) * Tile::kRows,
          .share = item * Tile::kCluster + rank,
          .span = span,
          .first_step = first_step,
          .steps = min(p.token_steps - first_step, rows_of_span(p, span) * kRowSteps)};
}

}  // namespace gralora::extended_product

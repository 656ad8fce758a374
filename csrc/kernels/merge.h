// The merge kernel's parameters and launcher; csrc/cuda/delta_weight.cpp fills and calls them.
//
// "Rows" and "columns" are the kernel's: columns are the axis of W with unit stride. For a
// row-major W [M, N] rows are outputs and columns inputs; for a transposed one it is the other way
// round, and B and A trade places.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/element_type.h"

namespace gralora {

/// A factor seen from a block pair: element (row block, column block, index along the block, rank).
struct FactorView {
  const void* data;  // A [k_in, n, k_out*s], B [k_out, k_in*s, m], lora_A [r0, N] or lora_B [M, r0]
  ElementType type;
  int64_t row_block_stride, column_block_stride, wide_stride, rank_stride;  // elements
};

struct MergeParams {
  void* weight;  // [row_blocks*row_width, column_blocks*column_width], unit column stride
  ElementType type;
  int64_t row_stride;  // elements
  int64_t row_blocks, column_blocks;
  int64_t row_width, column_width;
  int64_t s;                 // rank of a block pair, 0 without A and B
  FactorView rows, columns;  // of the grid part
  int64_t r0;                // rank of the plain part, 0 without it
  FactorView plain_rows, plain_columns;
  double alpha;    // sign * scaling
  bool overwrite;  // write DW and never read W
  bool vector;  // rows of blocks are whole 16-byte aligned groups of eight (dispatch/select_merge)
};

/// W (+)= alpha * DW in one pass, rounded once. Sums are fp32, fp64 for an fp64 weight.
cudaError_t launch_merge(const MergeParams& params, cudaStream_t stream);

}  // namespace gralora

// The expansion kernel's parameters and launcher; csrc/cuda/expand.cpp fills and calls them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/dropout.h"
#include "kernels/element_type.h"
#include "kernels/expand_tiles.h"

namespace gralora {

/// One part of an adapter: latent [blocks, T, rank] times factor [blocks, rank, width], the rows
/// and the contiguous axis of both 16-byte aligned. Absent where rank is 0.
struct ExpandPart {
  const void* latent;  // rows `latent_pitch` apart, rank contiguous
  const void* factor;  // rank or width contiguous, the other axis `factor_pitch` apart
  int64_t latent_plane, latent_pitch;
  int64_t factor_block_stride, factor_pitch;
  int32_t rank;
  bool rank_is_contiguous;  // of the factor
};

/// out[t, (i, o)] = drop(sum_q grid_latent[i, t, q] * grid_factor[i, q, o]
///                       + sum_q plain_latent[t, q] * plain_factor[q, (i, o)])
///                + bias[(i, o)] (+ out[t, (i, o)])
///
/// y from H and B, dx from G and A transposed; strides in elements.
struct ExpandParams {
  ExpandPart grid, plain;
  const void* bias;  // [blocks*width], 16-byte aligned, or null
  void* out;         // [T, blocks*width], contiguous, 16-byte aligned
  int64_t T;
  int32_t blocks, width;   // width is a multiple of 8
  bool accumulate;         // onto what `out` holds
  bool factors_are_ready;  // a kernel that waited lies between their writing and this one
  DropoutSource dropout;   // of the term; neither bias nor `accumulate` then
  ExpandTile tile;
  ElementType type;  // bf16 or fp16
};

cudaError_t launch_expand(const ExpandParams& params, cudaStream_t stream);

}  // namespace gralora

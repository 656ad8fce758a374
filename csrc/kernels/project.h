// The projection kernels' parameters and launcher; csrc/cuda/project.cpp fills and calls them,
// csrc/dispatch/select_project.cpp chooses the tile (project_tiles.h).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/dropout.h"
#include "kernels/element_type.h"
#include "kernels/project_tiles.h"

namespace gralora {

/// latent[q, t, (p, rank)] = scaling * sum_w drop(x)[t, (p, w)] * factor[p, w, (q, rank)]
///
/// H is the latent of x and A (p input blocks, q output blocks), G that of dy and B transposed.
/// Strides and pitches in elements, multiples of 8; pointers are 16-byte aligned.
struct ProjectParams {
  const void* x;       // [T, inner*width], unit column stride
  const void* factor;  // [inner, width, outer*s], unit stride along the width or along the columns
  void* latent;        // [outer, T, inner*s], rows `latent_pitch` apart
  int64_t T;
  int32_t inner, width, outer, s;  // width is a multiple of 8
  int64_t x_row_stride;
  int64_t factor_block_stride;  // between the p
  int64_t factor_pitch;         // along the axis whose stride is not 1
  int64_t latent_plane, latent_pitch;
  float scaling;             // of the kept elements where x is dropped
  DropoutSource dropout;     // of x
  ElementType type;          // bf16 or fp16
  bool width_is_contiguous;  // of the factor: unit stride along its width, not along its columns
  ProjectTile tile;
  int32_t splits = 1;  // of the width among the CTAs of a cluster, at most 8
};

cudaError_t launch_project(const ProjectParams& params, cudaStream_t stream);

}  // namespace gralora

// The weight-gradient kernels' parameters and launcher; csrc/cuda/weight_gradient.cpp fills and
// calls them, csrc/dispatch/select_weight_gradient.cpp chooses tile and split
// (weight_gradient_tiles.h).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/dropout.h"
#include "kernels/element_type.h"
#include "kernels/weight_gradient_tiles.h"

namespace gralora {

inline constexpr int kMaxGradients = 4;  // dA, dB, dlora_A, dlora_B

/// out[b, c, q] = scale * sum_t drop(activation)[b, t, c] * latent[b, t, q], rounded once, stored
/// as [blocks, width, rank], or [blocks, rank, width] where `rank_first`. Strides in elements, rows
/// of both operands 16-byte aligned.
struct GradientSum {
  const void* activation;  // [blocks, T, width], unit stride along the width
  const void* latent;      // [blocks, T, rank], unit stride along the rank
  void* out;               // contiguous
  int64_t activation_block_stride, activation_pitch;
  int64_t latent_block_stride, latent_pitch;
  int32_t blocks, width, rank;
  bool rank_first;
  bool drops;  // the activation is the adapter's input, under WeightGradientParams::dropout
  ElementType out_type;  // fp32, bf16 or fp16
};

struct WeightGradientParams {
  GradientSum sums[kMaxGradients];
  int32_t count;
  int32_t T;
  DropoutSource dropout;  // whose activation's blocks lie side by side: [T, blocks*width]
  GradientTile tile;
  int32_t splits;                         // of the tokens
  float* workspace;                       // [gradient_workspace(params)], or null with one split
  ElementType type;                       // of the operands: bf16 or fp16
  int32_t first_tile[kMaxGradients + 1];  // of each sum, and their number; the launcher's own
};

/// Elements of the partial sums that `params` needs room for.
int64_t gradient_workspace(const WeightGradientParams& params);

cudaError_t launch_weight_gradient(const WeightGradientParams& params, cudaStream_t stream);

}  // namespace gralora

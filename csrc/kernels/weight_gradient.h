// The weight-gradient kernel's parameters and launcher; csrc/cuda/weight_gradient.cpp fills and
// calls them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/element_type.h"

namespace gralora {

inline constexpr int kMaxGradients = 4;   // dA, dB, dlora_A, dlora_B
inline constexpr int kGradientTile = 64;  // rows and columns of one CTA

/// out[b, r, c] = sum_t left[b, t, r] * right[b, t, c], rounded once; strides in elements.
/// Rows of both operands are 16-byte aligned.
struct TokenSum {
  const void* left;   // [blocks, T, rows], unit stride along the rows
  const void* right;  // [blocks, T, columns], unit stride along the columns
  void* out;          // [blocks, rows, columns], contiguous
  int64_t left_block_stride, left_pitch;
  int64_t right_block_stride, right_pitch;
  int32_t blocks, rows, columns;
  ElementType out_type;  // fp32, bf16 or fp16
};

struct WeightGradientParams {
  TokenSum sums[kMaxGradients];
  int count;
  int32_t T;
  ElementType type;  // of the operands: bf16 or fp16
};

cudaError_t launch_weight_gradient(const WeightGradientParams& params, cudaStream_t stream);

}  // namespace gralora

// The rounding kernel's parameters and launcher; csrc/cuda/round.cpp fills and calls them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/element_type.h"

namespace gralora {

inline constexpr int kMaxRoundings = 4;  // an adapter has at most four factors

/// One array: `to` = `from` rounded to nearest, ties to even, its rows `pitch` apart with zeros
/// between them.
struct RoundedArray {
  const void* from;  // [rows, width], dense
  void* to;          // [rows, pitch], dense
  int64_t rows, width, pitch;
  ElementType from_type;  // fp32, or that of `to`
  ElementType type;       // bf16 or fp16
};

struct RoundParams {
  RoundedArray arrays[kMaxRoundings];
  int count;
};

cudaError_t launch_round(const RoundParams& params, cudaStream_t stream);

}  // namespace gralora

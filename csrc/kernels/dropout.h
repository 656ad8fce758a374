// The dropout kernel's parameters and launcher; csrc/cuda/dropout.cpp fills and calls them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/element_type.h"
#include "kernels/philox.h"

namespace gralora {

/// Dropout inside another kernel; none where `rng_state` is null.
struct DropoutSource {
  const int64_t* rng_state = nullptr;  // [2] on the device: seed, offset
  philox::DropoutRule rule{};
};

struct DropoutParams {
  const void* x;             // [T, N], unit column stride
  void* out;                 // [T, N], contiguous
  const int64_t* rng_state;  // [2] on the device: seed, offset
  int64_t T, N;
  int64_t x_row_stride;  // elements
  ElementType type;
  philox::DropoutRule rule;
};

cudaError_t launch_dropout(const DropoutParams& params, cudaStream_t stream);

}  // namespace gralora

// What every CUDA adapter needs between tensors and a launcher.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>

#include "kernels/element_type.h"

namespace gralora::cuda {

inline ElementType element_type(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return ElementType::kFloat64;
    case at::kFloat:
      return ElementType::kFloat32;
    case at::kBFloat16:
      return ElementType::kBFloat16;
    case at::kHalf:
      return ElementType::kFloat16;
    default:
      TORCH_INTERNAL_ASSERT(false, "unchecked dtype ", tensor.scalar_type());
  }
}

/// Multiprocessors of the current device.
inline int count_processors() {
  int device = 0, count = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

/// Raises when a launcher reports an error, naming the operator.
inline void check_launch(const char* op, cudaError_t status) {
  TORCH_CHECK(status == cudaSuccess, "gralora::", op,
              ": the CUDA kernel could not start: ", cudaGetErrorString(status));
}

}  // namespace gralora::cuda

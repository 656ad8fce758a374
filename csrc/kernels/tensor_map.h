// Tensor maps: what bulk copies know of a tensor (compute capability 9.0 and newer).
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/element_type.h"

namespace gralora {

inline constexpr int kBoxInner = 64, kNarrowBoxInner = 16;

/// A tensor of 16-bit elements [outer, middle, inner], the inner axis contiguous, and the box of
/// [box_middle, box_inner] that a copy moves: 128 bytes or 32 along the inner axis, swizzled over
/// as many. Strides in elements, positive multiples of 8 unless their axis has one place; `data` is
/// 16-byte aligned.
struct BoxedTensor {
  const void* data;
  ElementType type;  // bf16 or fp16
  int64_t inner, middle, outer;
  int64_t middle_stride, outer_stride;
  int box_middle;
  int box_inner = kBoxInner;  // or kNarrowBoxInner
};

/// Whether the driver can make maps.
bool has_tensor_maps();

/// The map of `tensor`. It is copied into a kernel's parameters; nothing else refers to it.
cudaError_t make_tensor_map(CUtensorMap& map, const BoxedTensor& tensor);

}  // namespace gralora

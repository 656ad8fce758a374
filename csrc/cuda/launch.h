// What every CUDA adapter needs between tensors and a launcher.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>

#include "aten/steps.h"
#include "dispatch/chip.h"
#include "dispatch/choice.h"
#include "kernels/dropout.h"
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

inline bool is_half(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kBFloat16 || tensor.scalar_type() == at::kHalf;
}

/// Whether 16-byte accesses can walk along the last axis of a 16-bit tensor, or along `axis`: unit
/// stride there, and all other strides and the address multiples of 16 bytes.
inline bool has_aligned_rows(const at::Tensor& tensor, int64_t axis = -1) {
  const int64_t along = axis < 0 ? tensor.dim() + axis : axis;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (d == along ? tensor.stride(d) != 1 : tensor.size(d) > 1 && tensor.stride(d) % 8 != 0) {
      return false;
    }
  }
  return reinterpret_cast<uint64_t>(tensor.const_data_ptr()) % 16 == 0;
}

/// Whether several places of an axis are one place in memory, as in an expanded tensor.
inline bool repeats_rows(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return false;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) > 1 && tensor.stride(d) == 0) return true;
  }
  return false;
}

/// A call's dropout as kernels take it. Keeps alive what the source points to.
struct DropoutArgument {
  explicit DropoutArgument(const aten::Dropout& dropout) {
    if (!dropout.drops()) return;
    state = dropout.rng_state->contiguous();
    source = {state.const_data_ptr<int64_t>(), philox::make_dropout_rule(dropout.p)};
  }

  /// Of the kept elements.
  double scale() const { return source.rng_state == nullptr ? 1.0 : source.rule.scale; }

  at::Tensor state;
  DropoutSource source;
};

/// The current device.
Chip current_chip();

/// Whether an operator's step takes the kernel: the chooser's word, or that of a forced path.
inline bool takes_kernel(const char* step, const Choice& choice) {
  switch (forced_path()) {
    case ForcedPath::kAten:
      return false;
    case ForcedPath::kSm80:
    case ForcedPath::kSm90:
      TORCH_CHECK(choice.possible, "gralora: the path \"", name_of(forced_path()),
                  "\" is forced, yet the kernel of ", step, " cannot run: ", choice.reason);
      return true;
    case ForcedPath::kNone:
      break;
  }
  return choice.kernel;
}

/// Raises when a launcher reports an error, naming the kernel.
inline void check_launch(const char* kernel, cudaError_t status) {
  TORCH_CHECK(status == cudaSuccess, "gralora: the CUDA kernel of ", kernel,
              " could not start: ", cudaGetErrorString(status));
}

}  // namespace gralora::cuda

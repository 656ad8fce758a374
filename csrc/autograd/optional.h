// Small words for tensors that may be absent.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include "ops/adapter.h"

namespace gralora::autograd {

inline bool requires_grad(const OptionalTensor& tensor) {
  return tensor.has_value() && tensor->requires_grad();
}

/// Whether a derivative through this tensor is expected, in reverse or in forward mode.
inline bool is_differentiated(const OptionalTensor& tensor) {
  if (!tensor.has_value() || !tensor->defined()) return false;
  return (at::GradMode::is_enabled() && tensor->requires_grad()) ||
         tensor->_fw_grad(/*level=*/0).defined();
}

inline at::Tensor or_undefined(const OptionalTensor& tensor) {
  return tensor.value_or(at::Tensor());
}

inline at::Tensor keep_if(bool needed, const at::Tensor& tensor) {
  return needed ? tensor : at::Tensor();
}

inline OptionalTensor optional(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

}  // namespace gralora::autograd

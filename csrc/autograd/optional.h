// Small words for tensors that may be absent.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>

#include "ops/adapter.h"

namespace gralora::autograd {

inline bool requires_grad(const at::Tensor& tensor) {
  return tensor.defined() && tensor.requires_grad();
}

inline bool requires_grad(const OptionalTensor& tensor) {
  return tensor.has_value() && requires_grad(*tensor);
}

/// Whether the tensor carries a tangent of forward-mode differentiation.
inline bool has_tangent(const at::Tensor& tensor) {
  return tensor.defined() && tensor._fw_grad(/*level=*/0).defined();
}

inline bool has_tangent(const OptionalTensor& tensor) {
  return tensor.has_value() && has_tangent(*tensor);
}

/// Whether the graph of reverse mode gets a node for a call with these tensors.
template <class... Tensors>
bool is_recorded(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && (requires_grad(tensors) || ...);
}

/// Whether a derivative through this tensor is expected, in reverse or in forward mode.
template <class MaybeTensor>
bool is_differentiated(const MaybeTensor& tensor) {
  return is_recorded(tensor) || has_tangent(tensor);
}

/// Raises where a tangent would be lost: linear and add have derivatives in reverse mode alone.
template <class... Tensors>
void refuse_tangents(const char* op, const Tensors&... tensors) {
  TORCH_CHECK_NOT_IMPLEMENTED(!(has_tangent(tensors) || ...), "gralora::", op,
                              ": forward-mode differentiation is not supported, got a tensor "
                              "with a tangent; use reverse mode, or gralora.reference");
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

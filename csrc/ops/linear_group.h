// The rules of a group of layers that read the same input, beside those of each layer (check.h).
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <vector>

#include "ops/check.h"
#include "ops/operators.h"

namespace gralora::ops {

/// One to three layers over x, each with A and B of one k_in, s and dtype. Returns their shapes.
std::vector<AdapterShape> check_group(const char* op, const at::Tensor& x, at::TensorList weights,
                                      const c10::List<OptionalTensor>& biases, at::TensorList A,
                                      at::TensorList B);

struct CheckedGradients {
  std::vector<AdapterShape> shapes;
  at::Tensor first_dy;  // of those that are given
};

/// At least one dy, each as its layer's output, and what was saved.
CheckedGradients check_group_gradients(const c10::List<OptionalTensor>& dy, const OptionalTensor& x,
                                       at::TensorList weights, at::TensorList A, at::TensorList B,
                                       const OptionalTensor& H, GroupMask wants_dA,
                                       GroupMask wants_dB);

}  // namespace gralora::ops

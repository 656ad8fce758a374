// linear_group_forward and linear_group_backward as compositions of steps: layers that read the
// same input. The arguments are those of the operators in ops/schema.cpp.
#pragma once

#include "aten/steps.h"
#include "ops/operators.h"

namespace gralora::aten {

ops::GroupForward linear_group_forward(const Steps& steps, const at::Tensor& x,
                                       at::TensorList weights,
                                       const c10::List<OptionalTensor>& biases, at::TensorList A,
                                       at::TensorList B, double scaling);

ops::GroupGradients linear_group_backward(const Steps& steps, const c10::List<OptionalTensor>& dy,
                                          const OptionalTensor& x, at::TensorList weights,
                                          at::TensorList A, at::TensorList B,
                                          const OptionalTensor& H, double scaling, bool wants_dx,
                                          ops::GroupMask wants_dA, ops::GroupMask wants_dB);

}  // namespace gralora::aten

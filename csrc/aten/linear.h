// linear_forward and linear_backward as compositions of steps; the other arguments are those of the
// operators in ops/schema.cpp.
#pragma once

#include <array>

#include "aten/steps.h"
#include "ops/operators.h"

namespace gralora::aten {

ops::Forward linear_forward(const Steps& steps, const at::Tensor& x, const at::Tensor& weight,
                            const OptionalTensor& bias, const OptionalTensor& A,
                            const OptionalTensor& B, const OptionalTensor& lora_A,
                            const OptionalTensor& lora_B, const OptionalTensor& rng_state,
                            double scaling, double dropout_p);

ops::LinearGradients linear_backward(const Steps& steps, const at::Tensor& dy,
                                     const OptionalTensor& x, const at::Tensor& weight,
                                     const OptionalTensor& A, const OptionalTensor& B,
                                     const OptionalTensor& lora_A, const OptionalTensor& lora_B,
                                     const OptionalTensor& H, const OptionalTensor& lora_H,
                                     const OptionalTensor& rng_state, double scaling,
                                     double dropout_p, std::array<bool, 7> output_mask);

}  // namespace gralora::aten

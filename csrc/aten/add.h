// add_forward and add_backward as compositions of steps; the other arguments are those of the
// operators in ops/schema.cpp.
#pragma once

#include <array>

#include "aten/steps.h"
#include "ops/operators.h"

namespace gralora::aten {

ops::Forward add_forward(const Steps& steps, const at::Tensor& y, const at::Tensor& x,
                         const OptionalTensor& A, const OptionalTensor& B,
                         const OptionalTensor& lora_A, const OptionalTensor& lora_B,
                         const OptionalTensor& rng_state, double scaling, double dropout_p);

ops::AddGradients add_backward(const Steps& steps, const at::Tensor& dy, const OptionalTensor& x,
                               const OptionalTensor& A, const OptionalTensor& B,
                               const OptionalTensor& lora_A, const OptionalTensor& lora_B,
                               const OptionalTensor& H, const OptionalTensor& lora_H,
                               const OptionalTensor& rng_state, double scaling, double dropout_p,
                               std::array<bool, 5> output_mask);

}  // namespace gralora::aten

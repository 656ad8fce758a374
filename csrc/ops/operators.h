// Typed calls of gralora's own operators through the dispatcher, so that autograd, torch.compile
// and FakeTensor see every step of a composite. The schemas are in schema.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <tuple>

#include "ops/adapter.h"

namespace gralora::ops {

using Forward = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // y or out, H, lora_H
using LinearGradients =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using AddGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Forward linear_forward(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                       const OptionalTensor& A, const OptionalTensor& B,
                       const OptionalTensor& lora_A, const OptionalTensor& lora_B,
                       const OptionalTensor& rng_state, double scaling, double dropout_p);

LinearGradients linear_backward(const at::Tensor& dy, const OptionalTensor& x,
                                const at::Tensor& weight, const OptionalTensor& A,
                                const OptionalTensor& B, const OptionalTensor& lora_A,
                                const OptionalTensor& lora_B, const OptionalTensor& H,
                                const OptionalTensor& lora_H, const OptionalTensor& rng_state,
                                double scaling, double dropout_p, std::array<bool, 7> output_mask);

Forward add_forward(const at::Tensor& y, const at::Tensor& x, const OptionalTensor& A,
                    const OptionalTensor& B, const OptionalTensor& lora_A,
                    const OptionalTensor& lora_B, const OptionalTensor& rng_state, double scaling,
                    double dropout_p);

AddGradients add_backward(const at::Tensor& dy, const OptionalTensor& x, const OptionalTensor& A,
                          const OptionalTensor& B, const OptionalTensor& lora_A,
                          const OptionalTensor& lora_B, const OptionalTensor& H,
                          const OptionalTensor& lora_H, const OptionalTensor& rng_state,
                          double scaling, double dropout_p, std::array<bool, 5> output_mask);

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                  const OptionalTensor& A, const OptionalTensor& B, const OptionalTensor& lora_A,
                  const OptionalTensor& lora_B, double scaling, double dropout_p, bool training);

at::Tensor add(const at::Tensor& y, const at::Tensor& x, const OptionalTensor& A,
               const OptionalTensor& B, const OptionalTensor& lora_A, const OptionalTensor& lora_B,
               double scaling, double dropout_p, bool training);

at::Tensor delta_weight(const OptionalTensor& A, const OptionalTensor& B,
                        const OptionalTensor& lora_A, const OptionalTensor& lora_B, double scaling);

void merge_(at::Tensor& weight, const OptionalTensor& A, const OptionalTensor& B,
            const OptionalTensor& lora_A, const OptionalTensor& lora_B, double scaling,
            double sign);

at::Tensor dropout(const at::Tensor& x, const at::Tensor& rng_state, double p);

}  // namespace gralora::ops

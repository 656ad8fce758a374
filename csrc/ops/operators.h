// Typed calls of gralora's own operators through the dispatcher, so that autograd, torch.compile
// and FakeTensor see every step of a composite. The schemas are in schema.cpp.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <array>
#include <tuple>
#include <vector>

#include "ops/adapter.h"

namespace gralora::ops {

using Forward = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // y or out, H, lora_H
using LinearGradients =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
/// Layers of a group: q, k and v. As many gradients of factors, dA of all and each dB, as one call
/// of the kernel takes.
inline constexpr size_t kMostMembers = 3;
using GroupMask = std::array<bool, kMostMembers>;                      // of the layers there are
using GroupForward = std::tuple<std::vector<at::Tensor>, at::Tensor>;  // ys, H
// dx, and of dA and dB those that are asked for, in the layers' order
using GroupGradients = std::tuple<at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>>;
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

GroupForward linear_group_forward(const at::Tensor& x, at::TensorList weights,
                                  const c10::List<OptionalTensor>& biases, at::TensorList A,
                                  at::TensorList B, double scaling);

GroupGradients linear_group_backward(const c10::List<OptionalTensor>& dy, const OptionalTensor& x,
                                     at::TensorList weights, at::TensorList A, at::TensorList B,
                                     const OptionalTensor& H, double scaling, bool wants_dx,
                                     GroupMask wants_dA, GroupMask wants_dB);

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

std::vector<at::Tensor> linear_group(const at::Tensor& x, at::TensorList weights,
                                     const c10::List<OptionalTensor>& biases, at::TensorList A,
                                     at::TensorList B, double scaling);

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

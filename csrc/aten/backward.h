// The adapter's part of a backward pass, shared by linear_backward and add_backward.
#pragma once

#include "aten/blocks.h"

namespace gralora::aten {

/// Up to so many tokens, what the base product brings into the cache does not push out what the
/// sums over tokens read.
inline constexpr int64_t kShortCall = 512;

/// Which of the adapter's gradients are asked for.
struct AdapterMask {
  bool dx, dA, dB, dlora_A, dlora_B;
};

/// Undefined where not asked for: dx as [T, N], contiguous, in dy's dtype, and the factors'
/// gradients in the dtypes of their factors.
struct AdapterGradients {
  at::Tensor dx, dA, dB, dlora_A, dlora_B;
};

/// `dy_rows` is dy as [T, M]; its dtype is the compute dtype. dx has the frozen layer's part too
/// where its `weight` [M, N] is given.
AdapterGradients adapter_backward(const char* op, const Adapter& adapter, const AdapterShape& shape,
                                  const at::Tensor& dy_rows, const OptionalTensor& x,
                                  const OptionalTensor& H, const OptionalTensor& lora_H,
                                  const OptionalTensor& rng_state, double scaling, double dropout_p,
                                  AdapterMask mask, const OptionalTensor& weight,
                                  const Steps& steps);

}  // namespace gralora::aten

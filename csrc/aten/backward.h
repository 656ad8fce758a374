// The adapter's part of a backward pass, shared by linear_backward and add_backward.
#pragma once

#include <c10/util/FunctionRef.h>

#include "aten/blocks.h"

namespace gralora::aten {

/// Which of the adapter's gradients are asked for.
struct AdapterMask {
  bool dx, dA, dB, dlora_A, dlora_B;
};

/// Undefined where not asked for: dx as [T, N], contiguous, in dy's dtype, and the factors'
/// gradients in the dtypes of their factors.
struct AdapterGradients {
  at::Tensor dx, dA, dB, dlora_A, dlora_B;
};

/// Adds the base layer's part to the adapter's part of dx, in place.
using AddBase = c10::function_ref<void(at::Tensor& dx)>;

/// `dy_rows` is dy as [T, M]; its dtype is the compute dtype. `add_base` is called once if dx is
/// asked for, where that suits the kernels beside it.
AdapterGradients adapter_backward(const char* op, const Adapter& adapter, const AdapterShape& shape,
                                  const at::Tensor& dy_rows, const OptionalTensor& x,
                                  const OptionalTensor& H, const OptionalTensor& lora_H,
                                  const OptionalTensor& rng_state, double scaling, double dropout_p,
                                  AdapterMask mask, AddBase add_base, const Steps& steps);

}  // namespace gralora::aten

// The adapter's part of a backward pass, shared by linear_backward and add_backward.
#pragma once

#include <array>

#include "aten/blocks.h"

namespace gralora::aten {

/// Which of the adapter's gradients are asked for.
struct AdapterMask {
  bool dx, dA, dB, dlora_A, dlora_B;
};

/// In the dtypes of their factors; undefined where not asked for.
struct FactorGradients {
  at::Tensor dA, dB, dlora_A, dlora_B;
};

/// Computes G and lora_G once, then what is asked for. dy's dtype is the compute dtype.
class AdapterBackward {
 public:
  AdapterBackward(const char* op, const Adapter& adapter, const AdapterShape& shape,
                  const at::Tensor& dy, const OptionalTensor& x, const OptionalTensor& H,
                  const OptionalTensor& lora_H, const OptionalTensor& rng_state, double scaling,
                  double dropout_p, const AdapterMask& mask, const Steps& steps);

  /// dy as [T, M].
  const at::Tensor& dy_rows() const { return dy_rows_; }

  /// The adapter's part of dx as [T, N], contiguous.
  at::Tensor input_gradient() const;

  FactorGradients factor_gradients() const;

 private:
  const Steps& steps_;
  Adapter adapter_;
  Sizes sizes_;
  AdapterMask mask_;
  at::Tensor dy_rows_;
  Dropout dropout_;
  AdapterInput input_;  // x, only for dA and dlora_A
  OptionalTensor H_, lora_H_;
  ComputeFactors factors_;
  Latents gradients_;  // G and lora_G
};

}  // namespace gralora::aten

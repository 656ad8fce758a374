// Sums over the tokens between tensors and the kernel: what the chooser and the launcher are told.
#pragma once

#include "aten/steps.h"
#include "cuda/launch.h"
#include "dispatch/select_weight_gradient.h"
#include "kernels/weight_gradient.h"

namespace gralora::cuda {

WeightGradientProblem describe_sums(const aten::TokenSums& sums, const aten::AdapterInput& input);

WeightGradientSelection select_sums(const aten::TokenSums& sums, const aten::AdapterInput& input);

/// The kernel's parameters for sums over the tokens, with new tensors for their results. Alive
/// until the launch.
class GradientCall {
 public:
  GradientCall(const aten::TokenSums& sums, const aten::AdapterInput& input,
               const WeightGradientSelection& selection);

  const WeightGradientParams& params() const { return params_; }

 private:
  DropoutArgument dropout_;
  at::Tensor workspace_;
  WeightGradientParams params_{};
};

}  // namespace gralora::cuda

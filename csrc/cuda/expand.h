// An expansion between tensors and the kernel: what the chooser and the launcher are told.
#pragma once

#include "aten/steps.h"
#include "cuda/launch.h"
#include "dispatch/select_expand.h"
#include "kernels/expand.h"

namespace gralora::cuda {

/// The adapter's term from `latents` and the factors into `rows`, and what stands beside it;
/// nothing by default.
struct Expansion {
  const at::Tensor& rows;
  const aten::Latents& latents;
  const at::Tensor& grid_factor;
  const at::Tensor& plain_factor;
  const at::Tensor* bias = nullptr;
  DropoutSource dropout{};
  bool overwrite = true;

  ExpandSelection select() const;
  ExpandParams describe(ExpandTile tile) const;

  /// Whether rows of the operands and of the result start on 16-byte boundaries.
  bool is_aligned() const;
  int64_t count_blocks() const { return grid_factor.defined() ? grid_factor.size(0) : 1; }
};

}  // namespace gralora::cuda

// The key of one call's dropout mask.
#pragma once

#include <ATen/ops/randint.h>

#include <limits>

#include "ops/adapter.h"

namespace gralora::ops {

/// Draws int64 [2] on x's device from torch's default generator, or nothing when p is 0. It is a
/// tensor and drawn by a torch operator, so that a replayed CUDA graph draws a fresh one and
/// torch.compile and checkpointing treat it like any other random number; the operators that
/// receive it stay pure functions.
inline OptionalTensor draw_rng_state(const at::Tensor& x, double p) {
  if (p == 0.0) return std::nullopt;
  return at::randint(std::numeric_limits<int64_t>::max(), {2},
                     at::TensorOptions().dtype(at::kLong).device(x.device()));
}

}  // namespace gralora::ops

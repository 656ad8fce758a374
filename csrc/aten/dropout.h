// Dropout of the adapter's input inside a composition.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/adapter.h"

namespace gralora::aten {

/// `rows` [T, N] with the call's mask applied, or `rows` itself where rng_state is absent. Goes
/// through the dispatcher: each device has its own generator kernel.
at::Tensor drop(const at::Tensor& rows, const OptionalTensor& rng_state, double p);

}  // namespace gralora::aten

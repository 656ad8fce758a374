// The dtype of an adapter's weight difference.
#pragma once

#include <c10/core/ScalarType.h>

#include "ops/adapter.h"

namespace gralora {

/// The type that torch promotes all present factors to.
inline at::ScalarType delta_dtype(const Adapter& adapter) {
  std::optional<at::ScalarType> dtype;
  for (const at::Tensor* factor : {&adapter.A, &adapter.B, &adapter.lora_A, &adapter.lora_B}) {
    if (!factor->defined()) continue;
    dtype = dtype ? c10::promoteTypes(*dtype, factor->scalar_type()) : factor->scalar_type();
  }
  return *dtype;
}

/// The type in which products of these factors are summed before they are rounded to `target`.
inline at::ScalarType delta_sum_dtype(at::ScalarType target, const Adapter& adapter) {
  const bool wide = target == at::kDouble || delta_dtype(adapter) == at::kDouble;
  return wide ? at::kDouble : at::kFloat;
}

}  // namespace gralora

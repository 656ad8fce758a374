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

}  // namespace gralora

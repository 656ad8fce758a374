// The factors of one adapter, as every layer below the schema passes them on.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace gralora {

using OptionalTensor = std::optional<at::Tensor>;

/// One adapter's factors; an undefined tensor stands for a part that the adapter does not have.
struct Adapter {
  at::Tensor A;       // [k_in, n, k_out*s]
  at::Tensor B;       // [k_out, k_in*s, m]
  at::Tensor lora_A;  // [r0, N]
  at::Tensor lora_B;  // [M, r0]

  Adapter(const OptionalTensor& A, const OptionalTensor& B, const OptionalTensor& lora_A,
          const OptionalTensor& lora_B)
      : A(A.value_or(at::Tensor())),
        B(B.value_or(at::Tensor())),
        lora_A(lora_A.value_or(at::Tensor())),
        lora_B(lora_B.value_or(at::Tensor())) {}

  bool has_grid() const { return A.defined(); }
  bool has_plain() const { return lora_A.defined(); }
};

}  // namespace gralora

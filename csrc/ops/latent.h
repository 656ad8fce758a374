// The memory layout of the latents H [k_out, T, k_in*s], G [k_in, T, k_out*s] and lora_H [T, r0].
#pragma once

#include <c10/core/SymInt.h>

namespace gralora {

/// Elements between two rows of a latent: the rank rounded up to 8, so that rows of 16-bit numbers
/// start on 16-byte boundaries, which wide loads and the tensor memory accelerator require.
inline c10::SymInt latent_pitch(const c10::SymInt& rank) { return (rank + 7) / 8 * 8; }

}  // namespace gralora

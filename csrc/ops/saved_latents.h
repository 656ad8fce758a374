// Whether forward passes keep their latents for the backward pass, or that projects x again
// (gralora.kernels.recomputed_latents).
#pragma once

namespace gralora::ops {

bool saves_latents();

/// Of forward passes from now on, in all threads.
void set_saves_latents(bool saves);

}  // namespace gralora::ops

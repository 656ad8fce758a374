// The exchange kernel's parameters and launcher; csrc/cuda/exchange.cpp fills and calls them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace gralora {

/// latent[q, t, (p, rank)] = product[p, t, (q, rank)]; all counts and strides in bytes save the
/// numbers of blocks and tokens.
struct ExchangeParams {
  const void* product;  // [inner, T, outer*run], contiguous
  void* latent;         // [outer, T, inner*run], rows `latent_pitch` apart
  int64_t T;
  int32_t inner, outer;
  int32_t run;  // bytes of one block's rank: s elements
  int64_t latent_plane, latent_pitch;
};

cudaError_t launch_exchange(const ExchangeParams& params, cudaStream_t stream);

}  // namespace gralora

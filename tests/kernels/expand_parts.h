// The parts of an adapter's term as its checks make them.
#pragma once

#include "kernels/expand.h"
#include "support.h"

namespace gralora::check {

/// One part of an expansion: `factor` of `blocks`, its rank or its width contiguous.
template <class T>
struct PartArrays {
  int rank;
  bool rank_is_contiguous;
  int64_t latent_pitch, factor_pitch;
  Array<T> latent, factor;

  PartArrays(int rank, bool rank_is_contiguous, int blocks, int tokens, int width)
      : rank(rank),
        rank_is_contiguous(rank_is_contiguous),
        latent_pitch(padded(rank)),
        factor_pitch(padded(rank_is_contiguous ? rank : width)),
        latent(blocks * tokens * latent_pitch),
        factor(blocks * (rank_is_contiguous ? width : rank) * factor_pitch) {
    latent.fill(rank, latent_pitch == 0 ? 1 : latent_pitch);
    factor.fill(rank_is_contiguous ? rank : width, factor_pitch == 0 ? 1 : factor_pitch);
  }
  ExpandPart part(int tokens, int width) const {
    ExpandPart part{};
    part.latent = latent.device();
    part.factor = factor.device();
    part.latent_plane = tokens * latent_pitch;
    part.latent_pitch = latent_pitch;
    part.factor_block_stride = (rank_is_contiguous ? width : rank) * factor_pitch;
    part.factor_pitch = factor_pitch;
    part.rank = rank;
    part.rank_is_contiguous = rank_is_contiguous;
    return part;
  }
  void add_to(Exact& exact, int block, int tokens, int t, int width, int o) const {
    for (int q = 0; q < rank; ++q) {
      const int64_t row = rank_is_contiguous ? block * width + o : block * rank + q;
      const int64_t column = rank_is_contiguous ? q : o;
      exact.add(latent[(static_cast<int64_t>(block) * tokens + t) * latent_pitch + q] *
                factor[row * factor_pitch + column]);
    }
  }
};

}  // namespace gralora::check

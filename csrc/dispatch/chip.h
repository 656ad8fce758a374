// The GPU as choosers see it.
#pragma once

namespace gralora {

struct Chip {
  int processors;  // multiprocessors
  int capability;  // compute capability, 90 for 9.0

  /// Whether blocks can form clusters; code compiled for an older chip does without them.
  constexpr bool has_clusters() const { return capability >= 90; }
};

}  // namespace gralora

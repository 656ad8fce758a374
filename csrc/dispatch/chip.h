// The GPU as choosers see it.
#pragma once

namespace gralora {

struct Chip {
  int processors;  // multiprocessors
  int cluster;     // blocks that may form a cluster there, 1 for none
};

}  // namespace gralora

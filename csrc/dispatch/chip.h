// The GPU as choosers see it.
#pragma once

namespace gralora {

struct Chip {
  int processors;  // multiprocessors
  int cluster;     // blocks that may form a cluster there, 1 for none
  bool sm90;       // runs the kernels of compute capability 9.0a
};

}  // namespace gralora

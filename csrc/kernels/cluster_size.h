// What a GPU can do that depends on the code which runs there, not on the chip alone.
#pragma once

#include <cuda_runtime_api.h>

namespace gralora {

/// How many blocks of a kernel that shares a tile (cluster.cuh) may form a cluster on the current
/// device, a power of two: 1 where the chip has no clusters or runs code of an older one.
cudaError_t find_cluster_size(int& blocks);

}  // namespace gralora

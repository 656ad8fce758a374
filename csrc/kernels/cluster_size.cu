#include "kernels/cluster_size.h"
#include "kernels/launch.cuh"
#include "kernels/project_tiles.h"

namespace gralora {
namespace {

constexpr int kThreads = 256;
constexpr int kSharedBytes = 96 * 1024;  // of the largest tile

/// Stands for the kernels that form clusters.
__global__ void __launch_bounds__(kThreads) probe_kernel(const int) {}

}  // namespace

cudaError_t find_cluster_size(int& blocks) {
  blocks = 1;
  bool is_modern = false;
  cudaError_t status = prepare_kernel<probe_kernel, kSharedBytes>(is_modern);
  if (status != cudaSuccess || !is_modern) return status;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kMostProjectSplits);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSharedBytes;
  int most = 1;
  status = cudaOccupancyMaxPotentialClusterSize(&most, probe_kernel, &config);
  if (status != cudaSuccess) {
    (void)cudaGetLastError();
    return status;
  }
  while (blocks * 2 <= most && blocks < kMostProjectSplits) blocks *= 2;
  return cudaSuccess;
}

}  // namespace gralora

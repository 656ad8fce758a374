// How the kernels of the adapter products start.
//
// Compute capability 9.0 lets a kernel be set up while the one before it in the stream still runs
// (programmatic dependent launch): its blocks take multiprocessors as they fall idle and wait there
// for that kernel's results, which hides most of a launch's latency. The rules that make it safe:
// every block of a kernel started here calls ptx::wait_for_earlier_kernels() before it touches
// memory that the kernel just before it may have written, and ptx::release_next_kernel() only after
// that, or ends without touching memory, and at least one block of a kernel waits. One thread's
// wait is enough where all that the block touches comes after something that this thread does then.
// So when a kernel that follows one of these begins, all but that one are done, and what they wrote
// may be read before the wait. The expansion, the thin product and the extended product make use of
// it, where their callers say so.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <atomic>
#include <cstdint>

#include "kernels/ptx.cuh"

namespace gralora {

// With few tokens the next kernel's blocks wait beside those that walk along an operand; with many
// they would fill the processors unevenly, and come when the sums are done.
inline constexpr int kOverlappingTokens = 1024;

/// Whether the code of `kernel` that runs on the current device has the wait above: code compiled
/// at run time from an older architecture's PTX has not, whatever the device could do.
template <auto kKernel>
cudaError_t find_overlap(bool& overlaps) {
  cudaFuncAttributes attributes{};
  const cudaError_t status = cudaFuncGetAttributes(&attributes, kKernel);
  overlaps = attributes.ptxVersion >= 90 && attributes.binaryVersion >= 90;
  return status;
}

/// Prepares the kernel for the current device, once: its dynamic shared memory, and whether it can
/// overlap with the kernel before it.
template <auto kKernel, int kSharedBytes>
cudaError_t prepare_kernel(bool& overlaps) {
  enum State : uint8_t { kUnknown, kSerial, kOverlapping };
  constexpr int kDevices = 128;
  static std::array<std::atomic<uint8_t>, kDevices> states{};
  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  const uint8_t known = device < kDevices ? states[device].load(std::memory_order_relaxed)
                                          : static_cast<uint8_t>(kUnknown);
  if (known != kUnknown) {
    overlaps = known == kOverlapping;
    return cudaSuccess;
  }
  // Threads that come here together do the same twice, which harms nothing.
  if constexpr (kSharedBytes > 0) {
    status =
        cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  }
  if (status == cudaSuccess) status = find_overlap<kKernel>(overlaps);
  if (status == cudaSuccess && device < kDevices) {
    states[device].store(overlaps ? kOverlapping : kSerial, std::memory_order_relaxed);
  }
  // An error that is returned must not be found again by whoever asks for the last one.
  if (status != cudaSuccess) (void)cudaGetLastError();
  return status;
}

/// Starts `kKernel(params)` on so many blocks, `cluster` of them to a cluster; nothing for none.
template <auto kKernel, int kThreads, int kSharedBytes, class Params>
cudaError_t start_kernel(int64_t blocks, const Params& params, cudaStream_t stream,
                         unsigned blocks_along_y = 1, unsigned cluster = 1) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  bool overlaps = false;
  cudaError_t status = prepare_kernel<kKernel, kSharedBytes>(overlaps);
  cudaLaunchAttribute attributes[2]{};
  unsigned count = 0;
  if (overlaps) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {cluster, 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks), blocks_along_y);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  if (status == cudaSuccess) status = cudaLaunchKernelEx(&config, kKernel, params);
  if (status != cudaSuccess) (void)cudaGetLastError();
  return status;
}

/// A kernel's blocks do `Work::run(params, index, shared)`, each with its own index and
/// Work::kSharedBytes of shared memory.
template <class Work>
__global__ void __launch_bounds__(Work::kThreads, Work::kBlocksPerProcessor)
    work_kernel(const __grid_constant__ typename Work::Params params) {
  Work::run(params, blockIdx.x, ptx::dynamic_shared_memory());
}

template <class Work>
cudaError_t start_work(int64_t blocks, const typename Work::Params& params, cudaStream_t stream,
                       unsigned cluster = 1) {
  return start_kernel<work_kernel<Work>, Work::kThreads, Work::kSharedBytes>(
      blocks, params, stream, /*blocks_along_y=*/1, cluster);
}

/// Makes `blocks` 1 where the code that runs on the current device cannot form clusters.
template <class Work>
cudaError_t limit_cluster(int32_t& blocks) {
  if (blocks == 1) return cudaSuccess;
  bool is_modern = false;
  const cudaError_t status = prepare_kernel<work_kernel<Work>, Work::kSharedBytes>(is_modern);
  if (!is_modern) blocks = 1;
  return status;
}

}  // namespace gralora

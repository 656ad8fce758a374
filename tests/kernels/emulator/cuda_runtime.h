// The part of the CUDA runtime that the kernels, their launchers and their checks use, on the
// emulator's machine. The device is the newest that they know: clusters, dependent launch.
#pragma once

#include <algorithm>
#include <climits>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "machine.h"

#define __device__
#define __host__
#define __global__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

using std::max;
using std::min;

struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

inline void __syncthreads() { emulator::arrive_and_wait(emulator::current().block->barrier); }

inline uint32_t __shfl_xor_sync(unsigned, uint32_t value, int mask) {
  emulator::Thread& thread = emulator::current();
  uint64_t(&words)[emulator::kWarpSize] = thread.warp->words[thread.turn];
  thread.turn ^= 1;
  words[thread.lane] = value;
  emulator::arrive_and_wait(thread.warp->barrier);
  return static_cast<uint32_t>(words[thread.lane ^ mask]);
}

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidConfiguration };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID {
  cudaLaunchAttributeProgrammaticStreamSerialization,
  cudaLaunchAttributeClusterDimension
};
struct cudaStream_st;
using cudaStream_t = cudaStream_st*;

struct cudaFuncAttributes {
  int ptxVersion, binaryVersion;
};
struct cudaLaunchAttributeValue {
  int programmaticStreamSerializationAllowed;
  struct {
    unsigned x, y, z;
  } clusterDim;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaSuccess ? "no error" : "invalid value or configuration";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
template <class T>
cudaError_t cudaMalloc(T** memory, size_t bytes) {
  *memory = static_cast<T*>(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
  attributes->ptxVersion = attributes->binaryVersion = 90;
  return cudaSuccess;
}

template <class Params>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params),
                               const std::remove_const_t<Params>& params) {
  unsigned cluster = 1;
  for (unsigned a = 0; a < config->numAttrs; ++a) {
    if (config->attrs[a].id == cudaLaunchAttributeClusterDimension) {
      cluster = config->attrs[a].val.clusterDim.x;
    }
  }
  if (config->gridDim.x % cluster != 0) return cudaErrorInvalidConfiguration;
  emulator::run_grid(config->gridDim, config->blockDim.x, config->dynamicSmemBytes, cluster,
                     [&] { kernel(params); });
  return cudaSuccess;
}

// The part of the CUDA runtime that the kernels, their launchers and their checks use, on the
// emulator's machine. The device is the newest that they know: clusters, dependent launch.
#pragma once

#include <algorithm>
#include <climits>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>

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

inline void __syncwarp() { emulator::arrive_and_wait(emulator::current().warp->barrier); }

inline uint32_t __shfl_sync(unsigned, uint32_t value, int lane) {
  emulator::Thread& thread = emulator::current();
  uint64_t(&words)[emulator::kWarpSize] = thread.warp->words[thread.turn];
  thread.turn ^= 1;
  words[thread.lane] = value;
  emulator::arrive_and_wait(thread.warp->barrier);
  return static_cast<uint32_t>(words[lane]);
}

inline uint32_t __shfl_xor_sync(unsigned all, uint32_t value, int mask) {
  return __shfl_sync(all, value, emulator::current().lane ^ mask);
}

enum cudaError_t {
  cudaSuccess,
  cudaErrorInvalidValue,
  cudaErrorInvalidConfiguration,
  cudaErrorNotSupported,
  cudaErrorNoKernelImageForDevice,
  cudaErrorInvalidDeviceFunction
};
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
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 4;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
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
// What every kernel may use without asking, and what this one has asked for.
inline constexpr size_t kSharedBytesUnasked = 48 << 10;
template <class Params>
std::map<void (*)(Params), size_t>& shared_bytes_of() {
  static std::map<void (*)(Params), size_t> bytes;
  return bytes;
}
template <class Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params), cudaFuncAttribute, int bytes) {
  shared_bytes_of<Params>()[kernel] = static_cast<size_t>(bytes);
  return cudaSuccess;
}

/// EMULATED_CAPABILITY=80 makes the code that of a chip without clusters and dependent launch.
inline int emulated_capability() {
  const char* const value = std::getenv("EMULATED_CAPABILITY");
  return value == nullptr ? 90 : std::atoi(value);
}
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
enum cudaDriverEntryPointQueryResult {
  cudaDriverEntryPointSuccess,
  cudaDriverEntryPointSymbolNotFound
};
inline constexpr unsigned cudaEnableDefault = 0;
#define CUDART_VERSION 13000
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** entry, unsigned version,
                                             unsigned long long flags,
                                             cudaDriverEntryPointQueryResult* found);
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
  attributes->ptxVersion = attributes->binaryVersion = emulated_capability();
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxPotentialClusterSize(int* size, Kernel, const cudaLaunchConfig_t*) {
  *size = 8;
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
  size_t allowed = kSharedBytesUnasked;
  if (const auto asked = shared_bytes_of<Params>().find(kernel);
      asked != shared_bytes_of<Params>().end()) {
    allowed = std::max(allowed, asked->second);
  }
  if (config->gridDim.x % cluster != 0 || cluster > (emulated_capability() < 90 ? 1 : 8) ||
      config->dynamicSmemBytes > allowed) {
    return cudaErrorInvalidConfiguration;
  }
  emulator::run_grid(config->gridDim, config->blockDim.x, config->dynamicSmemBytes, cluster,
                     [&] { kernel(params); });
  return cudaSuccess;
}

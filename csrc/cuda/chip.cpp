// What the choosers need to know of the current device, asked for once.
#include "dispatch/chip.h"

#include <c10/cuda/CUDAException.h>

#include <array>
#include <atomic>

#include "cuda/launch.h"

namespace gralora::cuda {
namespace {

constexpr int kCapabilities = 1000;  // more than there are, so that both numbers fit one

int read_attribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

int read_chip(int device) {
  const int capability = read_attribute(cudaDevAttrComputeCapabilityMajor, device) * 10 +
                         read_attribute(cudaDevAttrComputeCapabilityMinor, device);
  return read_attribute(cudaDevAttrMultiProcessorCount, device) * kCapabilities + capability;
}

}  // namespace

Chip current_chip() {
  static std::array<std::atomic<int>, 128> known{};
  int device = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  const bool remembered = device < static_cast<int>(known.size());
  int chip = remembered ? known[device].load(std::memory_order_relaxed) : 0;
  if (chip == 0) {
    chip = read_chip(device);
    if (remembered) known[device].store(chip, std::memory_order_relaxed);
  }
  return {.processors = chip / kCapabilities, .capability = chip % kCapabilities};
}

}  // namespace gralora::cuda

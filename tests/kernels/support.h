// What the checks of the kernels share: arrays on host and device, exact sums with a bound for the
// error of an fp32 one, and the report.
//
// Each array is an allocation of its own, so that memcheck sees its end; the padding of rows and
// what a kernel is to write are NaN, so that a read of the one and a gap in the other show.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "kernels/element_type.h"
#include "kernels/project_sm90.h"

namespace gralora::check {

inline int failures = 0;
inline bool is_brief = false;  // as check_kernels was asked for
inline std::mt19937 generator(20520355);

/// The name of a 16-bit type, and half a place of it, relative.
template <class T>
struct Traits;
template <>
struct Traits<__nv_bfloat16> {
  static constexpr ElementType kType = ElementType::kBFloat16;
  static constexpr double kHalfPlace = 1.0 / 256;
  static constexpr const char* kName = "bf16";
};
template <>
struct Traits<__half> {
  static constexpr ElementType kType = ElementType::kFloat16;
  static constexpr double kHalfPlace = 1.0 / 2048;
  static constexpr const char* kName = "fp16";
};

inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
  std::exit(100);
}

/// The pitch of a row of so many 16-bit numbers.
inline int64_t padded(int64_t width) { return (width + 7) / 8 * 8; }

/// Numbers on host and device; one more than asked for where that is none, so that a kernel without
/// work has something that it must not write.
template <class T>
class Array {
 public:
  explicit Array(int64_t elements) : host(elements > 0 ? elements : 1) {
    check_cuda(cudaMalloc(&device_, host.size() * sizeof(T)), "cudaMalloc");
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { cudaFree(device_); }

  /// Random rows of `width` elements, `pitch` apart.
  Array& fill(int64_t width, int64_t pitch) {
    std::normal_distribution<float> normal;
    for (int64_t e = 0; e < static_cast<int64_t>(host.size()); ++e) {
      host[e] = T(e % pitch < width ? normal(generator) : NAN);
    }
    return send();
  }
  Array& poison() {
    for (T& element : host) element = T(NAN);
    return send();
  }
  Array& fetch() {
    check_cuda(cudaDeviceSynchronize(), "kernel");
    check_cuda(cudaMemcpy(host.data(), device_, host.size() * sizeof(T), cudaMemcpyDeviceToHost),
               "copy from the device");
    return *this;
  }
  double operator[](int64_t index) const { return static_cast<double>(float(host[index])); }
  T* device() const { return device_; }

  Array& send() {
    check_cuda(cudaMemcpy(device_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice),
               "copy to the device");
    return *this;
  }

  /// Elements that no longer are NaN.
  int64_t count_written() const {
    int64_t written = 0;
    for (const T element : host) written += !std::isnan(float(element));
    return written;
  }

  std::vector<T> host;

 private:
  T* device_ = nullptr;
};

/// A result and the sum of its terms' sizes, which bounds the error of an fp32 sum.
struct Exact {
  double value = 0, size = 0;
  void add(double term) {
    value += term;
    size += std::abs(term);
  }
};

/// Half the distance of float16's smallest numbers, which have fewer digits.
constexpr double kSmallestPlace = 3e-8;

/// `place` is the relative error of one rounding; NaN is close to nothing.
inline bool is_close(double actual, const Exact& exact, double place) {
  return std::abs(actual - exact.value) <=
         place * std::abs(exact.value) + 1e-5 * exact.size + kSmallestPlace;
}

inline void report(const std::string& name, int64_t wrong) {
  std::printf("%-72s %s\n", name.c_str(), wrong == 0 ? "ok" : "WRONG");
  if (wrong != 0) ++failures;
}

/// One file each; every dtype, every layout, T = 0 included.
void check_project();
void check_exchange();
void check_expand();
void check_thin_product();
void check_weight_gradient();
void check_extended_product_bf16();
void check_extended_product_fp16();
void check_product_order();  // which the first of these does
void check_round();
void check_dropout();

/// Two kernels' work in one launch.
void check_together();

/// Kernels that follow each other without a pause.
void check_overlap();

/// Whether this GPU runs the kernels of compute capability 9.0a.
inline bool runs_sm90() {
  bool run = false;
  check_cuda(find_sm90_kernels(run), "find_sm90_kernels");
  return run;
}

}  // namespace gralora::check

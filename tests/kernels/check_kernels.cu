// Every kernel of the adapter products against a plain loop on the host, without torch: what
// compute-sanitizer runs over, since library products in the same process get in its way.
//
// Each array is an allocation of its own, so that memcheck sees its end, and the padding of rows is
// NaN, so that its use would show in a result. Prints one line per case; the exit
// status is the number of cases that failed.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/exchange.h"
#include "kernels/expand.h"
#include "kernels/project.h"
#include "kernels/round.h"
#include "kernels/weight_gradient.h"

namespace {

using gralora::ElementType;
using Half = __nv_bfloat16;
constexpr double kHalfPlace = 1.0 / 256;  // of bf16, relative

int failures = 0;
std::mt19937 generator(20520355);

void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
  std::exit(100);
}

int64_t padded(int64_t rank) { return (rank + 7) / 8 * 8; }

/// Numbers on host and device.
template <class T>
class Array {
 public:
  explicit Array(int64_t elements) : host(elements) {
    check_cuda(cudaMalloc(&device_, elements * sizeof(T)), "cudaMalloc");
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
    check_cuda(cudaMemcpy(device_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice),
               "copy to the device");
    return *this;
  }
  void fetch() {
    check_cuda(cudaDeviceSynchronize(), "kernel");
    check_cuda(cudaMemcpy(host.data(), device_, host.size() * sizeof(T), cudaMemcpyDeviceToHost),
               "copy from the device");
  }
  double operator[](int64_t index) const { return static_cast<double>(float(host[index])); }
  T* device() const { return device_; }

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

bool is_close(double actual, const Exact& exact, double place) {
  return std::abs(actual - exact.value) <=
         place * std::abs(exact.value) + 1e-5 * exact.size + 1e-30;
}

void report(const std::string& name, int64_t wrong) {
  std::printf("%-60s %s\n", name.c_str(), wrong == 0 ? "ok" : "WRONG");
  if (wrong != 0) ++failures;
}

struct ProjectCase {
  int T, inner, width, outer, s;
};

void check_project(const ProjectCase& c, gralora::ProjectTile tile, bool width_is_contiguous) {
  const int columns = c.outer * c.s;
  const int64_t pitch = padded(c.inner * c.s);
  const int64_t x_pitch = c.inner * c.width + 8;
  const int64_t factor_rows = width_is_contiguous ? columns : c.width;
  const int64_t factor_width = width_is_contiguous ? c.width : columns;
  const int64_t factor_pitch = padded(factor_width);
  Array<Half> x(c.T * x_pitch), factor(c.inner * factor_rows * factor_pitch);
  Array<Half> latent(c.outer * c.T * pitch);
  x.fill(c.inner * c.width, x_pitch);
  factor.fill(factor_width, factor_pitch);
  gralora::ProjectParams p{};
  p.x = x.device();
  p.factor = factor.device();
  p.latent = latent.device();
  p.T = c.T;
  p.inner = c.inner;
  p.width = c.width;
  p.outer = c.outer;
  p.s = c.s;
  p.x_row_stride = x_pitch;
  p.factor_block_stride = factor_rows * factor_pitch;
  p.factor_pitch = factor_pitch;
  p.latent_plane = c.T * pitch;
  p.latent_pitch = pitch;
  p.scaling = 0.5f;
  p.type = ElementType::kBFloat16;
  p.width_is_contiguous = width_is_contiguous;
  p.tile = tile;
  check_cuda(gralora::launch_project(p, nullptr), "project");
  check_cuda(cudaDeviceSynchronize(), "project");
  int64_t wrong = 0;
  std::vector<Half> row(c.inner * c.s);
  for (int q = 0; q < c.outer; ++q) {
    for (int t = 0; t < c.T; ++t) {
      check_cuda(cudaMemcpy(row.data(), latent.device() + q * p.latent_plane + t * pitch,
                            row.size() * sizeof(Half), cudaMemcpyDeviceToHost),
                 "copy from the device");
      for (int e = 0; e < c.inner * c.s; ++e) {
        const int block = e / c.s, column = q * c.s + e % c.s;
        Exact exact;
        for (int w = 0; w < c.width; ++w) {
          const int64_t at =
              block * p.factor_block_stride +
              (width_is_contiguous ? column * factor_pitch + w : w * factor_pitch + column);
          exact.add(0.5 * x[t * x_pitch + block * c.width + w] * factor[at]);
        }
        wrong += !is_close(float(row[e]), exact, kHalfPlace);
      }
    }
  }
  const auto size = gralora::size_of(tile);
  report("project " + std::to_string(size.tokens) + "x" + std::to_string(size.columns) + " T " +
             std::to_string(c.T) + " blocks " + std::to_string(c.inner) + "x" +
             std::to_string(c.outer) + " width " + std::to_string(c.width) + " s " +
             std::to_string(c.s) + (width_is_contiguous ? " width contiguous" : ""),
         wrong);
}

void check_exchange(int T, int inner, int outer, int s) {
  const int64_t pitch = padded(inner * s);
  Array<Half> product(static_cast<int64_t>(inner) * T * outer * s);
  Array<Half> latent(outer * T * pitch);
  product.fill(product.host.size(), product.host.size());
  gralora::ExchangeParams p{};
  p.product = product.device();
  p.latent = latent.device();
  p.T = T;
  p.inner = inner;
  p.outer = outer;
  p.run = s * static_cast<int>(sizeof(Half));
  p.latent_plane = T * pitch * static_cast<int64_t>(sizeof(Half));
  p.latent_pitch = pitch * static_cast<int64_t>(sizeof(Half));
  check_cuda(gralora::launch_exchange(p, nullptr), "exchange");
  check_cuda(cudaDeviceSynchronize(), "exchange");
  int64_t wrong = 0;
  std::vector<Half> row(inner * s);
  for (int q = 0; q < outer; ++q) {
    for (int t = 0; t < T; ++t) {
      check_cuda(cudaMemcpy(row.data(), latent.device() + (q * T + t) * pitch,
                            row.size() * sizeof(Half), cudaMemcpyDeviceToHost),
                 "copy from the device");
      for (int e = 0; e < inner * s; ++e) {
        const int64_t at = (static_cast<int64_t>(e / s) * T + t) * outer * s + q * s + e % s;
        wrong += float(row[e]) != float(product.host[at]);
      }
    }
  }
  report("exchange T " + std::to_string(T) + " blocks " + std::to_string(inner) + "x" +
             std::to_string(outer) + " s " + std::to_string(s),
         wrong);
}

/// One part of an expansion: `factor` of `blocks`, its rank or its width contiguous.
struct PartArrays {
  int rank;
  bool rank_is_contiguous;
  int64_t latent_pitch, factor_pitch;
  Array<Half> latent, factor;

  PartArrays(int rank, bool rank_is_contiguous, int blocks, int T, int width)
      : rank(rank),
        rank_is_contiguous(rank_is_contiguous),
        latent_pitch(padded(rank)),
        factor_pitch(padded(rank_is_contiguous ? rank : width)),
        latent(blocks * T * latent_pitch),
        factor(blocks * (rank_is_contiguous ? width : rank) * factor_pitch) {
    latent.fill(rank, latent_pitch);
    factor.fill(rank_is_contiguous ? rank : width, factor_pitch);
  }
  gralora::ExpandPart part(int T, int width) const {
    return {latent.device(),
            factor.device(),
            T * latent_pitch,
            latent_pitch,
            (rank_is_contiguous ? width : rank) * factor_pitch,
            factor_pitch,
            rank,
            rank_is_contiguous};
  }
  void add_to(Exact& exact, int block, int T, int t, int width, int o) const {
    for (int q = 0; q < rank; ++q) {
      const int64_t row = rank_is_contiguous ? block * width + o : block * rank + q;
      const int64_t column = rank_is_contiguous ? q : o;
      exact.add(latent[(static_cast<int64_t>(block) * T + t) * latent_pitch + q] *
                factor[row * factor_pitch + column]);
    }
  }
};

void check_expand(int T, int blocks, int width, int rank, int r0, bool rank_is_contiguous,
                  bool accumulate) {
  const int64_t pitch = static_cast<int64_t>(blocks) * width;
  Array<Half> out(T * pitch);
  if (accumulate) out.fill(pitch, pitch);
  const std::vector<Half> before = out.host;
  PartArrays grid(rank, rank_is_contiguous, blocks, T, width);
  PartArrays plain(r0 > 0 ? r0 : 1, !rank_is_contiguous, 1, T, static_cast<int>(pitch));
  gralora::ExpandParams p{};
  p.grid = grid.part(T, width);
  if (r0 > 0) p.plain = plain.part(T, static_cast<int>(pitch));
  p.out = out.device();
  p.T = T;
  p.blocks = blocks;
  p.width = width;
  p.accumulate = accumulate;
  p.type = ElementType::kBFloat16;
  check_cuda(gralora::launch_expand(p, nullptr), "expand");
  out.fetch();
  int64_t wrong = 0;
  for (int t = 0; t < T; ++t) {
    for (int c = 0; c < pitch; ++c) {
      Exact exact;
      grid.add_to(exact, c / width, T, t, width, c % width);
      if (r0 > 0) plain.add_to(exact, 0, T, t, static_cast<int>(pitch), c);
      if (accumulate) exact.add(float(before[t * pitch + c]));
      wrong += !is_close(out[t * pitch + c], exact, kHalfPlace);
    }
  }
  report("expand T " + std::to_string(T) + " blocks " + std::to_string(blocks) + " width " +
             std::to_string(width) + " rank " + std::to_string(rank) + " r0 " + std::to_string(r0) +
             (rank_is_contiguous ? " rank contiguous" : "") + (accumulate ? " accumulated" : ""),
         wrong);
}

struct SumCase {
  int blocks, rows, columns;
};

template <class Out>
int64_t check_sum(const gralora::TokenSum& sum, const Array<Half>& left, const Array<Half>& right,
                  Array<Out>& out, int T, double place) {
  out.fetch();
  int64_t wrong = 0;
  for (int b = 0; b < sum.blocks; ++b) {
    for (int r = 0; r < sum.rows; ++r) {
      for (int c = 0; c < sum.columns; ++c) {
        Exact exact;
        for (int t = 0; t < T; ++t) {
          exact.add(left[b * sum.left_block_stride + t * sum.left_pitch + r] *
                    right[b * sum.right_block_stride + t * sum.right_pitch + c]);
        }
        const int64_t at = (static_cast<int64_t>(b) * sum.rows + r) * sum.columns + c;
        wrong += !is_close(out[at], exact, place);
      }
    }
  }
  return wrong;
}

void check_weight_gradient(int T, const SumCase& one, const SumCase& other) {
  const auto describe = [T](const SumCase& c, const Array<Half>& left, const Array<Half>& right,
                            void* out, ElementType type) {
    const int64_t left_pitch = padded(c.rows), right_pitch = padded(c.columns);
    return gralora::TokenSum{left.device(), right.device(),  out,         T * left_pitch,
                             left_pitch,    T * right_pitch, right_pitch, c.blocks,
                             c.rows,        c.columns,       type};
  };
  Array<Half> left(one.blocks * T * padded(one.rows)), right(one.blocks * T * padded(one.columns));
  Array<Half> left2(other.blocks * T * padded(other.rows));
  Array<Half> right2(other.blocks * T * padded(other.columns));
  Array<Half> narrow(static_cast<int64_t>(one.blocks) * one.rows * one.columns);
  Array<float> wide(static_cast<int64_t>(other.blocks) * other.rows * other.columns);
  left.fill(one.rows, padded(one.rows));
  right.fill(one.columns, padded(one.columns));
  left2.fill(other.rows, padded(other.rows));
  right2.fill(other.columns, padded(other.columns));
  gralora::WeightGradientParams p{};
  p.sums[0] = describe(one, left, right, narrow.device(), ElementType::kBFloat16);
  p.sums[1] = describe(other, left2, right2, wide.device(), ElementType::kFloat32);
  p.count = 2;
  p.T = T;
  p.type = ElementType::kBFloat16;
  check_cuda(gralora::launch_weight_gradient(p, nullptr), "weight_gradient");
  const int64_t wrong = check_sum(p.sums[0], left, right, narrow, T, kHalfPlace) +
                        check_sum(p.sums[1], left2, right2, wide, T, 0);
  report("weight_gradient T " + std::to_string(T) + " " + std::to_string(one.rows) + "x" +
             std::to_string(one.columns) + " and " + std::to_string(other.rows) + "x" +
             std::to_string(other.columns),
         wrong);
}

void check_round(const std::vector<int64_t>& sizes) {
  std::vector<Array<float>*> from;
  std::vector<Array<Half>*> to;
  gralora::RoundParams p{};
  for (const int64_t size : sizes) {
    from.push_back(new Array<float>(size));
    to.push_back(new Array<Half>(size));
    from.back()->fill(size, size);
    p.arrays[p.count++] = {from.back()->device(), to.back()->device(), size,
                           ElementType::kBFloat16};
  }
  check_cuda(gralora::launch_round(p, nullptr), "round");
  int64_t wrong = 0;
  for (size_t a = 0; a < sizes.size(); ++a) {
    to[a]->fetch();
    for (int64_t e = 0; e < sizes[a]; ++e) {
      wrong += float(to[a]->host[e]) != float(Half(from[a]->host[e]));
    }
    delete from[a];
    delete to[a];
  }
  report("round of " + std::to_string(sizes.size()) + " arrays", wrong);
}

}  // namespace

int main() {
  for (const auto tile : {gralora::ProjectTile::k16x32, gralora::ProjectTile::k64x32}) {
    for (const bool width_is_contiguous : {false, true}) {
      for (const ProjectCase& c : {ProjectCase{1, 2, 64, 2, 8}, ProjectCase{65, 2, 136, 2, 8},
                                   ProjectCase{130, 3, 72, 8, 3}, ProjectCase{17, 1, 200, 5, 24},
                                   ProjectCase{33, 2, 8, 1, 4}}) {
        check_project(c, tile, width_is_contiguous);
      }
    }
  }
  check_exchange(70, 4, 4, 16);
  check_exchange(33, 3, 2, 4);
  check_exchange(33, 3, 2, 6);
  check_exchange(5, 40, 3, 77);
  for (const bool rank_is_contiguous : {false, true}) {
    for (const bool accumulate : {false, true}) {
      check_expand(1, 2, 64, 8, 0, rank_is_contiguous, accumulate);
      check_expand(65, 3, 72, 24, 0, rank_is_contiguous, accumulate);
      check_expand(70, 2, 136, 40, 16, rank_is_contiguous, accumulate);
      check_expand(20, 1, 200, 104, 5, rank_is_contiguous, accumulate);
    }
  }
  check_weight_gradient(1, {2, 64, 16}, {2, 16, 72});
  check_weight_gradient(65, {2, 136, 24}, {3, 24, 72});
  check_weight_gradient(300, {1, 72, 5}, {1, 5, 136});
  check_round({1});
  check_round({4096, 1000, 7, 1025});
  std::printf("%d of the checks failed\n", failures);
  return failures;
}

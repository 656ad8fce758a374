// The dropout generator on the CPU; kernels/philox.h describes it.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "kernels/philox.h"
#include "ops/check.h"

namespace gralora::cpu {
namespace {

/// Groups that one task of the thread pool takes at least.
constexpr int64_t kGrain = 4096;

at::Tensor dropout(const at::Tensor& x, const at::Tensor& rng_state, double p) {
  check_dropout_input(x);
  check_probability("dropout", p);
  check_rng_state("dropout", rng_state, x);
  const philox::DropoutRule rule = philox::make_dropout_rule(p);
  const at::Tensor input = x.contiguous();
  const at::Tensor state = rng_state.contiguous();
  at::Tensor out = at::empty(x.sizes(), x.options());
  const int64_t elements = input.numel();
  const int64_t groups = (elements + philox::kGroup - 1) / philox::kGroup;
  const auto seed = static_cast<uint64_t>(state.const_data_ptr<int64_t>()[0]);
  const auto offset = static_cast<uint64_t>(state.const_data_ptr<int64_t>()[1]);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kBFloat16, at::kHalf, x.scalar_type(), "gralora::dropout", [&] {
        using Wide = at::opmath_type<scalar_t>;
        const auto scale = static_cast<Wide>(rule.scale);
        const scalar_t* from = input.const_data_ptr<scalar_t>();
        scalar_t* to = out.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, groups, kGrain, [&](int64_t begin, int64_t end) {
          for (int64_t g = begin; g < end; ++g) {
            const philox::Words words = philox::generate(seed, offset, static_cast<uint64_t>(g));
            const int64_t first = g * philox::kGroup;
            const int64_t count = std::min<int64_t>(philox::kGroup, elements - first);
            for (int64_t lane = 0; lane < count; ++lane) {
              const bool kept = words.number(static_cast<int>(lane)) >= rule.threshold;
              to[first + lane] =
                  kept ? static_cast<scalar_t>(static_cast<Wide>(from[first + lane]) * scale)
                       : scalar_t(0);
            }
          }
        });
      });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(gralora, CPU, m) { m.impl("dropout", TORCH_FN(dropout)); }

}  // namespace gralora::cpu

// The dropout generator from integer tensor operations, for devices without a kernel of their own.
// kernels/philox.h describes the generator; this file must draw the same numbers.
#include "aten/dropout.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>

#include "aten/device_notice.h"
#include "kernels/philox.h"
#include "ops/check.h"
#include "ops/operators.h"

namespace gralora::aten {
namespace {

constexpr int64_t kLow32 = 0xffffffff;

struct Product {
  at::Tensor high, low;  // of a 64-bit product, each below 2^32
};

/// Signed 64-bit tensors cannot hold a 32 x 32 bit product, so the second operand is halved.
Product multiply(int64_t constant, const at::Tensor& word) {
  const at::Tensor upper = word.bitwise_right_shift(16).mul(constant);
  const at::Tensor lower = word.bitwise_and(0xffff).mul(constant);
  return {upper.add(lower.bitwise_right_shift(16)).bitwise_right_shift(16),
          lower.add(upper.bitwise_and(0xffff).bitwise_left_shift(16)).bitwise_and(kLow32)};
}

/// Philox4x32-10 of the counters (groups, offset) under the key `seed`; four words per group.
std::array<at::Tensor, 4> philox(const at::Tensor& groups, const at::Tensor& rng_state) {
  const at::Tensor seed = rng_state.select(0, 0);
  const at::Tensor offset = rng_state.select(0, 1);
  at::Tensor key0 = seed.bitwise_and(kLow32);
  at::Tensor key1 = seed.bitwise_right_shift(32).bitwise_and(kLow32);
  std::array<at::Tensor, 4> c = {
      groups.bitwise_and(kLow32), groups.bitwise_right_shift(32).bitwise_and(kLow32),
      offset.bitwise_and(kLow32), offset.bitwise_right_shift(32).bitwise_and(kLow32)};
  for (int round = 0; round < philox::kRounds; ++round) {
    const Product a = multiply(philox::kMultiplier0, c[0]);
    const Product b = multiply(philox::kMultiplier1, c[2]);
    c = {b.high.bitwise_xor(c[1]).bitwise_xor(key0), b.low,
         a.high.bitwise_xor(c[3]).bitwise_xor(key1), a.low};
    key0 = key0.add(philox::kKeyStep0).bitwise_and(kLow32);
    key1 = key1.add(philox::kKeyStep1).bitwise_and(kLow32);
  }
  return c;
}

at::Tensor dropout(const at::Tensor& x, const at::Tensor& rng_state, double p) {
  check_dropout_input(x);
  check_probability("dropout", p);
  check_rng_state("dropout", rng_state, x);
  notice_device(x);
  const philox::DropoutRule rule = philox::make_dropout_rule(p);
  const int64_t elements = x.numel();
  const int64_t groups = (elements + philox::kGroup - 1) / philox::kGroup;
  const auto words = philox(
      at::arange(groups, at::TensorOptions().dtype(at::kLong).device(x.device())), rng_state);
  std::vector<at::Tensor> lanes;
  lanes.reserve(philox::kGroup);
  for (const at::Tensor& word : words) {
    lanes.push_back(word.expand({groups}).bitwise_and(0xffff));
    lanes.push_back(word.expand({groups}).bitwise_right_shift(16));
  }
  const at::Tensor kept = at::stack(lanes, 1)
                              .view({groups * philox::kGroup})
                              .narrow(0, 0, elements)
                              .ge(static_cast<int64_t>(rule.threshold))
                              .view(x.sizes());
  const at::Tensor scaled = x.contiguous().mul(rule.scale);
  return at::where(kept, scaled, at::zeros({}, x.options()));
}

}  // namespace

at::Tensor drop(const at::Tensor& rows, const OptionalTensor& rng_state, double p) {
  return rng_state ? ops::dropout(rows, *rng_state, p) : rows;
}

TORCH_LIBRARY_IMPL(gralora, CompositeExplicitAutograd, m) { m.impl("dropout", TORCH_FN(dropout)); }

}  // namespace gralora::aten

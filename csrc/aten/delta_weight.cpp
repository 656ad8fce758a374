// delta_weight and merge_ from library calls.
#include "aten/delta_weight.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "aten/device_notice.h"
#include "ops/check.h"
#include "ops/delta_dtype.h"

namespace gralora::aten {
namespace {

/// Bytes of DW that exist at once where it cannot be summed in the target's own dtype.
constexpr int64_t kPanelBytes = int64_t{16} << 20;

/// Row factors of all block pairs, [k_out, k_in, m, s + r0]: B's part of DW, then lora_B's.
at::Tensor row_factors(const Adapter& adapter, const Sizes& z, at::ScalarType dtype) {
  std::vector<at::Tensor> parts;
  if (adapter.has_grid()) {
    parts.push_back(adapter.B.to(dtype).unflatten(1, {z.k_in, z.s}).transpose(2, 3));
  }
  if (adapter.has_plain()) {
    parts.push_back(adapter.lora_B.to(dtype)
                        .unflatten(0, {z.k_out, z.m})
                        .unsqueeze(1)
                        .expand({z.k_out, z.k_in, z.m, z.r0}));
  }
  return parts.size() == 1 ? parts[0] : at::cat(parts, 3);
}

/// Column factors of all block pairs, [k_out, k_in, s + r0, n]: A's part of DW, then lora_A's.
at::Tensor column_factors(const Adapter& adapter, const Sizes& z, at::ScalarType dtype) {
  std::vector<at::Tensor> parts;
  if (adapter.has_grid()) {
    parts.push_back(adapter.A.to(dtype).unflatten(2, {z.k_out, z.s}).permute({2, 0, 3, 1}));
  }
  if (adapter.has_plain()) {
    parts.push_back(adapter.lora_A.to(dtype)
                        .unflatten(1, {z.k_in, z.n})
                        .transpose(0, 1)
                        .unsqueeze(0)
                        .expand({z.k_out, z.k_in, z.r0, z.n}));
  }
  return parts.size() == 1 ? parts[0] : at::cat(parts, 2);
}

at::Tensor delta_weight_by_library(const OptionalTensor& A, const OptionalTensor& B,
                                   const OptionalTensor& lora_A, const OptionalTensor& lora_B,
                                   double scaling) {
  return delta_weight({A, B, lora_A, lora_B}, scaling, accumulate_delta);
}

void merge_by_library(at::Tensor& weight, const OptionalTensor& A, const OptionalTensor& B,
                      const OptionalTensor& lora_A, const OptionalTensor& lora_B, double scaling,
                      double sign) {
  merge_(weight, {A, B, lora_A, lora_B}, scaling, sign, accumulate_delta);
}

}  // namespace

at::Tensor delta_weight(const Adapter& adapter, double scaling, AccumulateDelta accumulate) {
  const Sizes sizes(check_adapter("delta_weight", adapter));
  const at::Tensor& factor = adapter.has_grid() ? adapter.A : adapter.lora_A;
  notice_device(factor);
  at::Tensor delta = at::empty({sizes.M, sizes.N}, factor.options().dtype(delta_dtype(adapter)));
  accumulate("delta_weight", delta, adapter, sizes, scaling, /*overwrite=*/true);
  return delta;
}

void merge_(at::Tensor& weight, const Adapter& adapter, double scaling, double sign,
            AccumulateDelta accumulate) {
  const AdapterShape shape = check_adapter("merge_", adapter);
  check_merge_target("merge_", weight, adapter, shape);
  at::assert_no_internal_overlap(weight);
  for (const at::Tensor& factor : {adapter.A, adapter.B, adapter.lora_A, adapter.lora_B}) {
    if (factor.defined()) at::assert_no_overlap(weight, factor);
  }
  notice_device(weight);
  accumulate("merge_", weight, adapter, Sizes(shape), sign * scaling, /*overwrite=*/false);
}

void accumulate_delta(const char*, at::Tensor& target, const Adapter& adapter, const Sizes& z,
                      double alpha, bool overwrite) {
  const at::ScalarType dtype = delta_sum_dtype(target.scalar_type(), adapter);
  const at::Tensor rows = row_factors(adapter, z, dtype);
  const at::Tensor columns = column_factors(adapter, z, dtype);
  const bool in_place = target.scalar_type() == dtype;
  const int64_t row_bytes = z.N * static_cast<int64_t>(c10::elementSize(dtype));
  const int64_t panel = in_place ? z.m : std::clamp<int64_t>(kPanelBytes / row_bytes, 1, z.m);
  for (int64_t i = 0; i < z.k_out; ++i) {
    for (int64_t start = 0; start < z.m; start += panel) {
      const int64_t height = std::min(panel, z.m - start);
      at::Tensor blocks = split_blocks(target.narrow(0, i * z.m + start, height), z.k_in);
      const at::Tensor left = rows[i].narrow(1, start, height);
      if (in_place) {
        blocks.baddbmm_(left, columns[i], overwrite ? 0 : 1, alpha);
      } else if (overwrite) {
        blocks.copy_(at::bmm(left, columns[i]).mul_(alpha));
      } else {
        blocks.add_(at::bmm(left, columns[i]), alpha);
      }
    }
  }
}

TORCH_LIBRARY_IMPL(gralora, CompositeExplicitAutograd, m) {
  m.impl("delta_weight", TORCH_FN(delta_weight_by_library));
  m.impl("merge_", TORCH_FN(merge_by_library));
}

}  // namespace gralora::aten

// The steps of aten/steps.h as operators of their own, gralora_steps::*, for measurements and
// tests. A device registers them with its steps: step_operators.cpp those by library calls,
// cuda/step_operators.cpp those with kernels.
#pragma once

#include <ATen/core/List.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <array>
#include <vector>

#include "aten/steps.h"

namespace gralora::aten {

/// How a device brings `product`'s blocks in the order of `latent`'s.
using Exchange = void (*)(at::Tensor& latent, const at::Tensor& product);

/// latent [outer, T, inner*s], rows [T, inner*width], factor [inner, width, outer*s].
void check_project_step(const at::Tensor& latent, const at::Tensor& rows, const at::Tensor& factor);

/// rows [T, k*width], latent [k, T, rank], factor [k, rank, width].
void check_expand_step(const at::Tensor& rows, const at::Tensor& latent, const at::Tensor& factor);

/// One to four pairs activation [k, T, width] and latent [k, T, rank].
void check_token_sums(at::TensorList activations, at::TensorList latents, size_t orders);

/// One to four tensors on one device, none of them of `dtype` already.
void check_roundings(at::TensorList tensors, at::ScalarType dtype);

/// latent [outer, T, inner*s], product [inner, T, outer*s], contiguous.
void check_exchange_step(const at::Tensor& latent, const at::Tensor& product);

/// The operators of one device.
template <const Steps& steps, Exchange exchange_blocks>
struct StepOperators {
  static void project(at::Tensor& latent, const at::Tensor& rows, const at::Tensor& factor,
                      double scaling) {
    check_project_step(latent, rows, factor);
    const c10::DeviceGuard guard(latent.device());
    steps.project(latent, AdapterInput(rows), factor, scaling);
  }

  static void expand(at::Tensor& rows, const at::Tensor& latent, const at::Tensor& factor,
                     bool overwrite) {
    check_expand_step(rows, latent, factor);
    const c10::DeviceGuard guard(rows.device());
    steps.expand(rows, {.grid = latent, .plain = {}}, factor, at::Tensor(), overwrite);
  }

  static std::vector<at::Tensor> sum_over_tokens(at::TensorList activations, at::TensorList latents,
                                                 c10::List<bool> latent_is_left,
                                                 at::ScalarType dtype) {
    check_token_sums(activations, latents, latent_is_left.size());
    const c10::DeviceGuard guard(activations[0].device());
    std::vector<at::Tensor> results(activations.size());
    TokenSums sums;
    for (size_t i = 0; i < results.size(); ++i) {
      const bool is_left = latent_is_left.get(i);
      sums[i].sum = &results[i];
      sums[i].left = is_left ? latents[i] : activations[i];
      sums[i].right = is_left ? activations[i] : latents[i];
      sums[i].dtype = dtype;
      sums[i].latent_is_left = is_left;
    }
    steps.sum_over_tokens(sums, AdapterInput());
    return results;
  }

  static std::vector<at::Tensor> round(at::TensorList tensors, at::ScalarType dtype) {
    check_roundings(tensors, dtype);
    const c10::DeviceGuard guard(tensors[0].device());
    std::vector<at::Tensor> results = tensors.vec();
    const auto entry = [&](size_t i) {
      return Rounding{i < results.size() ? &results[i] : nullptr, dtype};
    };
    steps.round({entry(0), entry(1), entry(2), entry(3)});
    return results;
  }

  static void exchange(at::Tensor& latent, const at::Tensor& product) {
    check_exchange_step(latent, product);
    const c10::DeviceGuard guard(latent.device());
    exchange_blocks(latent, product);
  }

  static void register_in(torch::Library& library) {
    library.impl("project", TORCH_FN(project));
    library.impl("expand", TORCH_FN(expand));
    library.impl("sum_over_tokens", TORCH_FN(sum_over_tokens));
    library.impl("round", TORCH_FN(round));
    library.impl("exchange", TORCH_FN(exchange));
  }
};

}  // namespace gralora::aten

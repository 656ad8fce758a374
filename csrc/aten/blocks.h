// What the compositions of aten/linear.cpp and aten/add.cpp are built from: factors in the compute
// dtype, views, latents, and the steps (aten/steps.h) applied to them. Tensors are 2-D rows [T,
// width] or 3-D blocks [k, T, width/k], the latter views of the former.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>
#include <vector>

#include "aten/steps.h"
#include "ops/adapter.h"
#include "ops/check.h"

namespace gralora::aten {

/// AdapterShape in plain integers.
struct Sizes {
  int64_t N, M, k_in, k_out, n, m, s, r0;
  explicit Sizes(const AdapterShape& shape);
};

/// The factors rounded to the compute dtype.
struct ComputeFactors {
  at::Tensor A, B, lora_A, lora_B;
  ComputeFactors(const Adapter& adapter, at::ScalarType compute, const Steps& steps);
  /// A grid's, rounded before.
  ComputeFactors(at::Tensor A, at::Tensor B) : A(std::move(A)), B(std::move(B)) {}
};

/// The axes of a factor's matrices exchanged; an undefined factor stays one.
at::Tensor transpose_factor(const at::Tensor& factor);

/// [..., width] as [T, width] rows with unit column stride; copies only what BLAS cannot address.
at::Tensor as_rows(const at::Tensor& tensor, int64_t width);

/// `sizes` with another last size.
std::vector<int64_t> with_width(at::IntArrayRef sizes, int64_t width);

/// [T, blocks*w] -> [blocks, T, w], a view.
at::Tensor split_blocks(const at::Tensor& rows, int64_t blocks);

/// A latent [planes, T, rank] to be written, its rows padded for 16-byte accesses.
at::Tensor empty_latent(int64_t planes, int64_t T, int64_t rank, const at::TensorOptions& options);

/// H = scaling * x A and lora_H = scaling * x lora_A^T from x's dropped rows.
Latents project_input(const AdapterInput& input, const ComputeFactors& factors, const Sizes& sizes,
                      double scaling, const Steps& steps);

/// G = scaling * dy B^T and lora_G = scaling * dy lora_B, `rows` [T, M]. Does `sums` along with
/// them, and empties it, where that is better.
Latents project_gradient(const at::Tensor& rows, const ComputeFactors& factors, const Sizes& sizes,
                         double scaling, TokenSums& sums, const Steps& steps);

/// y (+)= H B + lora_H lora_B^T into `rows` [T, M]; `overwrite` ignores what `rows` holds.
void expand_output(at::Tensor& rows, const Latents& latents, const ComputeFactors& factors,
                   bool overwrite, const Steps& steps);

/// y = x W^T + bias + H B + lora_H lora_B^T into `rows` [T, M].
void expand_output_and_base(at::Tensor& rows, const BaseProduct& base, const Latents& latents,
                            const ComputeFactors& factors, const Steps& steps);

/// The same with H, which becomes `latents`, at once; false, with nothing done, where they are
/// better apart.
bool project_and_expand_output(at::Tensor& rows, const BaseProduct& base, Latents& latents,
                               const AdapterInput& input, const ComputeFactors& factors,
                               double scaling, const Steps& steps);

/// dx = dy W + drop(G A^T + lora_G lora_A) into `rows` [T, N] at once; false, with nothing done,
/// where the base product and the adapter's term are better apart. Does `sums`, none of which
/// drops, along with them, and empties it, where that is better.
bool expand_input_with_base(at::Tensor& rows, const BaseProduct& base, const Latents& latents,
                            const ComputeFactors& factors, const Dropout& dropout, TokenSums& sums,
                            const Steps& steps);

/// The same with G, which becomes `latents` and is what a sum's undefined latent stands for: G and
/// dx at once. `rows` is made where it is undefined.
bool project_and_expand_input(at::Tensor& rows, const BaseProduct& base, Latents& latents,
                              const AdapterInput& input, const ComputeFactors& factors,
                              double scaling, TokenSums& sums, const Steps& steps);

/// dx = drop(G A^T + lora_G lora_A) into `rows` [T, N], or into a tensor that takes its place. Does
/// `sums` along with it, and empties it, where that is better.
void expand_input(at::Tensor& rows, const Latents& latents, const ComputeFactors& factors,
                  const AdapterInput& input, TokenSums& sums, const Steps& steps);

}  // namespace gralora::aten

// The steps of the compositions that a device may have kernels of its own for; the rest of
// aten/linear.cpp and aten/add.cpp is the same everywhere.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/SmallVector.h>

#include <array>
#include <initializer_list>

#include "ops/adapter.h"

namespace gralora::aten {

/// The adapter's latents: H [k_out, T, k_in*s] and lora_H [T, r0] forward, G [k_in, T, k_out*s] and
/// lora_G [T, r0] backward. A part that the adapter does not have is an empty [0] tensor, or none.
struct Latents {
  at::Tensor grid, plain;
  // Projections of this call have just been queued for them, after everything else that is read
  // with them was written: factors, and what the base product and the factors' gradients read. So
  // nothing that writes any of it may be queued between the last projection and their use.
  bool projected_here = false;
};

/// What stands between x and the adapter in training; nothing where there is no rng_state.
struct Dropout {
  OptionalTensor rng_state;  // [2] int64 on x's device: seed, offset
  double p = 0.0;

  bool drops() const { return rng_state.has_value(); }
};

/// The adapter's input as rows [T, N], before dropout. Kernels drop while they read; library calls
/// need the dropped rows in memory, which are made at most once.
class AdapterInput {
 public:
  AdapterInput() = default;
  explicit AdapterInput(at::Tensor rows, Dropout dropout = {});

  const at::Tensor& rows() const { return rows_; }
  const Dropout& dropout() const { return dropout_; }
  const at::Tensor& dropped_rows() const;

 private:
  at::Tensor rows_;
  Dropout dropout_;
  mutable at::Tensor dropped_rows_;
};

/// A tensor that is to have another dtype; skipped where it is null, undefined or has it already.
struct Rounding {
  at::Tensor* tensor;
  at::ScalarType dtype;
  bool rank_is_last = false;  // of a factor: its rows are ranks, as many as it may be
};

/// *sum = left^T right per block, [k, T, p] and [k, T, q] -> [k, p, q]: summed over the tokens in
/// fp32 (fp64 for fp64) and rounded once, to `dtype`. One side is a latent, the other an
/// activation: dy, or the adapter's input before its dropout. A latent that is yet to be made is
/// undefined.
struct TokenSum {
  at::Tensor* sum = nullptr;
  at::Tensor left, right;
  at::ScalarType dtype = at::kFloat;
  bool latent_is_left = false;
  bool of_input = false;  // the activation is the adapter's input

  bool is_asked_for() const { return sum != nullptr; }
};

/// The gradients dA, dB, dlora_A, dlora_B, those of them that are asked for.
using TokenSums = std::array<TokenSum, 4>;
bool any_asked_for(const TokenSums& sums);

/// One frozen layer's product: input [T, depth] times weight [depth, width].
struct BaseTerm {
  at::Tensor input, weight;
};

/// The frozen layers' part of a result: products that add up, of one layer or of several that share
/// the result, plus bias.
struct BaseProduct {
  c10::SmallVector<BaseTerm, 1> terms;
  OptionalTensor bias;
};

/// One of several layers' results over the same input: rows [T, M] are to be the input times weight
/// [depth, M], plus bias, plus the layer's latents times grid_factor.
struct LayerOutput {
  at::Tensor rows, weight;
  OptionalTensor bias;
  at::Tensor grid_factor;
};

struct Steps {
  /// latent[q, t, (p, rank)] = scaling * sum_w rows[t, (p, w)] * factor[p, w, (q, rank)]: `latent`
  /// [outer, T, inner*s] with padded rows, the input's dropped rows [T, inner*width], `factor`
  /// [inner, width, outer*s] with any strides. The scale enters the sum before it is rounded.
  void (*project)(at::Tensor& latent, const AdapterInput& input, const at::Tensor& factor,
                  double scaling);

  /// project() and sum_over_tokens() of sums that are not of the input, at once; false, with
  /// nothing done, where they are better apart.
  bool (*project_beside_sums)(at::Tensor& latent, const AdapterInput& input,
                              const at::Tensor& factor, double scaling, const TokenSums& sums);

  /// rows[t, (i, o)] (+)= sum_q grid[i, t, q] * grid_factor[i, q, o] + sum_q plain[t, q] *
  /// plain_factor[q, (i, o)]: `rows` [T, k*width] contiguous, `grid_factor` [k, rank, width],
  /// `plain_factor` [r0, k*width], undefined where the adapter has no such part. `overwrite`
  /// ignores what `rows` holds.
  void (*expand)(at::Tensor& rows, const Latents& latents, const at::Tensor& grid_factor,
                 const at::Tensor& plain_factor, bool overwrite);

  /// rows = drop(what expand writes); may replace `rows` by another tensor of its kind.
  void (*expand_dropped)(at::Tensor& rows, const Latents& latents, const at::Tensor& grid_factor,
                         const at::Tensor& plain_factor, const Dropout& dropout);

  /// rows = what expand writes + bias; false, with nothing done, where that takes a second pass.
  bool (*expand_onto_bias)(at::Tensor& rows, const Latents& latents, const at::Tensor& grid_factor,
                           const at::Tensor& plain_factor, const at::Tensor& bias);

  /// rows = the base product + what expand writes, or with `dropout` what expand_dropped writes, at
  /// once; false, with nothing done, where they are better apart. Does `sums` along with them, and
  /// empties it, where that is better; none of them drops.
  bool (*expand_with_base)(at::Tensor& rows, const BaseProduct& base, const Latents& latents,
                           const at::Tensor& grid_factor, const at::Tensor& plain_factor,
                           const Dropout& dropout, TokenSums& sums);

  /// latent = what project makes of the base product's inputs, a new tensor, and rows = the base
  /// product + what expand writes of it, at once; false, with nothing done, where they are better
  /// apart. `rows` is made where it is undefined. Each term has its factor; their latents lie side
  /// by side. Does `sums` along with them as expand_with_base() does, where an undefined latent is
  /// the one that is made.
  bool (*project_with_base)(at::Tensor& rows, const BaseProduct& base, at::Tensor& latent,
                            at::TensorList factors, double scaling, const at::Tensor& grid_factor,
                            TokenSums& sums);

  /// expand_with_base() of several layers over one input, whose blocks have the planes of `latent`
  /// one after the other; with `factor` project_with_base(), without it the latent has just been
  /// projected (Latents::projected_here). False, with nothing done, where the layers are better
  /// apart.
  bool (*expand_layers_with_base)(c10::ArrayRef<LayerOutput> outputs, const at::Tensor& input,
                                  at::Tensor& latent, const at::Tensor& factor, double scaling);

  /// expand(), or expand_dropped() where the input is dropped, and sum_over_tokens() at once;
  /// false, with nothing done, where they are better apart.
  bool (*expand_beside_sums)(at::Tensor& rows, const Latents& latents,
                             const at::Tensor& grid_factor, const at::Tensor& plain_factor,
                             const TokenSums& sums, const AdapterInput& input);

  void (*sum_over_tokens)(const TokenSums& sums, const AdapterInput& input);

  /// Replaces each tensor by one of its dtype.
  void (*round)(std::initializer_list<Rounding> roundings);

  /// The same for factors, whose rows it may also pad.
  void (*pack)(std::initializer_list<Rounding> factors);
};

/// Every step by library calls.
extern const Steps kLibrarySteps;

/// Steps::project by a library product; where that leaves the blocks in the other order, `exchange`
/// brings `product` [inner, T, outer*s] to `latent`.
void project_by_product(at::Tensor& latent, const AdapterInput& input, const at::Tensor& factor,
                        double scaling,
                        void (*exchange)(at::Tensor& latent, const at::Tensor& product));

/// left^T right per block by a library product, in fp32 (fp64 for fp64), or in the entry's dtype
/// already where the library's own rounding is the only one.
at::Tensor sum_by_product(const TokenSum& entry, const AdapterInput& input);

/// A composition with its steps fixed, as the dispatcher calls it.
template <auto composition, const Steps& steps>
struct WithSteps;

template <class Result, class... Arguments, Result (*composition)(const Steps&, Arguments...),
          const Steps& steps>
struct WithSteps<composition, steps> {
  static Result call(Arguments... arguments) { return composition(steps, arguments...); }
};

}  // namespace gralora::aten

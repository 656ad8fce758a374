// The steps of the compositions that a device may have kernels of its own for; the rest of
// aten/linear.cpp and aten/add.cpp is the same everywhere.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>

namespace gralora::aten {

/// A tensor that is to have another dtype; skipped where it is undefined or has it already.
struct Rounding {
  at::Tensor* tensor;
  at::ScalarType dtype;
};

struct Steps {
  /// latent[q, t, (p, rank)] = scaling * sum_w rows[t, (p, w)] * factor[p, w, (q, rank)]: `latent`
  /// [outer, T, inner*s] with padded rows, `rows` [T, inner*width], `factor` [inner, width,
  /// outer*s] with any strides. The scale enters the sum before it is rounded.
  void (*project)(at::Tensor& latent, const at::Tensor& rows, const at::Tensor& factor,
                  double scaling);

  /// Replaces each tensor by one of its dtype.
  void (*round)(std::initializer_list<Rounding> roundings);
};

/// Every step by library calls.
extern const Steps kLibrarySteps;

/// Steps::project by a library product; where that leaves the blocks in the other order, `exchange`
/// brings `product` [inner, T, outer*s] to `latent`.
void project_by_product(at::Tensor& latent, const at::Tensor& rows, const at::Tensor& factor,
                        double scaling,
                        void (*exchange)(at::Tensor& latent, const at::Tensor& product));

/// A composition with its steps fixed, as the dispatcher calls it.
template <auto composition, const Steps& steps>
struct WithSteps;

template <class Result, class... Arguments, Result (*composition)(const Steps&, Arguments...),
          const Steps& steps>
struct WithSteps<composition, steps> {
  static Result call(Arguments... arguments) { return composition(steps, arguments...); }
};

}  // namespace gralora::aten

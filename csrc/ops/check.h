// The rules that arguments must keep. Every kernel (library calls, CUDA, Meta) asks here first, so
// that a wrong call gives the same sentence wherever it lands. Sizes are symbolic: the Meta kernels
// run these checks under torch.compile, where plain integers would force a recompile per shape.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include "ops/adapter.h"

namespace gralora {

/// What the shapes of the factors say about the grid. Without A and B the grid is 1 x 1 and s = 0.
struct AdapterShape {
  c10::SymInt N, M;         // in_features, out_features
  c10::SymInt k_in, k_out;  // input blocks, output blocks
  c10::SymInt n, m;         // block widths
  c10::SymInt s;            // rank of one block
  c10::SymInt r0;           // rank of the plain part, 0 without one
};

/// Reads the grid from the factors. Raises when a pair is incomplete, none is given, or the shapes,
/// dtypes and devices of the factors do not belong together.
AdapterShape check_adapter(const char* op, const Adapter& adapter);

/// The activation that enters the adapter: floating, at least 1-D, N wide, on the factors' device.
void check_input(const char* op, const at::Tensor& x, const Adapter& adapter,
                 const AdapterShape& shape);

/// The frozen matrix and its bias: [M, N] and [M], in the dtype and on the device of x (or dy).
void check_base(const char* op, const char* x_name, const at::Tensor& x, const at::Tensor& weight,
                const OptionalTensor& bias, const AdapterShape& shape);

/// A tensor that must be `other` with `width` in place of its last size, on the same device.
void check_rows(const char* op, const char* name, const at::Tensor& tensor, const char* other_name,
                const at::Tensor& other, const c10::SymInt& width);

/// What backward reads of the forward pass, where it is given: x [..., N], H [k_out, T, k_in*s],
/// lora_H [T, r0], all in dy's dtype, and rng_state; all on dy's device.
void check_saved_for_backward(const char* op, const at::Tensor& dy, const OptionalTensor& x,
                              const OptionalTensor& H, const OptionalTensor& lora_H,
                              const OptionalTensor& rng_state, const AdapterShape& shape);

/// T: the product of all sizes but the last.
c10::SymInt count_tokens(const at::Tensor& tensor);

/// The gradient of the output in backward: floating, at least 1-D, M wide, on the factors' device.
void check_output_gradient(const char* op, const at::Tensor& dy, const Adapter& adapter,
                           const AdapterShape& shape);

/// A tensor that backward needs for a gradient it was asked for.
void check_saved(const char* op, const char* name, const OptionalTensor& tensor, bool needed);

void check_probability(const char* op, double dropout_p);

/// The input of dropout: any shape, a supported floating dtype.
void check_dropout_input(const at::Tensor& x);

/// The key of the dropout generator: int64 [2] on x's device.
void check_rng_state(const char* op, const at::Tensor& rng_state, const at::Tensor& x);

/// A weight that a merge writes to: floating, [M, N], on the factors' device.
void check_merge_target(const char* op, const at::Tensor& weight, const Adapter& adapter,
                        const AdapterShape& shape);

/// torch.func transforms cannot see through a C++ autograd function; refuse them by name.
void check_no_function_transform(const char* op);

}  // namespace gralora

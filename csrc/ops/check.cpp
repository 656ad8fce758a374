#include "ops/check.h"

#include <ATen/FuncTorchTLS.h>
#include <c10/util/Exception.h>

namespace gralora {
namespace {

bool is_supported_dtype(at::ScalarType dtype) {
  return dtype == at::kDouble || dtype == at::kFloat || dtype == at::kBFloat16 ||
         dtype == at::kHalf;
}

void check_dtype(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_TYPE(is_supported_dtype(tensor.scalar_type()), "gralora::", op, ": ", name,
                   " must be float64, float32, bfloat16 or float16, got ", tensor.scalar_type());
}

void check_dim(const char* op, const char* name, const char* layout, const at::Tensor& tensor,
               int64_t dim) {
  TORCH_CHECK(tensor.dim() == dim, "gralora::", op, ": ", name, " must have shape ", layout,
              ", got ", tensor.sym_sizes());
}

void check_same_device(const char* op, const char* name, const at::Tensor& tensor,
                       const char* other_name, const at::Tensor& other) {
  TORCH_CHECK(tensor.device() == other.device(), "gralora::", op, ": ", name, " and ", other_name,
              " must be on the same device, got ", name, " on ", tensor.device(), " and ",
              other_name, " on ", other.device());
}

void check_pair(const char* op, const char* first_name, const at::Tensor& first,
                const char* second_name, const at::Tensor& second) {
  TORCH_CHECK(first.defined() == second.defined(), "gralora::", op, ": ", first_name, " and ",
              second_name, " come as a pair, got only ",
              first.defined() ? first_name : second_name);
}

void check_grid(const char* op, const Adapter& adapter, AdapterShape& shape) {
  const at::Tensor& A = adapter.A;
  const at::Tensor& B = adapter.B;
  check_dim(op, "A", "[k_in, n, k_out*s]", A, 3);
  check_dim(op, "B", "[k_out, k_in*s, m]", B, 3);
  check_dtype(op, "A", A);
  check_dtype(op, "B", B);
  check_same_device(op, "B", B, "A", A);
  shape.k_in = A.sym_size(0);
  shape.n = A.sym_size(1);
  shape.k_out = B.sym_size(0);
  shape.m = B.sym_size(2);
  TORCH_CHECK(A.sym_numel() > 0 && B.sym_numel() > 0, "gralora::", op,
              ": A and B must have no zero size (k_in, k_out, n, m and s are at least 1), got A ",
              A.sym_sizes(), " and B ", B.sym_sizes());
  shape.s = A.sym_size(2) / shape.k_out;
  TORCH_CHECK(shape.s * shape.k_out == A.sym_size(2) && shape.s * shape.k_in == B.sym_size(1),
              "gralora::", op,
              ": A [k_in, n, k_out*s] and B [k_out, k_in*s, m] must share one sub-rank s, got A ",
              A.sym_sizes(), " and B ", B.sym_sizes(), " (k_in=", shape.k_in,
              ", k_out=", shape.k_out, ": A gives s=", A.sym_size(2), "/", shape.k_out,
              ", B gives s=", B.sym_size(1), "/", shape.k_in, ")");
  shape.N = shape.k_in * shape.n;
  shape.M = shape.k_out * shape.m;
}

void check_plain(const char* op, const Adapter& adapter, AdapterShape& shape) {
  const at::Tensor& lora_A = adapter.lora_A;
  const at::Tensor& lora_B = adapter.lora_B;
  check_dim(op, "lora_A", "[r0, N]", lora_A, 2);
  check_dim(op, "lora_B", "[M, r0]", lora_B, 2);
  check_dtype(op, "lora_A", lora_A);
  check_dtype(op, "lora_B", lora_B);
  check_same_device(op, "lora_B", lora_B, "lora_A", lora_A);
  TORCH_CHECK(lora_A.sym_numel() > 0 && lora_B.sym_numel() > 0, "gralora::", op,
              ": lora_A and lora_B must have no zero size, got lora_A ", lora_A.sym_sizes(),
              " and lora_B ", lora_B.sym_sizes());
  shape.r0 = lora_A.sym_size(0);
  TORCH_CHECK(shape.r0 == lora_B.sym_size(1), "gralora::", op,
              ": lora_A [r0, N] and lora_B [M, r0] must share one rank r0, got lora_A ",
              lora_A.sym_sizes(), " and lora_B ", lora_B.sym_sizes());
  if (adapter.has_grid()) {
    check_same_device(op, "lora_A", lora_A, "A", adapter.A);
    TORCH_CHECK(lora_A.sym_size(1) == shape.N && lora_B.sym_size(0) == shape.M, "gralora::", op,
                ": lora_A [r0, N] and lora_B [M, r0] must fit A and B, which give N=", shape.N,
                " and M=", shape.M, ", got lora_A ", lora_A.sym_sizes(), " and lora_B ",
                lora_B.sym_sizes());
    return;
  }
  shape.N = lora_A.sym_size(1);
  shape.M = lora_B.sym_size(0);
  shape.k_in = shape.k_out = 1;
  shape.n = shape.N;
  shape.m = shape.M;
}

const at::Tensor& first_factor(const Adapter& adapter) {
  return adapter.has_grid() ? adapter.A : adapter.lora_A;
}

const char* first_factor_name(const Adapter& adapter) {
  return adapter.has_grid() ? "A" : "lora_A";
}

void check_activation(const char* op, const char* name, const at::Tensor& tensor,
                      const char* width_name, const c10::SymInt& width, const Adapter& adapter) {
  check_dtype(op, name, tensor);
  TORCH_CHECK(tensor.dim() >= 1, "gralora::", op, ": ", name,
              " must have at least one dimension, got a scalar");
  TORCH_CHECK(tensor.sym_size(-1) == width, "gralora::", op, ": the last size of ", name,
              " must be ", width_name, "=", width, " as ", first_factor_name(adapter),
              " says, got ", name, " ", tensor.sym_sizes());
  check_same_device(op, name, tensor, first_factor_name(adapter), first_factor(adapter));
}

}  // namespace

AdapterShape check_adapter(const char* op, const Adapter& adapter) {
  check_pair(op, "A", adapter.A, "B", adapter.B);
  check_pair(op, "lora_A", adapter.lora_A, "lora_B", adapter.lora_B);
  TORCH_CHECK(adapter.has_grid() || adapter.has_plain(), "gralora::", op,
              ": an adapter needs A and B, lora_A and lora_B, or both pairs, got neither");
  AdapterShape shape{};
  if (adapter.has_grid()) check_grid(op, adapter, shape);
  if (adapter.has_plain()) check_plain(op, adapter, shape);
  return shape;
}

void check_input(const char* op, const at::Tensor& x, const Adapter& adapter,
                 const AdapterShape& shape) {
  check_activation(op, "x", x, "N", shape.N, adapter);
}

void check_base(const char* op, const char* x_name, const at::Tensor& x, const at::Tensor& weight,
                const OptionalTensor& bias, const AdapterShape& shape) {
  check_dim(op, "weight", "[M, N]", weight, 2);
  TORCH_CHECK(weight.sym_size(0) == shape.M && weight.sym_size(1) == shape.N, "gralora::", op,
              ": weight must be [M, N] = [", shape.M, ", ", shape.N,
              "] as the adapter's factors say, got ", weight.sym_sizes());
  TORCH_CHECK_TYPE(weight.scalar_type() == x.scalar_type(), "gralora::", op, ": ", x_name,
                   " and weight must have the same dtype (A and B may differ), got ", x_name, " ",
                   x.scalar_type(), " and weight ", weight.scalar_type());
  check_same_device(op, "weight", weight, x_name, x);
  if (!bias.has_value()) return;
  check_dim(op, "bias", "[M]", *bias, 1);
  TORCH_CHECK(bias->sym_size(0) == shape.M, "gralora::", op, ": bias must be [M] = [", shape.M,
              "], got ", bias->sym_sizes());
  TORCH_CHECK_TYPE(bias->scalar_type() == x.scalar_type(), "gralora::", op, ": ", x_name,
                   " and bias must have the same dtype, got ", x_name, " ", x.scalar_type(),
                   " and bias ", bias->scalar_type());
  check_same_device(op, "bias", *bias, x_name, x);
}

void check_rows(const char* op, const char* name, const at::Tensor& tensor, const char* other_name,
                const at::Tensor& other, const c10::SymInt& width) {
  check_dtype(op, name, tensor);
  bool fits = tensor.dim() == other.dim() && tensor.sym_size(-1) == width;
  for (int64_t d = 0; fits && d + 1 < other.dim(); ++d) {
    fits = tensor.sym_size(d) == other.sym_size(d);
  }
  TORCH_CHECK(fits, "gralora::", op, ": ", name, " must have the leading sizes of ", other_name,
              " and the last size ", width, ", got ", name, " ", tensor.sym_sizes(), " and ",
              other_name, " ", other.sym_sizes());
  check_same_device(op, name, tensor, other_name, other);
}

c10::SymInt count_tokens(const at::Tensor& tensor) {
  c10::SymInt tokens = 1;
  for (int64_t d = 0; d + 1 < tensor.dim(); ++d) tokens *= tensor.sym_size(d);
  return tokens;
}

void check_saved_for_backward(const char* op, const at::Tensor& dy, const OptionalTensor& x,
                              const OptionalTensor& H, const OptionalTensor& lora_H,
                              const OptionalTensor& rng_state, const AdapterShape& shape) {
  const auto check_like_dy = [&](const char* name, const at::Tensor& tensor) {
    TORCH_CHECK_TYPE(tensor.scalar_type() == dy.scalar_type(), "gralora::", op, ": ", name,
                     " and dy must have the same dtype, got ", name, " ", tensor.scalar_type(),
                     " and dy ", dy.scalar_type());
    check_same_device(op, name, tensor, "dy", dy);
  };
  if (x) {
    check_rows(op, "x", *x, "dy", dy, shape.N);
    check_like_dy("x", *x);
  }
  if (H && shape.s > 0) {
    const c10::SymInt r = shape.k_in * shape.s;
    TORCH_CHECK(H->dim() == 3 && H->sym_size(0) == shape.k_out &&
                    H->sym_size(1) == count_tokens(dy) && H->sym_size(2) == r,
                "gralora::", op, ": H must be [k_out, T, k_in*s] = [", shape.k_out, ", ",
                count_tokens(dy), ", ", r, "], got ", H->sym_sizes());
    check_like_dy("H", *H);
  }
  if (lora_H && shape.r0 > 0) {
    TORCH_CHECK(lora_H->dim() == 2 && lora_H->sym_size(0) == count_tokens(dy) &&
                    lora_H->sym_size(1) == shape.r0,
                "gralora::", op, ": lora_H must be [T, r0] = [", count_tokens(dy), ", ", shape.r0,
                "], got ", lora_H->sym_sizes());
    check_like_dy("lora_H", *lora_H);
  }
  if (rng_state) check_rng_state(op, *rng_state, dy);
}

void check_output_gradient(const char* op, const at::Tensor& dy, const Adapter& adapter,
                           const AdapterShape& shape) {
  check_activation(op, "dy", dy, "M", shape.M, adapter);
}

void check_saved(const char* op, const char* name, const OptionalTensor& tensor, bool needed) {
  TORCH_CHECK(!needed || tensor.has_value(), "gralora::", op, ": ", name,
              " is needed for a gradient that output_mask asks for, got None");
}

void check_probability(const char* op, double dropout_p) {
  TORCH_CHECK_VALUE(dropout_p >= 0.0 && dropout_p <= 1.0, "gralora::", op,
                    ": the dropout probability must lie in [0, 1], got ", dropout_p);
}

void check_dropout_input(const at::Tensor& x) { check_dtype("dropout", "x", x); }

void check_rng_state(const char* op, const at::Tensor& rng_state, const at::Tensor& x) {
  TORCH_CHECK(
      rng_state.scalar_type() == at::kLong && rng_state.dim() == 1 && rng_state.sym_size(0) == 2,
      "gralora::", op, ": rng_state must be int64 [2], got ", rng_state.scalar_type(), " ",
      rng_state.sym_sizes());
  check_same_device(op, "rng_state", rng_state, "the input", x);
}

void check_merge_target(const char* op, const at::Tensor& weight, const Adapter& adapter,
                        const AdapterShape& shape) {
  check_dtype(op, "weight", weight);
  check_dim(op, "weight", "[M, N]", weight, 2);
  TORCH_CHECK(weight.sym_size(0) == shape.M && weight.sym_size(1) == shape.N, "gralora::", op,
              ": weight must be [M, N] = [", shape.M, ", ", shape.N,
              "] as the adapter's factors say, got ", weight.sym_sizes());
  check_same_device(op, "weight", weight, first_factor_name(adapter), first_factor(adapter));
}

void check_no_function_transform(const char* op) {
  const auto& tls = at::functorch::functorchTLSAccessor();
  if (!tls) return;
  try {
    tls->checkSupportsCppAutogradFunction();
  } catch (const c10::Error&) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        false, "gralora::", op,
        ": torch.func transforms (grad, vjp, jvp, vmap, ...) are not supported, because the "
        "operator's derivative is a C++ autograd function; use torch.autograd instead");
  }
}

}  // namespace gralora

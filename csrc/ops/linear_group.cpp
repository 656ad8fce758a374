// gralora::linear_group, what users reach: several layers over one input. Composite, so that
// tracing sees linear_group_forward, whose derivative is linear_group_backward.
#include "ops/linear_group.h"

#include <torch/library.h>

#include "ops/operators.h"

namespace gralora::ops {
namespace {

std::vector<AdapterShape> check_adapters(const char* op, at::TensorList weights, at::TensorList A,
                                         at::TensorList B) {
  const size_t count = weights.size();
  TORCH_CHECK_VALUE(count >= 1 && count <= kMostMembers, "gralora::", op, ": a group has 1 to ",
                    kMostMembers, " layers, got ", count);
  TORCH_CHECK_VALUE(A.size() == count && B.size() == count, "gralora::", op,
                    ": each layer needs A and B, got ", count, " weights, ", A.size(), " A and ",
                    B.size(), " B");
  std::vector<AdapterShape> shapes;
  for (size_t i = 0; i < count; ++i) {
    shapes.push_back(check_adapter(op, {A[i], B[i], std::nullopt, std::nullopt}));
    const AdapterShape& first = shapes.front();
    const AdapterShape& shape = shapes.back();
    TORCH_CHECK(shape.k_in == first.k_in && shape.s == first.s, "gralora::", op,
                ": all layers must have one k_in and one s, got k_in=", first.k_in, ", s=", first.s,
                " and k_in=", shape.k_in, ", s=", shape.s, " in layer ", i);
    TORCH_CHECK_TYPE(
        A[i].scalar_type() == A[0].scalar_type() && B[i].scalar_type() == A[0].scalar_type(),
        "gralora::", op, ": all factors must have one dtype, got ", A[0].scalar_type(), " and A ",
        A[i].scalar_type(), ", B ", B[i].scalar_type(), " in layer ", i);
  }
  return shapes;
}

std::vector<at::Tensor> linear_group_composite(const at::Tensor& x, at::TensorList weights,
                                               const c10::List<OptionalTensor>& biases,
                                               at::TensorList A, at::TensorList B, double scaling) {
  return std::get<0>(linear_group_forward(x, weights, biases, A, B, scaling));
}

}  // namespace

std::vector<AdapterShape> check_group(const char* op, const at::Tensor& x, at::TensorList weights,
                                      const c10::List<OptionalTensor>& biases, at::TensorList A,
                                      at::TensorList B) {
  std::vector<AdapterShape> shapes = check_adapters(op, weights, A, B);
  TORCH_CHECK_VALUE(biases.size() == weights.size(), "gralora::", op,
                    ": each layer needs a bias or None, got ", weights.size(), " weights and ",
                    biases.size(), " biases");
  for (size_t i = 0; i < weights.size(); ++i) {
    check_input(op, x, {A[i], B[i], std::nullopt, std::nullopt}, shapes[i]);
    check_base(op, "x", x, weights[i], biases.get(i), shapes[i]);
  }
  return shapes;
}

CheckedGradients check_group_gradients(const c10::List<OptionalTensor>& dy, const OptionalTensor& x,
                                       at::TensorList weights, at::TensorList A, at::TensorList B,
                                       const OptionalTensor& H, GroupMask wants_dA,
                                       GroupMask wants_dB) {
  constexpr const char* op = "linear_group_backward";
  CheckedGradients checked{check_adapters(op, weights, A, B), {}};
  const size_t count = weights.size();
  TORCH_CHECK_VALUE(dy.size() == count, "gralora::", op, ": each layer needs a dy or None, got ",
                    count, " weights and ", dy.size(), " dy");
  bool needs_x = false;
  c10::SymInt planes = 0;
  for (size_t i = 0; i < count; ++i) {
    planes += checked.shapes[i].k_out;
    const OptionalTensor dy_of_layer = dy.get(i);
    if (!dy_of_layer) continue;
    needs_x |= wants_dA[i] || (wants_dB[i] && !H);
    check_output_gradient(op, *dy_of_layer, {A[i], B[i], std::nullopt, std::nullopt},
                          checked.shapes[i]);
    check_base(op, "dy", *dy_of_layer, weights[i], std::nullopt, checked.shapes[i]);
    if (!checked.first_dy.defined()) checked.first_dy = *dy_of_layer;
    check_rows(op, "dy", *dy_of_layer, "the first dy", checked.first_dy, checked.shapes[i].M);
  }
  TORCH_CHECK_VALUE(checked.first_dy.defined(), "gralora::", op,
                    ": at least one dy must be given, got None for all ", count, " layers");
  check_saved(op, "x", x, needs_x);
  AdapterShape together = checked.shapes[0];
  together.k_out = planes;
  check_saved_for_backward(op, checked.first_dy, x, H, std::nullopt, std::nullopt, together);
  return checked;
}

TORCH_LIBRARY_IMPL(gralora, CompositeImplicitAutograd, m) {
  m.impl("linear_group", TORCH_FN(linear_group_composite));
}

}  // namespace gralora::ops

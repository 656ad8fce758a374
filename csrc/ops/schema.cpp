// The one place that owns gralora's operator schemas.
//
// x [..., N], weight [M, N], bias [M], A [k_in, n, k_out*s], B [k_out, k_in*s, m], lora_A [r0, N],
// lora_B [M, r0], H [k_out, T, k_in*s], lora_H [T, r0], rng_state int64 [2]; csrc/README.md has the
// meaning of each and the path from here to a kernel.
// A group's H has the planes of its layers one after the other.
#include <torch/library.h>

TORCH_LIBRARY(gralora, m) {
  m.def(
      "linear(Tensor x, Tensor weight, Tensor? bias, Tensor? A, Tensor? B, Tensor? lora_A, "
      "Tensor? lora_B, *, float scaling, float dropout_p=0.0, bool training=True) -> Tensor");
  m.def(
      "linear_forward(Tensor x, Tensor weight, Tensor? bias, Tensor? A, Tensor? B, Tensor? lora_A, "
      "Tensor? lora_B, Tensor? rng_state, *, float scaling, float dropout_p) "
      "-> (Tensor y, Tensor H, Tensor lora_H)");
  m.def(
      "linear_backward(Tensor dy, Tensor? x, Tensor weight, Tensor? A, Tensor? B, Tensor? lora_A, "
      "Tensor? lora_B, Tensor? H, Tensor? lora_H, Tensor? rng_state, *, float scaling, "
      "float dropout_p, bool[7] output_mask) -> (Tensor dx, Tensor dweight, Tensor dbias, "
      "Tensor dA, Tensor dB, Tensor dlora_A, Tensor dlora_B)");
  m.def(
      "linear_group(Tensor x, Tensor[] weights, Tensor?[] biases, Tensor[] A, Tensor[] B, *, "
      "float scaling) -> Tensor[]");
  m.def(
      "linear_group_forward(Tensor x, Tensor[] weights, Tensor?[] biases, Tensor[] A, Tensor[] B, "
      "*, float scaling) -> (Tensor[] ys, Tensor H)");
  m.def(
      "linear_group_backward(Tensor?[] dy, Tensor? x, Tensor[] weights, Tensor[] A, Tensor[] B, "
      "Tensor? H, *, float scaling, bool wants_dx, bool[3] wants_dA, bool[3] wants_dB) "
      "-> (Tensor dx, Tensor[] dA, Tensor[] dB)");
  m.def(
      "add(Tensor y, Tensor x, Tensor? A, Tensor? B, Tensor? lora_A, Tensor? lora_B, *, "
      "float scaling, float dropout_p=0.0, bool training=True) -> Tensor");
  m.def(
      "add_forward(Tensor y, Tensor x, Tensor? A, Tensor? B, Tensor? lora_A, Tensor? lora_B, "
      "Tensor? rng_state, *, float scaling, float dropout_p) "
      "-> (Tensor out, Tensor H, Tensor lora_H)");
  m.def(
      "add_backward(Tensor dy, Tensor? x, Tensor? A, Tensor? B, Tensor? lora_A, Tensor? lora_B, "
      "Tensor? H, Tensor? lora_H, Tensor? rng_state, *, float scaling, float dropout_p, "
      "bool[5] output_mask) -> (Tensor dx, Tensor dA, Tensor dB, Tensor dlora_A, Tensor dlora_B)");
  m.def(
      "delta_weight(Tensor? A, Tensor? B, Tensor? lora_A, Tensor? lora_B, *, float scaling) "
      "-> Tensor");
  m.def(
      "merge_(Tensor(a!) weight, Tensor? A, Tensor? B, Tensor? lora_A, Tensor? lora_B, *, "
      "float scaling, float sign=1.0) -> ()");
  m.def("dropout(Tensor x, Tensor rng_state, *, float p) -> Tensor");
}

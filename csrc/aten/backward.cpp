#include "aten/backward.h"

#include <ATen/ops/empty.h>

namespace gralora::aten {

AdapterBackward::AdapterBackward(const char* op, const Adapter& adapter, const AdapterShape& shape,
                                 const at::Tensor& dy, const OptionalTensor& x,
                                 const OptionalTensor& H, const OptionalTensor& lora_H,
                                 const OptionalTensor& rng_state, double scaling, double dropout_p,
                                 const AdapterMask& mask, const Steps& steps)
    : steps_(steps),
      adapter_(adapter),
      sizes_(shape),
      mask_(mask),
      dy_rows_(as_rows(dy, sizes_.M)),
      dropout_{rng_state, dropout_p},
      H_(H),
      lora_H_(lora_H),
      factors_(adapter, dy.scalar_type(), steps) {
  mask_.dA &= adapter.has_grid();
  mask_.dB &= adapter.has_grid();
  mask_.dlora_A &= adapter.has_plain();
  mask_.dlora_B &= adapter.has_plain();
  check_saved(op, "x", x, mask_.dA || mask_.dlora_A);
  check_saved(op, "H", H, mask_.dB);
  check_saved(op, "lora_H", lora_H, mask_.dlora_B);

  if (mask_.dA || mask_.dlora_A) {
    input_ = AdapterInput(as_rows(*x, sizes_.N), dropout_);
  }
  if (mask_.dx || mask_.dA || mask_.dlora_A) {
    gradients_ = project_gradient(dy_rows_, factors_, sizes_, scaling, steps);
  }
}

at::Tensor AdapterBackward::input_gradient() const {
  at::Tensor rows = at::empty({dy_rows_.size(0), sizes_.N}, dy_rows_.options());
  expand_input(rows, gradients_, factors_, dropout_, steps_);
  return rows;
}

FactorGradients AdapterBackward::factor_gradients() const {
  FactorGradients gradients;
  std::array<TokenSum, 4> sums;
  if (mask_.dA) {
    sums[0] = {.sum = &gradients.dA,
               .left = split_blocks(input_.rows(), sizes_.k_in),
               .right = gradients_.grid,
               .dtype = adapter_.A.scalar_type(),
               .of_input = true};
  }
  if (mask_.dB) {
    sums[1] = {.sum = &gradients.dB,
               .left = *H_,
               .right = split_blocks(dy_rows_, sizes_.k_out),
               .dtype = adapter_.B.scalar_type(),
               .latent_is_left = true};
  }
  if (mask_.dlora_A) {
    sums[2] = {.sum = &gradients.dlora_A,
               .left = gradients_.plain.unsqueeze(0),
               .right = input_.rows().unsqueeze(0),
               .dtype = adapter_.lora_A.scalar_type(),
               .latent_is_left = true,
               .of_input = true};
  }
  if (mask_.dlora_B) {
    sums[3] = {.sum = &gradients.dlora_B,
               .left = dy_rows_.unsqueeze(0),
               .right = lora_H_->unsqueeze(0),
               .dtype = adapter_.lora_B.scalar_type()};
  }
  steps_.sum_over_tokens(sums, input_);
  if (mask_.dlora_A) gradients.dlora_A = gradients.dlora_A.squeeze(0);
  if (mask_.dlora_B) gradients.dlora_B = gradients.dlora_B.squeeze(0);
  return gradients;
}

}  // namespace gralora::aten

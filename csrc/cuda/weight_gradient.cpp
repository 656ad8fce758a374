// The factors' gradients on CUDA: tensors to plain parameters, dispatch/select_weight_gradient's
// choice, then all of them in one launch of kernels/weight_gradient.cu, or library products whose
// fp32 sums one launch of kernels/round.cu rounds.
#include "cuda/weight_gradient.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/steps.h"

namespace gralora::cuda {
namespace {

/// The entry's sides by what they are.
const at::Tensor& activation_of(const aten::TokenSum& entry) {
  return entry.latent_is_left ? entry.right : entry.left;
}
const at::Tensor& latent_of(const aten::TokenSum& entry) {
  return entry.latent_is_left ? entry.left : entry.right;
}

void sum_by_products(const aten::TokenSums& sums, const aten::AdapterInput& input) {
  for (const aten::TokenSum& entry : sums) {
    if (entry.is_asked_for()) *entry.sum = aten::sum_by_product(entry, input);
  }
  round({{sums[0].sum, sums[0].dtype},
         {sums[1].sum, sums[1].dtype},
         {sums[2].sum, sums[2].dtype},
         {sums[3].sum, sums[3].dtype}});
}

}  // namespace

WeightGradientProblem describe_sums(const aten::TokenSums& sums, const aten::AdapterInput& input) {
  const bool drops = input.dropout().drops();
  WeightGradientProblem problem{.T = 0,
                                .gradients = {},
                                .half = true,
                                .aligned = true,
                                .narrow = true,
                                .repeats = false,
                                .drops = drops,
                                .chip = current_chip(),
                                .forced = forced_path()};
  for (size_t i = 0; i < sums.size(); ++i) {
    const aten::TokenSum& entry = sums[i];
    if (!entry.is_asked_for()) continue;
    problem.T = entry.left.size(1);
    problem.gradients[i] = {entry.left.size(0), activation_of(entry).size(2),
                            latent_of(entry).size(2)};
    problem.half &= is_half(entry.left);
    problem.aligned &= has_aligned_rows(entry.left) && has_aligned_rows(entry.right);
    // Dropout is drawn for whole groups of the input's columns.
    if (drops && entry.of_input) problem.aligned &= activation_of(entry).size(2) % kGroup == 0;
    problem.repeats |= repeats_rows(entry.left) || repeats_rows(entry.right);
    problem.narrow &= entry.dtype != at::kDouble;
  }
  return problem;
}

WeightGradientSelection select_sums(const aten::TokenSums& sums, const aten::AdapterInput& input) {
  return select_weight_gradient(describe_sums(sums, input));
}

GradientCall::GradientCall(const aten::TokenSums& sums, const aten::AdapterInput& input,
                           const WeightGradientSelection& selection)
    : dropout_(input.dropout()) {
  at::TensorOptions options;
  for (const aten::TokenSum& entry : sums) {
    if (!entry.is_asked_for()) continue;
    const at::Tensor& activation = activation_of(entry);
    const at::Tensor& latent = latent_of(entry);
    options = activation.options();
    *entry.sum = at::empty({entry.left.size(0), entry.left.size(2), entry.right.size(2)},
                           options.dtype(entry.dtype));
    params_.type = element_type(activation);
    params_.T = static_cast<int32_t>(activation.size(1));
    params_.sums[params_.count++] = {.activation = activation.const_data_ptr(),
                                     .latent = latent.const_data_ptr(),
                                     .out = entry.sum->mutable_data_ptr(),
                                     .activation_block_stride = activation.stride(0),
                                     .activation_pitch = activation.stride(1),
                                     .latent_block_stride = latent.stride(0),
                                     .latent_pitch = latent.stride(1),
                                     .blocks = static_cast<int32_t>(activation.size(0)),
                                     .width = static_cast<int32_t>(activation.size(2)),
                                     .rank = static_cast<int32_t>(latent.size(2)),
                                     .rank_first = entry.latent_is_left,
                                     .drops = entry.of_input && input.dropout().drops(),
                                     .out_type = element_type(*entry.sum)};
  }
  params_.dropout = dropout_.source;
  params_.tile = selection.tile;
  params_.splits = selection.splits;
  if (const int64_t elements = gradient_workspace(params_); elements > 0) {
    workspace_ = at::empty({elements}, options.dtype(at::kFloat));
    params_.workspace = workspace_.mutable_data_ptr<float>();
  }
}

void sum_over_tokens(const aten::TokenSums& sums, const aten::AdapterInput& input) {
  if (!aten::any_asked_for(sums)) return;
  const WeightGradientSelection selection = select_sums(sums, input);
  if (!takes_kernel("weight_gradient", selection.choice)) {
    sum_by_products(sums, input);
    return;
  }
  const GradientCall call(sums, input, selection);
  check_launch("weight_gradient",
               launch_weight_gradient(call.params(), c10::cuda::getCurrentCUDAStream()));
}

}  // namespace gralora::cuda

// Layers that read the same input as one: their factors A side by side are one factor, so that x is
// read once for all latents and once for all of dA, and what they give back to x is one sum.
//
// The layers' H are planes of one latent, their G columns of one. Built from aten/blocks.h, as
// aten/linear.cpp is.
#include "aten/linear_group.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>
#include <tuple>
#include <utility>

#include "aten/backward.h"
#include "aten/blocks.h"
#include "aten/device_notice.h"
#include "ops/linear_group.h"

namespace gralora::aten {
namespace {

static_assert(ops::kMostMembers < std::tuple_size_v<TokenSums>, "dA of all and each dB at once");

using Tensors = c10::SmallVector<at::Tensor, ops::kMostMembers>;

/// A layer of the group: where its latents lie among those of all.
struct Member {
  Sizes sizes;
  size_t index;
  int64_t first_plane;

  /// Of G, all blocks of its output.
  int64_t latents() const { return sizes.k_out * sizes.s; }

  at::Tensor planes_of(const at::Tensor& H) const { return H.narrow(0, first_plane, sizes.k_out); }
};

using Members = c10::SmallVector<Member, ops::kMostMembers>;

Members list_members(const std::vector<AdapterShape>& shapes) {
  Members members;
  int64_t plane = 0;
  for (size_t i = 0; i < shapes.size(); ++i) {
    members.push_back({Sizes(shapes[i]), i, plane});
    plane += members.back().sizes.k_out;
  }
  return members;
}

/// The factors of some members rounded to the compute dtype, their A side by side.
struct GroupFactors {
  at::Tensor A;  // [k_in, n, latents of all]
  std::array<at::Tensor, ops::kMostMembers> B;

  GroupFactors(const Members& members, at::TensorList all_A, at::TensorList all_B,
               at::ScalarType compute, const Steps& steps) {
    Tensors parts;
    for (size_t i = 0; i < members.size(); ++i) {
      parts.push_back(all_A[members[i].index]);
      B[i] = all_B[members[i].index];
    }
    A = at::cat(parts, /*dim=*/2);
    steps.pack({{&A, compute, /*rank_is_last=*/true},
                {&B[0], compute},
                {&B[1], compute},
                {&B[2], compute}});
  }
};

/// H of all members from the rows of x, by their factors side by side.
Latents project_members(const at::Tensor& rows, const Members& members, const GroupFactors& factors,
                        double scaling, const Steps& steps) {
  Sizes together = members[0].sizes;
  together.k_out = members.back().first_plane + members.back().sizes.k_out;
  return project_input(AdapterInput(rows), {factors.A, factors.B[0]}, together, scaling, steps);
}

/// The backward pass of the members whose outputs have gradients.
class GroupBackward {
 public:
  GroupBackward(const Steps& steps, Members members, Tensors dy_rows, at::TensorList weights,
                at::TensorList A, at::TensorList B, double scaling)
      : steps_(steps),
        members_(std::move(members)),
        dy_rows_(std::move(dy_rows)),
        weights_(weights),
        factors_(members_, A, B, dy_rows_[0].scalar_type(), steps),
        scaling_(scaling) {}

  /// dx and G at once, and `sums`, which is then empty, where that is better.
  bool project_and_expand(at::Tensor& dx, TokenSums& sums) {
    Tensors projecting;
    for (size_t i = 0; i < members_.size(); ++i) {
      projecting.push_back(transpose_factor(factors_.B[i]));
    }
    if (!steps_.project_with_base(dx, base(), G_.grid, projecting, scaling_,
                                  transpose_factor(factors_.A), sums)) {
      return false;
    }
    G_.projected_here = true;
    return true;
  }

  void project() {
    int64_t latents = 0;
    for (const Member& member : members_) latents += member.latents();
    const at::Tensor& rows = dy_rows_[0];
    G_.grid = empty_latent(members_[0].sizes.k_in, rows.size(0), latents, rows.options());
    int64_t column = 0;
    for (size_t i = 0; i < members_.size(); ++i) {
      at::Tensor part = G_.grid.narrow(2, column, members_[i].latents());
      steps_.project(part, AdapterInput(dy_rows_[i]), transpose_factor(factors_.B[i]), scaling_);
      column += members_[i].latents();
    }
    G_.projected_here = true;
  }

  /// dx in one product with `sums`, which is then empty, where that is better.
  bool expand_with_base(at::Tensor& dx, TokenSums& sums) const {
    dx = at::empty({dy_rows_[0].size(0), weights_[0].size(1)}, dy_rows_[0].options());
    return steps_.expand_with_base(dx, base(), G_, transpose_factor(factors_.A), at::Tensor(), {},
                                   sums);
  }

  void expand(at::Tensor& dx) const {
    steps_.expand(dx, G_, transpose_factor(factors_.A), at::Tensor(), /*overwrite=*/true);
    for (const auto& [rows, weight] : base().terms) dx.addmm_(rows, weight);
  }

  /// dA of all members side by side, without the latents, and the dB that are asked for.
  TokenSums list_sums(at::Tensor* dA, std::array<at::Tensor, ops::kMostMembers>& dB,
                      const ops::GroupMask& wants_dB, const at::Tensor& x_rows,
                      const OptionalTensor& H, at::ScalarType dtype) const {
    TokenSums sums;
    if (dA != nullptr) {
      sums[0] = {.sum = dA,
                 .left = split_blocks(x_rows, members_[0].sizes.k_in),
                 .right = {},
                 .dtype = dtype,
                 .of_input = true};
    }
    for (size_t i = 0; i < members_.size(); ++i) {
      if (!wants_dB[i]) continue;
      sums[i + 1] = {.sum = &dB[i],
                     .left = members_[i].planes_of(*H),
                     .right = split_blocks(dy_rows_[i], members_[i].sizes.k_out),
                     .dtype = dtype,
                     .latent_is_left = true};
    }
    return sums;
  }

  const at::Tensor& G() const { return G_.grid; }

 private:
  BaseProduct base() const {
    BaseProduct base;
    for (size_t i = 0; i < members_.size(); ++i) {
      base.terms.push_back({dy_rows_[i], weights_[members_[i].index]});
    }
    return base;
  }

  const Steps& steps_;
  Members members_;
  Tensors dy_rows_;
  at::TensorList weights_;
  GroupFactors factors_;
  double scaling_;
  Latents G_;
};

}  // namespace

ops::GroupForward linear_group_forward(const Steps& steps, const at::Tensor& x,
                                       at::TensorList weights,
                                       const c10::List<OptionalTensor>& biases, at::TensorList A,
                                       at::TensorList B, double scaling) {
  const std::vector<AdapterShape> shapes =
      ops::check_group("linear_group", x, weights, biases, A, B);
  notice_device(x);

  const Members members = list_members(shapes);
  const GroupFactors factors(members, A, B, x.scalar_type(), steps);
  const at::Tensor rows = as_rows(x, members[0].sizes.N);
  std::vector<at::Tensor> results;
  c10::SmallVector<LayerOutput, ops::kMostMembers> outputs;
  for (size_t i = 0; i < members.size(); ++i) {
    const int64_t M = members[i].sizes.M;
    results.push_back(at::empty(with_width(x.sizes(), M), x.options()));
    outputs.push_back({.rows = results[i].view({rows.size(0), M}),
                       .weight = weights[i].t(),
                       .bias = biases.get(i),
                       .grid_factor = factors.B[i]});
  }
  at::Tensor H;
  if (steps.expand_layers_with_base(outputs, rows, H, factors.A, scaling)) return {results, H};
  const Latents all = project_members(rows, members, factors, scaling, steps);
  H = all.grid;
  if (steps.expand_layers_with_base(outputs, rows, H, at::Tensor(), scaling)) return {results, H};
  for (size_t i = 0; i < members.size(); ++i) {
    // Behind the first product the projection is not the last kernel any more.
    const Latents latents{.grid = members[i].planes_of(H),
                          .plain = {},
                          .projected_here = all.projected_here && i == 0};
    expand_output_and_base(outputs[i].rows, {{{rows, outputs[i].weight}}, outputs[i].bias}, latents,
                           {factors.A, factors.B[i]}, steps);
  }
  return {results, H};
}

ops::GroupGradients linear_group_backward(const Steps& steps, const c10::List<OptionalTensor>& dy,
                                          const OptionalTensor& x, at::TensorList weights,
                                          at::TensorList A, at::TensorList B,
                                          const OptionalTensor& H, double scaling, bool wants_dx,
                                          ops::GroupMask wants_dA, ops::GroupMask wants_dB) {
  const ops::CheckedGradients checked =
      ops::check_group_gradients(dy, x, weights, A, B, H, wants_dA, wants_dB);
  const at::Tensor& first_dy = checked.first_dy;
  notice_device(first_dy);

  Members members;
  Tensors dy_rows;
  ops::GroupMask needs_dB{};
  bool needs_dA = false, needs_any_dB = false;
  for (const Member& member : list_members(checked.shapes)) {
    const OptionalTensor dy_of_member = dy.get(member.index);
    if (!dy_of_member) continue;
    needs_dB[members.size()] = wants_dB[member.index];
    needs_any_dB |= wants_dB[member.index];
    needs_dA |= wants_dA[member.index];
    members.push_back(member);
    dy_rows.push_back(as_rows(*dy_of_member, member.sizes.M));
  }

  const int64_t N = members[0].sizes.N;
  GroupBackward backward(steps, members, dy_rows, weights, A, B, scaling);
  at::Tensor dx_rows, dA;
  std::array<at::Tensor, ops::kMostMembers> dB;
  // Where it was not saved, H is made again; its planes are those of all layers.
  const bool projects_again = needs_any_dB && !H;
  const at::Tensor x_rows = needs_dA || projects_again ? as_rows(*x, N) : at::Tensor();
  OptionalTensor latent = H;
  if (projects_again) {
    const Members all = list_members(checked.shapes);
    const GroupFactors factors(all, A, B, first_dy.scalar_type(), steps);
    latent = project_members(x_rows, all, factors, scaling, steps).grid;
  }
  TokenSums sums = backward.list_sums(needs_dA ? &dA : nullptr, dB, needs_dB, x_rows, latent,
                                      A[0].scalar_type());
  bool has_dx = wants_dx && backward.project_and_expand(dx_rows, sums);
  if (!has_dx && (wants_dx || needs_dA)) backward.project();
  if (sums[0].is_asked_for()) sums[0].right = backward.G();
  has_dx = has_dx || (wants_dx && backward.expand_with_base(dx_rows, sums));
  const auto sum = [&] { steps.sum_over_tokens(sums, AdapterInput(x_rows)); };
  const auto expand = [&] {
    if (wants_dx && !has_dx) backward.expand(dx_rows);
  };
  // As in aten/backward.cpp.
  if (dy_rows[0].size(0) <= kShortCall) {
    expand();
    sum();
  } else {
    sum();
    expand();
  }

  ops::GroupGradients result;
  auto& [dx, all_dA, all_dB] = result;
  if (wants_dx) dx = dx_rows.view(with_width(first_dy.sizes(), N));
  // In the members' order, of those that are asked for; zeros where the output has no gradient.
  size_t place = 0;
  int64_t column = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const bool here = place < members.size() && members[place].index == i;
    if (wants_dA[i]) {
      all_dA.push_back(here ? dA.narrow(2, column, members[place].latents()).contiguous()
                            : at::zeros(A[i].sizes(), A[i].options()));
    }
    if (wants_dB[i]) {
      all_dB.push_back(here ? dB[place] : at::zeros(B[i].sizes(), B[i].options()));
    }
    if (!here) continue;
    column += members[place].latents();
    ++place;
  }
  return result;
}

TORCH_LIBRARY_IMPL(gralora, CompositeExplicitAutograd, m) {
  m.impl("linear_group_forward", TORCH_FN((WithSteps<linear_group_forward, kLibrarySteps>::call)));
  m.impl("linear_group_backward",
         TORCH_FN((WithSteps<linear_group_backward, kLibrarySteps>::call)));
}

}  // namespace gralora::aten

// kernels/launch.cuh: the kernels of a whole step over few tokens queued one behind the other, each
// let in while the one before still runs, factors read before the latents are there. The same bits
// as one by one.
#include <memory>

#include "kernels/expand.h"
#include "kernels/input_gradients.h"
#include "kernels/output_gradients.h"
#include "kernels/project.h"
#include "kernels/round.h"
#include "support.h"

namespace gralora::check {
namespace {

using Half = __nv_bfloat16;
constexpr ElementType kType = Traits<Half>::kType;

// The gradients' tiles, ten of them, do not fill whole clusters of four.
constexpr int kTokens = 48, kBlocks = 2, kWidth = 320, kSubRank = 8, kRank = kBlocks * kSubRank;
constexpr int64_t kRow = kBlocks * kWidth, kFactor = kRow * kRank, kLatent = kTokens * kRank;
constexpr int kForwardSplits = 2, kBackwardSplits = 4;
#ifdef GRALORA_EMULATED
constexpr int kSets = 2, kTurns = 2;  // nothing overlaps there
#else
constexpr int kSets = 6, kTurns = 200;
#endif

/// Factors and results of one call.
struct Call {
  Array<float> A, B;
  Array<Half> x, y, dy, dx, dA, dB;

  Call()
      : A(kFactor),
        B(kFactor),
        x(kTokens * kRow),
        y(kTokens * kRow),
        dy(kTokens * kRow),
        dx(kTokens * kRow),
        dA(kFactor),
        dB(kFactor) {
    for (Array<float>* factor : {&A, &B}) factor->fill(1, 1);
    for (Array<Half>* input : {&x, &dy}) input->fill(1, 1);
  }
  std::vector<Array<Half>*> results() { return {&y, &dx, &dA, &dB}; }
};

/// Rounded factors and latents, which all calls share as they would the memory of a caching
/// allocator.
struct Shared {
  Array<Half> A, B, H, G;

  Shared() : A(kFactor), B(kFactor), H(kBlocks * kLatent), G(kBlocks * kLatent) {}
};

void round_factors(const Call& call, const Shared& shared) {
  RoundParams round{};
  const auto add = [&](const float* from, Half* to) {
    round.arrays[round.count++] = {from, to, 1, kFactor, kFactor, ElementType::kFloat32, kType};
  };
  add(call.A.device(), shared.A.device());
  add(call.B.device(), shared.B.device());
  check_cuda(launch_round(round, nullptr), "round");
}

ProjectParams describe_projection(const Half* rows, const Half* factor, Half* latent,
                                  bool width_is_contiguous, int splits) {
  ProjectParams project{};
  project.x = rows;
  project.factor = factor;
  project.latent = latent;
  project.T = kTokens;
  project.inner = project.outer = kBlocks;
  project.width = kWidth;
  project.s = kSubRank;
  project.x_row_stride = kRow;
  project.factor_block_stride = kWidth * kRank;
  project.factor_pitch = width_is_contiguous ? kWidth : kRank;
  project.latent_pitch = kRank;
  project.latent_plane = kLatent;
  project.scaling = 0.5f;
  project.type = kType;
  project.width_is_contiguous = width_is_contiguous;
  project.tile = ProjectTile::k16x32;
  project.splits = splits;
  return project;
}

ExpandParams describe_expansion(const Half* latent, const Half* factor, bool rank_is_contiguous,
                                Half* out, bool factors_are_ready) {
  ExpandParams expand{};
  expand.grid.latent = latent;
  expand.grid.factor = factor;
  expand.grid.latent_plane = kLatent;
  expand.grid.latent_pitch = expand.grid.rank = kRank;
  expand.grid.factor_block_stride = kRank * kWidth;
  expand.grid.factor_pitch = rank_is_contiguous ? kRank : kWidth;
  expand.grid.rank_is_contiguous = rank_is_contiguous;
  expand.out = out;
  expand.T = kTokens;
  expand.blocks = kBlocks;
  expand.width = kWidth;
  expand.factors_are_ready = factors_are_ready;
  expand.tile = ExpandTile::k64x64;
  expand.type = kType;
  return expand;
}

WeightGradientParams describe_sum(const Half* rows, const Half* latent, Half* out,
                                  bool rank_first) {
  WeightGradientParams sums{};
  GradientSum& sum = sums.sums[sums.count++];
  sum.activation = rows;
  sum.latent = latent;
  sum.out = out;
  sum.activation_block_stride = kWidth;
  sum.activation_pitch = kRow;
  sum.latent_block_stride = kLatent;
  sum.latent_pitch = kRank;
  sum.blocks = kBlocks;
  sum.width = kWidth;
  sum.rank = kRank;
  sum.rank_first = rank_first;
  sum.out_type = kType;
  sums.T = kTokens;
  sums.tile = GradientTile::k64x64;
  sums.splits = 1;
  sums.type = kType;
  return sums;
}

void run(const Call& call, const Shared& shared, bool one_by_one) {
  const auto settle = [&] {
    if (one_by_one) check_cuda(cudaDeviceSynchronize(), "overlap");
  };
  const bool ready = !one_by_one;
  round_factors(call, shared);
  settle();
  check_cuda(launch_project(describe_projection(call.x.device(), shared.A.device(),
                                                shared.H.device(), false, kForwardSplits),
                            nullptr),
             "project");
  settle();
  check_cuda(launch_expand(describe_expansion(shared.H.device(), shared.B.device(), false,
                                              call.y.device(), ready),
                           nullptr),
             "expand");
  settle();
  round_factors(call, shared);
  settle();
  check_cuda(
      launch_output_gradients(
          describe_projection(call.dy.device(), shared.B.device(), shared.G.device(), true,
                              kBackwardSplits),
          describe_sum(call.dy.device(), shared.H.device(), call.dB.device(), true), nullptr),
      "output_gradients");
  settle();
  check_cuda(
      launch_input_gradients(
          describe_expansion(shared.G.device(), shared.A.device(), true, call.dx.device(), ready),
          describe_sum(call.x.device(), shared.G.device(), call.dA.device(), false), nullptr),
      "input_gradients");
  settle();
}

}  // namespace

void check_overlap() {
  std::vector<std::unique_ptr<Call>> calls;
  for (int set = 0; set < kSets; ++set) calls.push_back(std::make_unique<Call>());
  const Shared shared;
  std::vector<std::vector<Half>> expected;
  for (const auto& call : calls) {
    run(*call, shared, /*one_by_one=*/true);
    for (Array<Half>* result : call->results()) {
      expected.push_back(result->fetch().host);
      result->poison();
    }
  }
  // Every call overwrites what the ones before have rounded and projected.
  for (int turn = 0; turn < kTurns; ++turn) run(*calls[turn % kSets], shared, false);
  int64_t wrong = 0;
  size_t index = 0;
  for (const auto& call : calls) {
    for (Array<Half>* result : call->results()) {
      const std::vector<Half>& actual = result->fetch().host;
      const std::vector<Half>& wanted = expected[index++];
      for (size_t e = 0; e < actual.size(); ++e) {
        wrong += !(float(actual[e]) == float(wanted[e]));
      }
    }
  }
  report("the kernels of a step over few tokens, overlapping", wrong);
}

}  // namespace gralora::check

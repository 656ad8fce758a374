// kernels/launch.cuh: the kernels of a whole step queued one behind the other, each let in while
// the one before still runs: those of few tokens, with factors read before the latents are there,
// and those of compute capability 9.0a. The same bits as one by one.
#include <algorithm>
#include <memory>

#include "kernels/expand.h"
#include "kernels/extended_product.h"
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
constexpr int kBlocks = 2, kWidth = 320, kSubRank = 8, kRank = kBlocks * kSubRank;
constexpr int64_t kRow = kBlocks * kWidth, kFactor = kRow * kRank;
constexpr int kForwardSplits = 2, kBackwardSplits = 4, kTokenSplits = 3;
#ifdef GRALORA_EMULATED
constexpr int kSets = 2, kShortTurns = 2, kLongTurns = 2;  // nothing overlaps there
constexpr int kLongSteps[] = {65};
#else
constexpr int kSets = 6, kShortTurns = 200, kLongTurns = 40;
constexpr int kLongSteps[] = {400, 1500};
#endif

/// Factors and results of one call.
struct Call {
  int tokens;
  Array<float> A, B, wide_x, wide_dy;  // the latter are x and dy once more
  Array<Half> x, y, dy, dx, dA, dB;

  explicit Call(int tokens)
      : tokens(tokens),
        A(kFactor),
        B(kFactor),
        wide_x(tokens * kRow),
        wide_dy(tokens * kRow),
        x(tokens * kRow),
        y(tokens * kRow),
        dy(tokens * kRow),
        dx(tokens * kRow),
        dA(kFactor),
        dB(kFactor) {
    for (Array<float>* factor : {&A, &B}) factor->fill(1, 1);
    for (Array<Half>* input : {&x, &dy}) input->fill(1, 1);
    for (const auto& [wide, input] : {std::pair(&wide_x, &x), std::pair(&wide_dy, &dy)}) {
      for (int64_t e = 0; e < tokens * kRow; ++e) wide->host[e] = float(input->host[e]);
      wide->send();
    }
    // initcheck does not see what bulk copies write.
    for (Array<Half>* result : results()) result->poison();
  }
  std::vector<Array<Half>*> results() { return {&y, &dx, &dA, &dB}; }
};

/// What all calls share as they would the memory of a caching allocator: rounded factors, latents,
/// sums of splits; and the frozen weight.
struct Shared {
  Array<Half> A, B, H, G, W, rows;
  Array<float> workspace, counters;

  explicit Shared(int tokens)
      : A(kFactor),
        B(kFactor),
        H(kBlocks * tokens * kRank),
        G(kBlocks * tokens * kRank),
        W(kRow * kRow),
        rows(tokens * kRow),
        workspace(int64_t{2} * kBlocks * 3 * 128 * 32 * kTokenSplits),
        counters(count_counters(tokens)) {
    W.fill(1, 1);
  }

  static int64_t count_counters(int tokens) {
    ExtendedProductParams product{};
    product.T = tokens;
    return count_product_counters(product);
  }
};

/// And `wide_rows` to the shared rows.
void round_factors(const Call& call, const Shared& shared,
                   const Array<float>* wide_rows = nullptr) {
  RoundParams round{};
  const auto add = [&](const float* from, Half* to, int64_t elements) {
    round.arrays[round.count++] = {from, to, 1, elements, elements, ElementType::kFloat32, kType};
  };
  add(call.A.device(), shared.A.device(), kFactor);
  add(call.B.device(), shared.B.device(), kFactor);
  if (wide_rows != nullptr) add(wide_rows->device(), shared.rows.device(), call.tokens * kRow);
  check_cuda(launch_round(round, nullptr), "round");
}

ProjectParams describe_projection(int tokens, const Half* rows, const Half* factor, Half* latent,
                                  bool width_is_contiguous, int splits) {
  ProjectParams project{};
  project.x = rows;
  project.factor = factor;
  project.latent = latent;
  project.T = tokens;
  project.inner = project.outer = kBlocks;
  project.width = kWidth;
  project.s = kSubRank;
  project.x_row_stride = kRow;
  project.factor_block_stride = kWidth * kRank;
  project.factor_pitch = width_is_contiguous ? kWidth : kRank;
  project.latent_pitch = kRank;
  project.latent_plane = int64_t{tokens} * kRank;
  project.scaling = 0.5f;
  project.type = kType;
  project.width_is_contiguous = width_is_contiguous;
  project.tile = ProjectTile::k16x32;
  project.splits = splits;
  return project;
}

ExpandParams describe_expansion(int tokens, const Half* latent, const Half* factor,
                                bool rank_is_contiguous, Half* out, bool factors_are_ready) {
  ExpandParams expand{};
  expand.grid.latent = latent;
  expand.grid.factor = factor;
  expand.grid.latent_plane = int64_t{tokens} * kRank;
  expand.grid.latent_pitch = expand.grid.rank = kRank;
  expand.grid.factor_block_stride = kRank * kWidth;
  expand.grid.factor_pitch = rank_is_contiguous ? kRank : kWidth;
  expand.grid.rank_is_contiguous = rank_is_contiguous;
  expand.out = out;
  expand.T = tokens;
  expand.blocks = kBlocks;
  expand.width = kWidth;
  expand.factors_are_ready = factors_are_ready;
  expand.tile = ExpandTile::k64x64;
  expand.type = kType;
  return expand;
}

void add_sum(WeightGradientParams& sums, int tokens, const Half* rows, const Half* latent,
             Half* out, bool rank_first) {
  GradientSum& sum = sums.sums[sums.count++];
  sum.activation = rows;
  sum.latent = latent;
  sum.out = out;
  sum.activation_block_stride = kWidth;
  sum.activation_pitch = kRow;
  sum.latent_block_stride = int64_t{tokens} * kRank;
  sum.latent_pitch = kRank;
  sum.blocks = kBlocks;
  sum.width = kWidth;
  sum.rank = kRank;
  sum.rank_first = rank_first;
  sum.out_type = kType;
  sums.T = tokens;
  sums.tile = GradientTile::k64x64;
  sums.splits = 1;
  sums.type = kType;
}

WeightGradientParams describe_sum(int tokens, const Half* rows, const Half* latent, Half* out,
                                  bool rank_first) {
  WeightGradientParams sums{};
  add_sum(sums, tokens, rows, latent, out, rank_first);
  return sums;
}

/// y from x, W transposed, H and B, or dx from dy, W, G and A transposed.
ExtendedProductParams describe_product(int tokens, const Half* rows, const Half* weight,
                                       const Half* latent, const Half* factor, Half* out,
                                       bool forward) {
  ExtendedProductParams product{};
  product.terms[0] = {.rows = rows, .row_stride = kRow, .depth = kRow};
  product.weights[0] = {weight, kRow};
  product.outputs[0] = {.factor = factor,
                        .factor_block_stride = kRank * kWidth,
                        .factor_pitch = forward ? kWidth : kRank,
                        .bias = nullptr,
                        .out = out,
                        .blocks = kBlocks,
                        .width = kWidth};
  product.term_count = product.output_count = 1;
  product.latent = latent;
  product.T = tokens;
  product.rank = kRank;
  product.latent_plane = int64_t{tokens} * kRank;
  product.latent_pitch = kRank;
  product.depth_is_contiguous = forward;
  product.type = kType;
  product.tile = ProductTile::k128x128;
  product.processors = 8;  // so that each walks over several tiles, beside the kernels around it
  return product;
}

/// A step over few tokens.
void run_few(const Call& call, const Shared& shared, bool one_by_one) {
  const auto settle = [&] {
    if (one_by_one) check_cuda(cudaDeviceSynchronize(), "overlap");
  };
  const bool ready = !one_by_one;
  round_factors(call, shared);
  settle();
  check_cuda(launch_project(describe_projection(call.tokens, call.x.device(), shared.A.device(),
                                                shared.H.device(), false, kForwardSplits),
                            nullptr),
             "project");
  settle();
  check_cuda(launch_expand(describe_expansion(call.tokens, shared.H.device(), shared.B.device(),
                                              false, call.y.device(), ready),
                           nullptr),
             "expand");
  settle();
  round_factors(call, shared);
  settle();
  check_cuda(
      launch_output_gradients(
          describe_projection(call.tokens, call.dy.device(), shared.B.device(), shared.G.device(),
                              true, kBackwardSplits),
          describe_sum(call.tokens, call.dy.device(), shared.H.device(), call.dB.device(), true),
          nullptr),
      "output_gradients");
  settle();
  check_cuda(
      launch_input_gradients(
          describe_expansion(call.tokens, shared.G.device(), shared.A.device(), true,
                             call.dx.device(), ready),
          describe_sum(call.tokens, call.x.device(), shared.G.device(), call.dA.device(), false),
          nullptr),
      "input_gradients");
  settle();
}

/// dA and dB.
WeightGradientParams describe_factor_sums(const Call& call, const Shared& shared) {
  WeightGradientParams sums{};
  add_sum(sums, call.tokens, call.x.device(), shared.G.device(), call.dA.device(), false);
  add_sum(sums, call.tokens, call.dy.device(), shared.H.device(), call.dB.device(), true);
  return sums;
}

/// The same by the kernel of compute capability 9.0a.
void sum_factors(const Call& call, const Shared& shared) {
  WeightGradientParams sums = describe_factor_sums(call, shared);
  sums.tile = GradientTile::kBulk128x32;
  sums.splits = kTokenSplits;
  sums.workspace = shared.workspace.device();
  check_cuda(launch_weight_gradient(sums, nullptr), "weight_gradient");
}

void project_sm90(const Call& call, const Half* rows, const Half* factor, Half* latent,
                  bool width_is_contiguous) {
  ProjectParams params =
      describe_projection(call.tokens, rows, factor, latent, width_is_contiguous, 1);
  params.tile = ProjectTile::kBulk64x32;
  check_cuda(launch_project(params, nullptr), "project");
}

/// A step by the kernels of compute capability 9.0a.
void run_sm90(const Call& call, const Shared& shared, bool one_by_one) {
  const auto settle = [&] {
    if (one_by_one) check_cuda(cudaDeviceSynchronize(), "overlap");
  };
  const auto project = [&](const Half* rows, const Half* factor, Half* latent,
                           bool width_is_contiguous) {
    project_sm90(call, rows, factor, latent, width_is_contiguous);
    settle();
  };
  const auto multiply = [&](const Half* rows, const Half* latent, const Half* factor, Half* out,
                            bool forward) {
    check_cuda(launch_extended_product(describe_product(call.tokens, rows, shared.W.device(),
                                                        latent, factor, out, forward),
                                       nullptr),
               "extended_product");
    settle();
  };
  round_factors(call, shared);
  settle();
  project(call.x.device(), shared.A.device(), shared.H.device(), false);
  multiply(call.x.device(), shared.H.device(), shared.B.device(), call.y.device(), true);
  round_factors(call, shared);
  settle();
  project(call.dy.device(), shared.B.device(), shared.G.device(), true);
  sum_factors(call, shared);
  settle();
  multiply(call.dy.device(), shared.G.device(), shared.A.device(), call.dx.device(), false);
}

/// The same with products that begin while their latents are made from rows that have just been
/// written, the backward one with the factors' gradients among its tiles.
void run_early(const Call& call, const Shared& shared, bool one_by_one) {
  const auto settle = [&] {
    if (one_by_one) check_cuda(cudaDeviceSynchronize(), "overlap");
  };
  const auto pass = [&](const Array<float>& wide_rows, Half* latent, const Half* projecting,
                        const Half* expanding, Half* out, bool forward) {
    const Half* const rows = shared.rows.device();
    round_factors(call, shared, &wide_rows);
    settle();
    project_sm90(call, rows, projecting, latent, !forward);
    settle();
    ExtendedProductParams product =
        describe_product(call.tokens, rows, shared.W.device(), latent, expanding, out, forward);
    product.latent_is_ahead = !one_by_one;
    if (!forward) {
      WeightGradientParams sums = describe_factor_sums(call, shared);
      sums.sums[1].activation = rows;
      product.gradient_count = sums.count;
      std::copy_n(sums.sums, sums.count, product.gradients);
    }
    check_cuda(launch_extended_product(product, nullptr), "extended_product");
    settle();
  };
  pass(call.wide_x, shared.H.device(), shared.A.device(), shared.B.device(), call.y.device(), true);
  pass(call.wide_dy, shared.G.device(), shared.B.device(), shared.A.device(), call.dx.device(),
       false);
}

/// The same with the latents made, and the factors' gradients summed, among the base products'
/// tiles.
void run_on_the_way(const Call& call, const Shared& shared, bool one_by_one) {
  const auto settle = [&] {
    if (one_by_one) check_cuda(cudaDeviceSynchronize(), "overlap");
  };
  const auto multiply = [&](const Half* rows, Half* latent, const Half* projecting,
                            const Half* expanding, Half* out, bool forward) {
    ExtendedProductParams product =
        describe_product(call.tokens, rows, shared.W.device(), latent, expanding, out, forward);
    ProductTerm& term = product.terms[0];
    term.inner = kBlocks;
    term.factor = projecting;
    term.factor_block_stride = kWidth * kRank;
    term.factor_pitch = forward ? kRank : kWidth;
    product.projection = {.latent = latent, .scaling = 0.5f};
    product.counters = reinterpret_cast<int32_t*>(shared.counters.device());
    if (!forward) {
      const WeightGradientParams sums = describe_factor_sums(call, shared);
      product.gradient_count = sums.count;
      std::copy_n(sums.sums, sums.count, product.gradients);
    }
    check_cuda(launch_extended_product(product, nullptr), "extended_product");
    settle();
  };
  round_factors(call, shared);
  settle();
  multiply(call.x.device(), shared.H.device(), shared.A.device(), shared.B.device(),
           call.y.device(), true);
  multiply(call.dy.device(), shared.G.device(), shared.B.device(), shared.A.device(),
           call.dx.device(), false);
}

using Run = void (*)(const Call& call, const Shared& shared, bool one_by_one);

void check_steps(const char* name, int tokens, int turns, Run run) {
  std::vector<std::unique_ptr<Call>> calls;
  for (int set = 0; set < kSets; ++set) calls.push_back(std::make_unique<Call>(tokens));
  const Shared shared(tokens);
  std::vector<std::vector<Half>> expected;
  for (const auto& call : calls) {
    run(*call, shared, /*one_by_one=*/true);
    for (Array<Half>* result : call->results()) {
      expected.push_back(result->fetch().host);
      result->poison();
    }
  }
  if (is_brief) turns = kSets;
  // Every call overwrites what the ones before have rounded and projected.
  for (int turn = 0; turn < turns; ++turn) run(*calls[turn % kSets], shared, false);
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
  report(name, wrong);
}

}  // namespace

void check_overlap() {
  check_steps("the kernels of a step over few tokens, overlapping", 48, kShortTurns, run_few);
  if (!runs_sm90()) return;
  for (const int tokens : kLongSteps) {
    const std::string step = "a step of " + std::to_string(tokens) + " tokens, overlapping";
    check_steps(("the kernels of 9.0a in " + step).c_str(), tokens, kLongTurns, run_sm90);
    check_steps(("products that begin early in " + step).c_str(), tokens, kLongTurns, run_early);
    check_steps(("latents and gradients on the way in " + step).c_str(), tokens, kLongTurns,
                run_on_the_way);
  }
}

}  // namespace gralora::check

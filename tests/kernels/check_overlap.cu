// kernels/launch.cuh: round, project and expand queued one behind the other, each let in while the
// one before still runs, the factor read before the latents are there. The same bits as one by one.
#include <memory>

#include "kernels/expand.h"
#include "kernels/project.h"
#include "kernels/round.h"
#include "support.h"

namespace gralora::check {
namespace {

using Half = __nv_bfloat16;

constexpr int kTokens = 48, kBlocks = 2, kWidth = 512, kSubRank = 8, kRank = kBlocks * kSubRank;
constexpr int kSets = 6, kTurns = 200;

/// Factors and the result of one call; latents and rounded factors are shared by all calls, as the
/// memory of a caching allocator is.
struct Call {
  Array<float> A, B;
  Array<Half> x, out;

  Call()
      : A(kBlocks * kWidth * kRank),
        B(kBlocks * kRank * kWidth),
        x(kTokens * kBlocks * kWidth),
        out(kTokens * kBlocks * kWidth) {
    A.fill(1, 1);
    B.fill(1, 1);
    x.fill(1, 1);
  }
};

struct Shared {
  Array<Half> A, B, H;

  Shared()
      : A(kBlocks * kWidth * kRank), B(kBlocks * kRank * kWidth), H(kBlocks * kTokens * kRank) {}
};

void run(const Call& call, const Shared& shared, bool one_by_one) {
  const auto settle = [&] {
    if (one_by_one) check_cuda(cudaDeviceSynchronize(), "overlap");
  };
  constexpr ElementType kType = Traits<Half>::kType;
  constexpr int64_t kElements = kBlocks * kWidth * kRank;
  RoundParams round{};
  const auto round_whole = [&](const float* from, Half* to) {
    round.arrays[round.count++] = {from, to, 1, kElements, kElements, ElementType::kFloat32, kType};
  };
  round_whole(call.A.device(), shared.A.device());
  round_whole(call.B.device(), shared.B.device());
  check_cuda(launch_round(round, nullptr), "round");
  settle();
  ProjectParams project{};
  project.x = call.x.device();
  project.factor = shared.A.device();
  project.latent = shared.H.device();
  project.T = kTokens;
  project.inner = project.outer = kBlocks;
  project.width = kWidth;
  project.s = kSubRank;
  project.x_row_stride = kBlocks * kWidth;
  project.factor_block_stride = kWidth * kRank;
  project.factor_pitch = project.latent_pitch = kRank;
  project.latent_plane = kTokens * kRank;
  project.scaling = 0.5f;
  project.type = kType;
  project.tile = ProjectTile::k16x32;
  check_cuda(launch_project(project, nullptr), "project");
  settle();
  ExpandParams expand{};
  expand.grid.latent = shared.H.device();
  expand.grid.factor = shared.B.device();
  expand.grid.latent_plane = kTokens * kRank;
  expand.grid.latent_pitch = expand.grid.rank = kRank;
  expand.grid.factor_block_stride = kRank * kWidth;
  expand.grid.factor_pitch = kWidth;
  expand.out = call.out.device();
  expand.T = kTokens;
  expand.blocks = kBlocks;
  expand.width = kWidth;
  expand.factors_are_ready = !one_by_one;
  expand.tile = ExpandTile::k64x64;
  expand.type = kType;
  check_cuda(launch_expand(expand, nullptr), "expand");
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
    expected.push_back(call->out.fetch().host);
    call->out.poison();
  }
  // Every call overwrites what the ones before have rounded and projected.
  for (int turn = 0; turn < kTurns; ++turn) run(*calls[turn % kSets], shared, false);
  int64_t wrong = 0;
  for (int set = 0; set < kSets; ++set) {
    const std::vector<Half>& actual = calls[set]->out.fetch().host;
    for (size_t e = 0; e < actual.size(); ++e) {
      wrong += !(float(actual[e]) == float(expected[set][e]));
    }
  }
  report("round, project and expand, overlapping", wrong);
}

}  // namespace gralora::check

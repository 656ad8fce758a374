#include "dispatch/select_expand.h"

namespace gralora {
namespace {

// Measured on an H100, 1024 to 14336 wide: up to about so much a launch that costs the host less
// outweighs the library's larger tiles.
constexpr int64_t kFewTokens = 512;
constexpr int64_t kFewResults = 1 << 21;

bool is_short(const ExpandProblem& problem) {
  return problem.T <= kFewTokens && problem.T * problem.width * problem.blocks <= kFewResults;
}

Choice choose_way(const ExpandProblem& problem) {
  if (!problem.half) return Choice::impossible("operands are not of 16 bits");
  if (problem.width % kGroup != 0)
    return Choice::impossible("the block width is not a multiple of 8");
  if (problem.width > kMaxExtent) return Choice::impossible("a block is wider than 2^30");
  if (!problem.aligned) return Choice::impossible("rows are not 16-byte aligned");
  if (problem.drops) return Choice::own("dropout in the same pass");
  if (problem.bias) {
    return is_short(problem) ? Choice::library("few results: the base product adds the bias")
                             : Choice::own("the bias in the same pass");
  }
  if (problem.T > kFewTokens) return Choice::library("more than 512 tokens");
  if (!is_short(problem)) return Choice::library("more than 2^21 results");
  return Choice::own("aligned 16-bit operands, few results");
}

}  // namespace

ExpandSelection select_expand(const ExpandProblem& problem) {
  return {choose_way(problem), is_short(problem) ? ExpandTile::k64x64 : ExpandTile::k128x128};
}

}  // namespace gralora

#include "dispatch/select_weight_gradient.h"

namespace gralora {
namespace {

// Measured on an H100, layers 1024 to 14336 wide: up to so many tokens times tiles one launch is
// faster than a library product for each gradient and a rounding.
constexpr int64_t kShortWalk = 1 << 17;

}  // namespace

Choice select_weight_gradient(const WeightGradientProblem& problem) {
  if (!problem.half) return Choice::impossible("operands are not of 16 bits");
  if (!problem.aligned) return Choice::impossible("rows are not 16-byte aligned");
  if (problem.T > kMaxExtent) return Choice::impossible("more than 2^30 tokens");
  if (!problem.narrow) return Choice::impossible("a gradient is fp64");
  if (problem.T * problem.tiles > kShortWalk) {
    return Choice::library("more than 2^17 tokens times tiles");
  }
  return Choice::own("aligned 16-bit operands, a short walk");
}

}  // namespace gralora

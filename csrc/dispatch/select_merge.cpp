#include "dispatch/select_merge.h"

#include "kernels/merge_group.h"

namespace gralora {

std::string_view name_of(MergePath path) {
  switch (path) {
    case MergePath::kLibrary:
      return "library";
    case MergePath::kScalar:
      return "scalar";
    case MergePath::kVector:
      return "vector";
  }
  return "unknown";
}

MergeSelection select_merge(const MergeProblem& problem) {
  if (problem.wide_factors) {
    return {MergePath::kLibrary, false,
            "a factor is float64 and the weight is not: sums must be float64"};
  }
  const bool transposed = problem.column_stride != 1 && problem.row_stride == 1;
  if (problem.column_stride != 1 && !transposed) {
    return {MergePath::kLibrary, false, "neither axis of the weight has unit stride"};
  }
  const int64_t width = transposed ? problem.m : problem.n;
  const int64_t pitch = transposed ? problem.column_stride : problem.row_stride;
  if (width % kMergeGroup != 0) {
    return {MergePath::kScalar, transposed, "the block width is not a multiple of 8"};
  }
  if (pitch * problem.element_bytes % kMergeAlignment != 0) {
    return {MergePath::kScalar, transposed, "rows of the weight are not 16-byte aligned"};
  }
  if (problem.address % kMergeAlignment != 0) {
    return {MergePath::kScalar, transposed, "the weight is not 16-byte aligned"};
  }
  return {MergePath::kVector, transposed, "whole 16-byte aligned groups of 8 weights"};
}

}  // namespace gralora

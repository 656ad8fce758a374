// Which way a weight is merged: a pure function of what the call looks like, without torch and
// without a GPU, so that Python can print the choice and its reason (gralora._C.select_merge).
#pragma once

#include <cstdint>
#include <string_view>

namespace gralora {

/// A weight [k_out*m, k_in*n] as the merge sees it; strides in elements.
struct MergeProblem {
  int64_t m, n;                       // block height and width
  int64_t row_stride, column_stride;  // of the weight
  int64_t element_bytes;              // of the weight
  uint64_t address;                   // of the weight's first element
  bool wide_factors;                  // a factor is fp64 and the weight is not
};

enum class MergePath { kLibrary, kScalar, kVector };

struct MergeSelection {
  MergePath path;
  bool transposed;          // columns of the kernel are rows of the weight
  std::string_view reason;  // one clause, for people
};

std::string_view name_of(MergePath path);

MergeSelection select_merge(const MergeProblem& problem);

}  // namespace gralora

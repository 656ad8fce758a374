// The unit in which merge kernels read and write a weight; dispatch/select_merge.cpp asks whether a
// weight consists of such units, the kernels rely on it.
#pragma once

namespace gralora {

/// Consecutive weights that one thread owns in a row.
inline constexpr int kMergeGroup = 8;

/// Alignment in bytes of every group where accesses are vectors.
inline constexpr int kMergeAlignment = 16;

}  // namespace gralora

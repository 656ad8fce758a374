// What a chooser says about a kernel of gralora's own, and how a forced path overrides it.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace gralora {

/// Of an axis that the kernels count in 32 bits.
inline constexpr int64_t kMaxExtent = 1 << 30;

/// 16-bit elements in an aligned access.
inline constexpr int64_t kGroup = 8;

struct Choice {
  bool possible;            // the kernel can run
  bool kernel;              // and is the faster way; otherwise library calls
  std::string_view reason;  // one clause, for people

  static Choice impossible(std::string_view reason) { return {false, false, reason}; }
  static Choice library(std::string_view reason) { return {true, false, reason}; }
  static Choice own(std::string_view reason) { return {true, true, reason}; }
};

/// The way that all adapter products take while it is forced: library calls, or gralora's kernels.
/// Rounding and the exchange of blocks are kernels either way. kSm90 stands for the kernels of
/// compute capability 9.0a where a step has one, and for those of 8.0 elsewhere.
enum class ForcedPath { kNone, kAten, kSm80, kSm90 };

/// From the environment variable GRALORA_KERNEL at first, until it is set.
ForcedPath forced_path();
void set_forced_path(ForcedPath path);

/// "aten", "sm80", "sm90"; nothing for no forced path, or for a name that stands for none.
std::string_view name_of(ForcedPath path);
std::optional<ForcedPath> forced_path_named(std::string_view name);

}  // namespace gralora

#include "dispatch/choice.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace gralora {
namespace {

constexpr const char* kVariable = "GRALORA_KERNEL";

ForcedPath read_environment() {
  const char* const value = std::getenv(kVariable);
  if (value == nullptr || *value == '\0') return ForcedPath::kNone;
  if (const auto path = forced_path_named(value)) return *path;
  throw std::invalid_argument(std::string("gralora: the environment variable ") + kVariable +
                              " must be \"aten\", \"sm80\", \"sm90\" or unset, got \"" + value +
                              "\"");
}

std::atomic<ForcedPath>& forced() {
  static std::atomic<ForcedPath> path = read_environment();
  return path;
}

}  // namespace

ForcedPath forced_path() { return forced().load(std::memory_order_relaxed); }

void set_forced_path(ForcedPath path) { forced().store(path, std::memory_order_relaxed); }

std::string_view name_of(ForcedPath path) {
  switch (path) {
    case ForcedPath::kAten:
      return "aten";
    case ForcedPath::kSm80:
      return "sm80";
    case ForcedPath::kSm90:
      return "sm90";
    case ForcedPath::kNone:
      break;
  }
  return "";
}

std::optional<ForcedPath> forced_path_named(std::string_view name) {
  for (const ForcedPath path : {ForcedPath::kAten, ForcedPath::kSm80, ForcedPath::kSm90}) {
    if (name == name_of(path)) return path;
  }
  return std::nullopt;
}

}  // namespace gralora

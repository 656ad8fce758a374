#include "ops/saved_latents.h"

#include <atomic>

namespace gralora::ops {
namespace {

std::atomic<bool> latents_are_saved{true};

}  // namespace

bool saves_latents() { return latents_are_saved.load(std::memory_order_relaxed); }

void set_saves_latents(bool saves) { latents_are_saved.store(saves, std::memory_order_relaxed); }

}  // namespace gralora::ops

// The dropout mask of the checks: a state on the device, and kernels/philox.h's word on the host.
#pragma once

#include "kernels/dropout.h"
#include "support.h"

namespace gralora::check {

/// Of a tensor whose elements are numbered row by row.
class Mask {
 public:
  explicit Mask(double p) : rule(philox::make_dropout_rule(p)), state_(2) {
    state_.host = {-12345, (int64_t{1} << 40) + 7};
    state_.send();
  }
  DropoutSource source() const { return {state_.device(), rule}; }
  bool keeps(int64_t element) const {
    const philox::Words words = philox::generate(static_cast<uint64_t>(state_.host[0]),
                                                 static_cast<uint64_t>(state_.host[1]),
                                                 static_cast<uint64_t>(element / philox::kGroup));
    return words.number(static_cast<int>(element % philox::kGroup)) >= rule.threshold;
  }

  const philox::DropoutRule rule;

 private:
  Array<int64_t> state_;
};

}  // namespace gralora::check

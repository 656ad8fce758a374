// One warning where a CUDA tensor meets a build without CUDA kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace gralora::aten {

inline void notice_device([[maybe_unused]] const at::Tensor& tensor) {
#ifndef GRALORA_WITH_CUDA
  if (tensor.is_cuda()) {
    TORCH_WARN_ONCE(
        "gralora was built without its CUDA kernels, so CUDA tensors take slower library calls; "
        "`gralora info` says why and how to get them");
  }
#endif
}

}  // namespace gralora::aten

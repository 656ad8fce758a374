// The exchange of blocks on CUDA: tensors to plain parameters for kernels/exchange.cu.
#include "kernels/exchange.h"

#include <c10/cuda/CUDAStream.h>

#include "cuda/launch.h"
#include "cuda/steps.h"

namespace gralora::cuda {

void exchange(at::Tensor& latent, const at::Tensor& product) {
  const auto bytes = static_cast<int64_t>(latent.element_size());
  ExchangeParams params{};
  params.product = product.const_data_ptr();
  params.latent = latent.mutable_data_ptr();
  params.T = latent.size(1);
  params.inner = static_cast<int32_t>(product.size(0));
  params.outer = static_cast<int32_t>(latent.size(0));
  params.run = static_cast<int32_t>(latent.size(2) / product.size(0) * bytes);
  params.latent_plane = latent.stride(0) * bytes;
  params.latent_pitch = latent.stride(1) * bytes;
  check_launch("exchange", launch_exchange(params, c10::cuda::getCurrentCUDAStream()));
}

}  // namespace gralora::cuda

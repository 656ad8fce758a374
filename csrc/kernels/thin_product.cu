// The thin product's entries: the dtype picks the file that has its kernels.
#include "kernels/thin_product.cuh"

namespace gralora {
namespace {

cudaError_t launch(const ThinProductParams& params, const WeightGradientParams* sums,
                   cudaStream_t stream) {
  const ExpandParams& term = params.term;
  if (term.dropout.rng_state != nullptr || term.accumulate) return cudaErrorInvalidValue;
  if (term.T == 0 && sums == nullptr) return cudaSuccess;  // sums of nothing are zeros
  switch (term.type) {
    case ElementType::kBFloat16:
      return thin_product::launch_bf16(params, sums, stream);
    case ElementType::kFloat16:
      return thin_product::launch_fp16(params, sums, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace

cudaError_t launch_thin_product(const ThinProductParams& params, cudaStream_t stream) {
  return launch(params, nullptr, stream);
}

cudaError_t launch_thin_product_beside_sums(const ThinProductParams& params,
                                            const WeightGradientParams& sums, cudaStream_t stream) {
  if (sums.tile != GradientTile::k64x64 || sums.splits != 1 || sums.dropout.rng_state != nullptr) {
    return cudaErrorInvalidValue;
  }
  return launch(params, &sums, stream);
}

}  // namespace gralora

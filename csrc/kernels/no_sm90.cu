// Stands for the files *_sm90.cu in a build without code for compute capability 9.0a.
#include "kernels/extended_product.h"
#include "kernels/project_sm90.h"
#include "kernels/weight_gradient_sm90.h"

namespace gralora {

cudaError_t launch_project_sm90(const ProjectParams&, cudaStream_t) {
  return cudaErrorNotSupported;
}

cudaError_t launch_weight_gradient_sm90(const WeightGradientParams&, cudaStream_t) {
  return cudaErrorNotSupported;
}

cudaError_t launch_extended_product(const ExtendedProductParams&, cudaStream_t) {
  return cudaErrorNotSupported;
}

cudaError_t find_sm90_kernels(bool& run) {
  run = false;
  return cudaSuccess;
}

}  // namespace gralora

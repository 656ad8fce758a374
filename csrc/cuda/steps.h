// The steps of aten/'s compositions that have CUDA kernels.
#pragma once

#include "aten/steps.h"

namespace gralora::cuda {

/// latent [outer, T, inner*s] from the blocks of a library product [inner, T, outer*s].
void exchange(at::Tensor& latent, const at::Tensor& product);

void project(at::Tensor& latent, const aten::AdapterInput& input, const at::Tensor& factor,
             double scaling);

void expand(at::Tensor& rows, const aten::Latents& latents, const at::Tensor& grid_factor,
            const at::Tensor& plain_factor, bool overwrite);

void expand_dropped(at::Tensor& rows, const aten::Latents& latents, const at::Tensor& grid_factor,
                    const at::Tensor& plain_factor, const aten::Dropout& dropout);

bool expand_onto_bias(at::Tensor& rows, const aten::Latents& latents, const at::Tensor& grid_factor,
                      const at::Tensor& plain_factor, const at::Tensor& bias);

bool expand_with_base(at::Tensor& rows, const aten::BaseProduct& base, const aten::Latents& latents,
                      const at::Tensor& grid_factor, const at::Tensor& plain_factor,
                      const aten::Dropout& dropout, aten::TokenSums& sums);

bool project_with_base(at::Tensor& rows, const aten::BaseProduct& base, at::Tensor& latent,
                       at::TensorList factors, double scaling, const at::Tensor& grid_factor,
                       aten::TokenSums& sums);

bool expand_layers_with_base(c10::ArrayRef<aten::LayerOutput> outputs, const at::Tensor& input,
                             at::Tensor& latent, const at::Tensor& factor, double scaling);

bool project_beside_sums(at::Tensor& latent, const aten::AdapterInput& input,
                         const at::Tensor& factor, double scaling, const aten::TokenSums& sums);

bool expand_beside_sums(at::Tensor& rows, const aten::Latents& latents,
                        const at::Tensor& grid_factor, const at::Tensor& plain_factor,
                        const aten::TokenSums& sums, const aten::AdapterInput& input);

void sum_over_tokens(const aten::TokenSums& sums, const aten::AdapterInput& input);

void round(std::initializer_list<aten::Rounding> roundings);

void pack(std::initializer_list<aten::Rounding> factors);

inline constexpr aten::Steps kKernelSteps{project,
                                          project_beside_sums,
                                          expand,
                                          expand_dropped,
                                          expand_onto_bias,
                                          expand_with_base,
                                          project_with_base,
                                          expand_layers_with_base,
                                          expand_beside_sums,
                                          sum_over_tokens,
                                          round,
                                          pack};

}  // namespace gralora::cuda

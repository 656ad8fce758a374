// A projection between tensors and the kernel: what the chooser and the launcher are told.
#pragma once

#include "aten/steps.h"
#include "cuda/launch.h"
#include "dispatch/select_project.h"
#include "kernels/project.h"

namespace gralora::cuda {

/// A projection of `input` by `factor` [inner, width, columns] into `latent`.
struct Projection {
  const at::Tensor& latent;
  const aten::AdapterInput& input;
  const at::Tensor& factor;
  double scaling;

  ProjectSelection select() const;

  /// `dropout` is the input's, alive until the launch.
  ProjectParams describe(const ProjectSelection& selection, const DropoutArgument& dropout) const;
};

}  // namespace gralora::cuda

// gralora._C: what was built, the kernel chooser, and the operators as plain functions
// (python/calls.cpp). Loading it fills the dispatcher (ops/schema.cpp), which every tensor passes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "dispatch/choice.h"
#include "dispatch/select_expand.h"
#include "dispatch/select_merge.h"
#include "dispatch/select_project.h"
#include "dispatch/select_weight_gradient.h"
#include "python/calls.h"

namespace py = pybind11;

namespace {

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> items;
  size_t start = 0;
  while (start < list.size()) {
    const size_t end = std::min(list.find(',', start), list.size());
    items.push_back(list.substr(start, end - start));
    start = end + 1;
  }
  return items;
}

py::dict build_info() {
  py::dict info;
  info["version"] = GRALORA_VERSION;
  info["torch_version"] = GRALORA_TORCH_VERSION;
  info["cuda_version"] = GRALORA_CUDA_VERSION;
  info["cuda_architectures"] = split(GRALORA_CUDA_ARCHITECTURES);
  info["cuda_ptx"] = split(GRALORA_CUDA_PTX);
#ifdef GRALORA_WITH_CUDA
  info["cuda_built"] = true;
#else
  info["cuda_built"] = false;
#endif
  return info;
}

py::dict select_merge(int64_t m, int64_t n, int64_t row_stride, int64_t column_stride,
                      int64_t element_bytes, uint64_t address, bool wide_factors) {
  const auto selection = gralora::select_merge({.m = m,
                                                .n = n,
                                                .row_stride = row_stride,
                                                .column_stride = column_stride,
                                                .element_bytes = element_bytes,
                                                .address = address,
                                                .wide_factors = wide_factors});
  py::dict choice;
  choice["path"] = std::string(gralora::name_of(selection.path));
  choice["transposed"] = selection.transposed;
  choice["reason"] = std::string(selection.reason);
  return choice;
}

py::dict describe(const gralora::Choice& choice) {
  py::dict result;
  result["path"] = choice.kernel ? "kernel" : "library";
  result["possible"] = choice.possible;
  result["reason"] = std::string(choice.reason);
  return result;
}

py::dict select_project(int64_t T, int64_t width, int64_t columns, int64_t inner, int64_t outer,
                        std::optional<int64_t> x_row_stride,
                        std::optional<int64_t> factor_block_stride, bool factor_transposed,
                        uint64_t address, bool half, bool drops, int processors) {
  const auto selection =
      gralora::select_project({.T = T,
                               .inner = inner,
                               .outer = outer,
                               .width = width,
                               .columns = columns,
                               .x_row_stride = x_row_stride.value_or(inner * width),
                               .factor_block_stride = factor_block_stride.value_or(width * columns),
                               .factor_width_stride = factor_transposed ? 1 : columns,
                               .factor_column_stride = factor_transposed ? width : 1,
                               .x_address = address,
                               .factor_address = address,
                               .half = half,
                               .aligned_latent = true,
                               .drops = drops,
                               .processors = processors});
  const auto tile = gralora::size_of(selection.tile);
  py::dict result = describe(selection.choice);
  result["tile"] = py::make_tuple(tile.tokens, tile.columns);
  return result;
}

py::dict select_expand(int64_t T, int64_t width, int64_t blocks, bool half, bool aligned, bool bias,
                       bool drops) {
  const auto selection = gralora::select_expand({.T = T,
                                                 .width = width,
                                                 .blocks = blocks,
                                                 .half = half,
                                                 .aligned = aligned,
                                                 .bias = bias,
                                                 .drops = drops});
  py::dict result = describe(selection.choice);
  const auto tile = gralora::size_of(selection.tile);
  result["tile"] = py::make_tuple(tile.tokens, tile.columns);
  return result;
}

py::dict select_weight_gradient(int64_t T,
                                const std::vector<std::tuple<int64_t, int64_t, int64_t>>& gradients,
                                bool half, bool aligned, bool narrow, bool drops, int processors) {
  gralora::WeightGradientProblem problem{.T = T,
                                         .gradients = {},
                                         .half = half,
                                         .aligned = aligned,
                                         .narrow = narrow,
                                         .drops = drops,
                                         .processors = processors};
  if (gradients.size() > problem.gradients.size()) {
    throw py::value_error("a call has at most four gradients, got " +
                          std::to_string(gradients.size()));
  }
  for (size_t i = 0; i < gradients.size(); ++i) {
    const auto& [blocks, width, rank] = gradients[i];
    problem.gradients[i] = {blocks, width, rank};
  }
  const auto selection = gralora::select_weight_gradient(problem);
  const auto tile = gralora::size_of(selection.tile);
  py::dict result = describe(selection.choice);
  result["tile"] = py::make_tuple(tile.activations, tile.latents);
  result["splits"] = selection.splits;
  return result;
}

std::optional<std::string> forced_path() {
  const auto path = gralora::forced_path();
  if (path == gralora::ForcedPath::kNone) return std::nullopt;
  return std::string(gralora::name_of(path));
}

void force_path(const std::optional<std::string>& name) {
  if (!name) return gralora::set_forced_path(gralora::ForcedPath::kNone);
  const auto path = gralora::forced_path_named(*name);
  if (!path) {
    throw py::value_error("path must be \"aten\", \"sm80\" or None, got \"" + *name + "\"");
  }
  gralora::set_forced_path(*path);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of gralora: loading it registers torch.ops.gralora.*";
  m.def("build_info", &build_info,
        "What this module was built from: version, torch_version, cuda_built, cuda_version, "
        "cuda_architectures (machine code), cuda_ptx (code that newer chips compile).");
  m.def("select_merge", &select_merge, py::kw_only(), py::arg("m"), py::arg("n"),
        py::arg("row_stride"), py::arg("column_stride") = 1, py::arg("element_bytes") = 2,
        py::arg("address") = 0, py::arg("wide_factors") = false,
        "Which kernel merges an adapter with blocks [m, n] into a weight of these strides (in "
        "elements), and why: {'path': 'vector' | 'scalar' | 'library', 'transposed', 'reason'}.");
  m.def(
      "select_project", &select_project, py::kw_only(), py::arg("T"), py::arg("width"),
      py::arg("columns"), py::arg("inner") = 2, py::arg("outer") = 2,
      py::arg("x_row_stride") = py::none(), py::arg("factor_block_stride") = py::none(),
      py::arg("factor_transposed") = false, py::arg("address") = 0, py::arg("half") = true,
      py::arg("drops") = false, py::arg("processors") = 132,
      "How an input [T, inner*width] meets a factor [inner, width, columns], or its transpose, to "
      "become a latent [outer, T, inner*columns/outer] on a GPU with so many multiprocessors: "
      "{'path': 'kernel' | 'library', 'possible': whether the kernel can run, 'reason', 'tile': "
      "(tokens, columns)}.");
  m.def("select_expand", &select_expand, py::kw_only(), py::arg("T"), py::arg("width"),
        py::arg("blocks") = 2, py::arg("half") = true, py::arg("aligned") = true,
        py::arg("bias") = false, py::arg("drops") = false,
        "How an adapter's term is written into [T, blocks*width]: {'path', 'possible', 'reason', "
        "'tile': (tokens, columns)}.");
  m.def("select_weight_gradient", &select_weight_gradient, py::kw_only(), py::arg("T"),
        py::arg("gradients"), py::arg("half") = true, py::arg("aligned") = true,
        py::arg("narrow") = true, py::arg("drops") = false, py::arg("processors") = 132,
        "How the factors' gradients, each (blocks, width, rank), are summed over T tokens: "
        "{'path', 'possible', 'reason', 'tile': (activations, latents), 'splits': of the tokens}.");
  m.def("forced_path", &forced_path, "The forced path, or None.");
  m.def("force_path", &force_path, py::arg("name"),
        "Force the products of all adapters to \"aten\", library calls, or to \"sm80\", gralora's "
        "kernels; None leaves the choice to the choosers.");
  gralora::python::add_calls(m);
}

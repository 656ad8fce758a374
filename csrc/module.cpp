// gralora._C: what was built, and the kernel chooser. Tensors never come through here: they go
// through the dispatcher (ops/schema.cpp), which loading this module fills.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "dispatch/select_merge.h"
#include "dispatch/select_project.h"

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

py::dict select_project(int64_t T, int64_t width, int64_t columns, int64_t inner, int64_t outer,
                        std::optional<int64_t> x_row_stride, bool factor_transposed,
                        uint64_t address, bool half, int processors) {
  const auto selection =
      gralora::select_project({.T = T,
                               .inner = inner,
                               .outer = outer,
                               .width = width,
                               .columns = columns,
                               .x_row_stride = x_row_stride.value_or(inner * width),
                               .factor_width_stride = factor_transposed ? 1 : columns,
                               .factor_column_stride = factor_transposed ? width : 1,
                               .x_address = address,
                               .factor_address = address,
                               .half = half,
                               .processors = processors});
  const auto tile = gralora::size_of(selection.tile);
  py::dict choice;
  choice["path"] = selection.kernel ? "kernel" : "library";
  choice["tile"] = selection.kernel ? py::object(py::make_tuple(tile.tokens, tile.columns))
                                    : py::object(py::none());
  choice["reason"] = std::string(selection.reason);
  return choice;
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
      py::arg("x_row_stride") = py::none(), py::arg("factor_transposed") = false,
      py::arg("address") = 0, py::arg("half") = true, py::arg("processors") = 132,
      "How an input [T, inner*width] meets a factor [inner, width, columns], or its transpose, to "
      "become a latent [outer, T, inner*columns/outer] "
      "on a GPU with so many multiprocessors, and why: {'path': 'kernel' | 'library', 'tile': "
      "(tokens, columns) | None, 'reason'}.");
}

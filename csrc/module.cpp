// gralora._C: what was built, the choosers of kernels (python/choosers.cpp), and the operators as
// plain functions (python/calls.cpp). Loading it fills the dispatcher (ops/schema.cpp), which every
// tensor passes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <vector>

#include "python/calls.h"
#include "python/choosers.h"

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

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of gralora: loading it registers torch.ops.gralora.*";
  m.def("build_info", &build_info,
        "What this module was built from: version, torch_version, cuda_built, cuda_version, "
        "cuda_architectures (machine code), cuda_ptx (code that newer chips compile).");
  gralora::python::add_choosers(m);
  gralora::python::add_calls(m);
}

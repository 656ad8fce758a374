// What dispatch/ decides, for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace gralora::python {

void add_choosers(pybind11::module_& module);

}  // namespace gralora::python

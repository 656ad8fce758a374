// gralora._C.linear and gralora._C.add: the operators of ops/schema.cpp as plain Python functions.
#pragma once

#include <pybind11/pybind11.h>

namespace gralora::python {

/// Adds `linear` and `add` to gralora._C.
void add_calls(pybind11::module_& module);

}  // namespace gralora::python

// The two operators that layers call, as plain Python functions: torch.ops matches a call's
// arguments with the schema on every call, which takes as long as a third of a small layer. Plain
// tensors go to the dispatcher (ops/operators.cpp) without it. Whatever may want to see torch.ops
// itself gets it: tensor subclasses, __torch_function__ modes, torch.jit.trace.
#include "python/calls.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/TracerMode.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include "ops/operators.h"

namespace gralora::python {
namespace {

/// A call's arguments: tensors first, as many as `Tensors` says, the last of them optional, then
/// scaling, dropout_p and training.
template <size_t kRequired, size_t kTensors>
class Arguments {
 public:
  static constexpr size_t kCount = kTensors + 3;

  explicit Arguments(PyObject* const* objects) : objects_(objects) {}

  /// Whether nothing but the dispatcher needs to see the call.
  bool are_plain() const {
    for (size_t i = 0; i < kTensors; ++i) {
      const bool absent = i >= kRequired && objects_[i] == Py_None;
      if (!absent && !THPVariable_CheckExact(objects_[i])) return false;
    }
    return PyFloat_CheckExact(objects_[kTensors]) && PyFloat_CheckExact(objects_[kTensors + 1]) &&
           PyBool_Check(objects_[kTensors + 2]) && !at::impl::torch_function_mode_enabled() &&
           !at::tracer::impl::is_dispatch_enabled();
  }

  const at::Tensor& tensor(size_t i) const { return THPVariable_Unpack(objects_[i]); }
  OptionalTensor optional(size_t i) const {
    return objects_[i] == Py_None ? OptionalTensor() : OptionalTensor(tensor(i));
  }
  double scaling() const { return PyFloat_AS_DOUBLE(objects_[kTensors]); }
  double dropout_p() const { return PyFloat_AS_DOUBLE(objects_[kTensors + 1]); }
  bool training() const { return objects_[kTensors + 2] == Py_True; }

 private:
  PyObject* const* objects_;
};

using LinearArguments = Arguments<2, 7>;  // x, weight; bias, A, B, lora_A, lora_B
using AddArguments = Arguments<2, 6>;     // y, x; A, B, lora_A, lora_B

/// torch.ops.gralora.<name> with the same arguments.
template <class Arguments>
PyObject* call_operator(const char* name, PyObject* const* objects) {
  constexpr size_t kTensors = Arguments::kCount - 3;
  py::tuple tensors(kTensors);
  for (size_t i = 0; i < kTensors; ++i) tensors[i] = py::handle(objects[i]);
  const py::object op = py::module_::import("torch").attr("ops").attr("gralora").attr(name);
  return op
      .attr("default")(*tensors, py::arg("scaling") = py::handle(objects[kTensors]),
                       py::arg("dropout_p") = py::handle(objects[kTensors + 1]),
                       py::arg("training") = py::handle(objects[kTensors + 2]))
      .release()
      .ptr();
}

bool check_count(const char* name, Py_ssize_t count, size_t expected) {
  if (static_cast<size_t>(count) == expected) return true;
  PyErr_Format(PyExc_TypeError, "gralora._C.%s: needs %zu positional arguments, got %zd", name,
               expected, count);
  return false;
}

at::Tensor run(const LinearArguments& args) {
  const OptionalTensor bias = args.optional(2), A = args.optional(3), B = args.optional(4);
  const OptionalTensor lora_A = args.optional(5), lora_B = args.optional(6);
  const py::gil_scoped_release no_gil;
  return ops::linear(args.tensor(0), args.tensor(1), bias, A, B, lora_A, lora_B, args.scaling(),
                     args.dropout_p(), args.training());
}

at::Tensor run(const AddArguments& args) {
  const OptionalTensor A = args.optional(2), B = args.optional(3);
  const OptionalTensor lora_A = args.optional(4), lora_B = args.optional(5);
  const py::gil_scoped_release no_gil;
  return ops::add(args.tensor(0), args.tensor(1), A, B, lora_A, lora_B, args.scaling(),
                  args.dropout_p(), args.training());
}

template <class Arguments>
PyObject* call(const char* name, PyObject* const* objects, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (!check_count(name, count, Arguments::kCount)) return nullptr;
  const Arguments arguments(objects);
  if (!arguments.are_plain()) return call_operator<Arguments>(name, objects);
  return THPVariable_Wrap(run(arguments));
  END_HANDLE_TH_ERRORS
}

PyObject* linear(PyObject*, PyObject* const* objects, Py_ssize_t count) {
  return call<LinearArguments>("linear", objects, count);
}

PyObject* add(PyObject*, PyObject* const* objects, Py_ssize_t count) {
  return call<AddArguments>("add", objects, count);
}

template <class Function>
PyCFunction as_method(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"linear", as_method(linear), METH_FASTCALL,
     "linear(x, weight, bias, A, B, lora_A, lora_B, scaling, dropout_p, training): "
     "torch.ops.gralora.linear, for eager calls."},
    {"add", as_method(add), METH_FASTCALL,
     "add(y, x, A, B, lora_A, lora_B, scaling, dropout_p, training): torch.ops.gralora.add, for "
     "eager calls."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void add_calls(pybind11::module_& module) {
  if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace gralora::python

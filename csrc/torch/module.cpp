// What Python asks of the library that involves no tensor.

// The pybind11 that torch before 2.13 bundles refuses this macro, and nothing here uses torch.
#undef TORCH_TARGET_VERSION
#include <pybind11/pybind11.h>

#include <string>

#include "core/isa/dispatch.h"
#include "core/product/packed_weight.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of stompp_kernels; importing it registers torch.ops.stompp.";

  m.def("implementations", [] {
    size_t count = 0;
    const stompp::Implementation* const* list = stompp::implementations(&count);
    py::list result;
    for (size_t i = 0; i < count; ++i) {
      const char* missing = list[i]->missing();
      result.append(py::make_tuple(list[i]->name, list[i]->description, missing == nullptr ? "" : missing));
    }
    return result;
  });
  m.def("active_implementation", []() -> py::object {
    const stompp::Implementation* active = stompp::active_implementation();
    return active == nullptr ? py::object(py::none()) : py::str(active->name);
  });
  m.def("select_implementation", [](const std::string& name) {
    const stompp::Status status = stompp::select_implementation(name.c_str());
    if (!status.is_ok()) throw py::value_error(status.message());
  });
  m.def("packed_bytes",
        [](int64_t out_channels, int64_t in_channels, int64_t kernel_h, int64_t kernel_w, int64_t groups) {
          const stompp::WeightShape shape = {out_channels, in_channels, kernel_h, kernel_w, groups};
          const stompp::Status status = stompp::check_shape(shape);
          if (!status.is_ok()) throw py::value_error(status.message());
          const stompp::Implementation* active = stompp::active_implementation();
          if (active == nullptr) throw py::value_error(stompp::no_implementation().message());
          return stompp::packed_bytes(shape, active->product->layout);
        });
  m.def("packed_binary_weight_bytes",
        [](int64_t out_channels, int64_t in_channels, int64_t kernel_h, int64_t kernel_w, int64_t groups) {
          const stompp::WeightShape shape = {out_channels, in_channels, kernel_h, kernel_w, groups};
          const stompp::Status status = stompp::check_shape(shape);
          if (!status.is_ok()) throw py::value_error(status.message());
          return stompp::packed_bytes(shape, stompp::kFloatInputLayout);
        });
  m.attr("compiler") = __VERSION__;
}

// The torch-free core for Python programs without torch: NumPy arrays in, NumPy arrays out. Work runs in the caller's
// thread, without the interpreter's lock.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "core/isa/dispatch.h"
#include "core/product/bconv2d.h"
#include "core/product/bgemm.h"
#include "core/signs/pack.h"

namespace py = pybind11;

namespace stompp::numpy {
namespace {

using Words = py::array_t<int32_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;
using Shape = std::vector<py::ssize_t>;
using Pair = std::array<int64_t, 2>;

void check(bool condition, const std::string& message) {
  if (!condition) throw py::value_error(message);
}

void check(const Status& status) { check(status.is_ok(), status.message()); }

// Runs what touches no object of Python's without the interpreter's lock.
template <class F>
void run(const F& f) {
  const auto unlocked = [&f] {
    const py::gil_scoped_release release;
    return f();
  };
  check(unlocked());
}

Shape shape_of(const py::array& array) { return Shape(array.shape(), array.shape() + array.ndim()); }

std::string text(const Shape& shape) { return py::str(py::cast(shape)); }

FloatType float_type(const py::array& x, const char* argument) {
  if (x.dtype().is(py::dtype::of<float>())) return FloatType::kFloat32;
  if (x.dtype().kind() == 'f' && x.itemsize() == 2) return FloatType::kFloat16;
  throw py::type_error(std::string(argument) + " must be float32 or float16, got " + std::string(py::str(x.dtype())));
}

const uint32_t* words_of(const Words& array) { return reinterpret_cast<const uint32_t*>(array.data()); }
uint32_t* words_of(Words& array) { return reinterpret_cast<uint32_t*>(array.mutable_data()); }

Words pack_signs(const py::array& x) {
  check(x.ndim() >= 1 && x.shape(x.ndim() - 1) >= 1,
        "x must have a last dimension of at least 1, got shape " + text(shape_of(x)));
  const FloatType type = float_type(x, "x");
  const py::array dense = py::array::ensure(x, py::array::c_style);
  Shape shape = shape_of(x);
  const int64_t K = shape.back(), rows = x.size() / K;
  shape.back() = words_for(K);
  Words words(shape);
  const void* from = dense.data();
  uint32_t* out = words_of(words);
  run([&] { return stompp::pack_signs(from, type, rows, K, {}, out, kThisThread); });
  return words;
}

Floats unpack_signs(const Words& words, int64_t K) {
  Shape shape = shape_of(words);
  check(!shape.empty() && K >= 1 && shape.back() == words_for(K),
        "words must have ceil(K / 32) words in their last dimension for K = " + std::to_string(K) + ", got shape " +
            text(shape));
  const int64_t rows = words.size() / shape.back();
  shape.back() = K;
  Floats out(shape);
  check(stompp::unpack_signs(words_of(words), rows, K, out.mutable_data(), FloatType::kFloat32, kThisThread));
  return out;
}

// A weight in the order that the active implementation reads.
struct Weight {
  WeightShape shape;
  std::vector<uint8_t> data;

  PackedWeight view() const {
    PackedWeight packed;
    check(view_packed(data.data(), static_cast<int64_t>(data.size()), shape, &packed));
    return packed;
  }
};

Weight pack_weight(const py::array& w, int64_t groups) {
  check(w.ndim() == 2 || w.ndim() == 4, "w must be [N, K] or [O, I/groups, kh, kw], got shape " + text(shape_of(w)));
  const bool matrix = w.ndim() == 2;
  check(!matrix || groups == 1, "groups must be 1 for a matrix, got " + std::to_string(groups));
  Weight weight = {{w.shape(0), w.shape(1), matrix ? 1 : w.shape(2), matrix ? 1 : w.shape(3), groups}, {}};
  check(check_shape(weight.shape));
  const Implementation* active = active_implementation();
  if (active == nullptr) check(no_implementation());
  const Words words = pack_signs(matrix ? w : py::array(w.attr("transpose")(0, 2, 3, 1)));
  weight.data.resize(static_cast<size_t>(packed_bytes(weight.shape, active->product->layout)));
  check(pack_weight_words(words_of(words), weight.shape, active->product->layout, weight.data.data(), kThisThread));
  return weight;
}

// Results of a product: int32, or with thresholds one bit each, 1 where the sum is below its threshold.
struct Output {
  Output(Shape shape, const WeightShape& weight, const std::optional<Words>& thresholds) : thresholds_(thresholds) {
    const int64_t N = weight.out_channels;
    check(!thresholds || shape_of(*thresholds) == Shape{N},
          "thresholds must have shape [" + std::to_string(N) + "], as the weight has outputs");
    shape.push_back(thresholds ? words_for(N) : N);
    values = Words(shape);
    epilogue.N = N;
    epilogue.out = values.mutable_data();
    if (!thresholds) return;
    flips_.resize(static_cast<size_t>(words_for(N)));
    epilogue.kind = Epilogue::Kind::kThreshold;
    epilogue.thresholds = thresholds_->data();
    epilogue.flip_words = flips_.data();
  }

  Words values;
  Epilogue epilogue;

 private:
  std::optional<Words> thresholds_;
  std::vector<uint32_t> flips_;
};

Words bgemm(const Words& a, const Weight& weight, const std::optional<Words>& thresholds) {
  Shape shape = shape_of(a);
  check(!shape.empty() && weight.shape.taps() == 1 && weight.shape.groups == 1 &&
            shape.back() == words_for(weight.shape.K()),
        "a must have the words of the weight's K = " + std::to_string(weight.shape.K()) +
            " in its last dimension, and the weight be a matrix; got shape " + text(shape));
  const int64_t M = a.size() / shape.back();
  shape.pop_back();
  Output output(shape, weight.shape, thresholds);
  const PackedWeight packed = weight.view();
  run([&] { return stompp::bgemm(words_of(a), M, packed, output.epilogue, kThisThread); });
  return output.values;
}

Words bconv2d(const Words& x, const Weight& weight, Pair stride, Pair padding, Pair dilation, int padding_value,
              const std::optional<Words>& thresholds) {
  const int64_t channels = weight.shape.in_channels * weight.shape.groups;
  check(x.ndim() == 4 && x.shape(3) == words_for(channels),
        "x must be [N, H, W, ceil(C / 32)] words of C = " + std::to_string(channels) + " channels, got shape " +
            text(shape_of(x)));
  const Conv2dShape shape = {x.shape(0), x.shape(1), x.shape(2),  channels,    stride[0],    stride[1],
                             padding[0], padding[1], dilation[0], dilation[1], padding_value};
  check(check_conv2d(shape, weight.shape));
  Output output({x.shape(0), shape.out_height(weight.shape), shape.out_width(weight.shape)}, weight.shape, thresholds);
  const PackedWeight packed = weight.view();
  run([&] { return stompp::bconv2d(words_of(x), shape, packed, output.epilogue, kThisThread); });
  return output.values;
}

std::vector<std::array<std::string, 3>> list_implementations() {
  size_t count = 0;
  const Implementation* const* list = implementations(&count);
  std::vector<std::array<std::string, 3>> found;
  for (size_t i = 0; i < count; ++i) {
    const char* missing = list[i]->missing();
    found.push_back({list[i]->name, list[i]->description, missing == nullptr ? "" : missing});
  }
  return found;
}

std::optional<std::string> active_name() {
  const Implementation* active = active_implementation();
  return active == nullptr ? std::nullopt : std::optional<std::string>(active->name);
}

PYBIND11_MODULE(_core, m) {
  using namespace py::literals;
  m.def("implementations", &list_implementations,
        "Returns (name, description, why it cannot run here or \"\") of each implementation, best first.");
  m.def("active_implementation", &active_name, "Returns the name of the one that runs.");
  m.def(
      "select_implementation", [](const std::string& name) { check(select_implementation(name.c_str())); }, "name"_a,
      "Forces an implementation for the whole process; \"\" goes back to the best.");
  m.def("pack_signs", &pack_signs, "x"_a.noconvert(),
        "Packs the signs of float32 or float16 [..., K] into int32 words [..., ceil(K / 32)].");
  m.def("unpack_signs", &unpack_signs, "words"_a.noconvert(), "K"_a, "Does the inverse, to +1 and -1 of float32.");
  py::class_<Weight>(m, "PackedWeight", "A weight in the order that the implementation active at its packing reads.")
      .def_property_readonly("nbytes", [](const Weight& weight) { return weight.data.size(); });
  m.def("pack_weight", &pack_weight, "w"_a.noconvert(), "groups"_a = 1,
        "Packs the signs of a matrix [N, K], or of a kernel [O, I/groups, kh, kw].");
  m.def("bgemm", &bgemm, "a"_a.noconvert(), "weight"_a, py::kw_only(), "thresholds"_a.noconvert() = py::none(),
        "Multiplies packed rows [..., ceil(K / 32)] with a weight: int32 [..., N], or with int32 thresholds [N] the "
        "words whose bit n is 1 where sum n is below threshold n.");
  m.def("bconv2d", &bconv2d, "x"_a.noconvert(), "weight"_a, py::kw_only(), "stride"_a = Pair{1, 1},
        "padding"_a = Pair{0, 0}, "dilation"_a = Pair{1, 1}, "padding_value"_a = 0,
        "thresholds"_a.noconvert() = py::none(),
        "Convolves packed images [N, H, W, ceil(C / 32)] with a kernel: int32 [N, H', W', O], or words as bgemm does.");
}

}  // namespace
}  // namespace stompp::numpy

#include "runtime/file/container.h"

#include <algorithm>

#include "runtime/file/json.h"
#include "runtime/file/sha256.h"

namespace stompp::runtime {
namespace {

constexpr uint64_t kMostHeaderBytes = 64 << 20;
constexpr int64_t kMostElements = int64_t{1} << 56;

struct TypeName {
  const char *name, *torch;
  int64_t bytes;
  Tensor::Type type;
};
constexpr TypeName kTypes[] = {
    {"F32", "torch.float32", 4, Tensor::Type::kFloat32}, {"I32", "torch.int32", 4, Tensor::Type::kInt32},
    {"I64", "torch.int64", 8, Tensor::Type::kInt64},     {"F64", "torch.float64", 8, Tensor::Type::kOther},
    {"F16", "torch.float16", 2, Tensor::Type::kOther},   {"BF16", "torch.bfloat16", 2, Tensor::Type::kOther},
    {"I16", "torch.int16", 2, Tensor::Type::kOther},     {"I8", "torch.int8", 1, Tensor::Type::kOther},
    {"U8", "torch.uint8", 1, Tensor::Type::kOther},      {"BOOL", "torch.bool", 1, Tensor::Type::kOther}};

// Where a tensor's bytes begin and end, from the first tensor's on.
struct Place {
  int64_t begin, end;
};

Outcome read_tensor(const std::string& name, const Json& entry, Tensor* tensor, Place* place) {
  const std::string which = "tensor " + shown(name);
  if (!entry.has_keys({"dtype", "shape", "data_offsets"}))
    return bad_file(which + " must have dtype, shape and data_offsets");
  const Json &shape = *entry.find("shape"), &offsets = *entry.find("data_offsets");
  const auto type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                 [&](const TypeName& t) { return entry.find("dtype")->is_text(t.name); });
  if (type == std::end(kTypes)) return bad_file(which + " has an unknown dtype");
  const auto is_size = [](const Json& value) { return value.is(Json::Kind::kInteger) && value.integer >= 0; };
  if (!shape.is(Json::Kind::kList) || !std::all_of(shape.items.begin(), shape.items.end(), is_size))
    return bad_file(which + " has a shape that is no list of sizes");
  int64_t elements = 1;
  for (const Json& size : shape.items) {
    const bool empty = size.integer == 0 && shape.items.size() > 1;
    if (empty || (size.integer > 0 && elements > kMostElements / size.integer))
      return bad_file(which + " is empty or too large");
    elements *= size.integer;
    tensor->shape.push_back(size.integer);
  }
  if (!offsets.is(Json::Kind::kList) || offsets.items.size() != 2 || !is_size(offsets.items[0]) ||
      !is_size(offsets.items[1]))
    return bad_file(which + " has data_offsets that are no two numbers");
  *place = {offsets.items[0].integer, offsets.items[1].integer};
  tensor->name = name;
  tensor->type = type->type;
  tensor->type_name = type->torch;
  tensor->bytes = elements * type->bytes;
  if (place->end < place->begin || place->end - place->begin != tensor->bytes)
    return bad_file(which + " has other bytes than its shape asks for");
  return {};
}

// Reads the header's tensors, which must lie side by side and fill the file.
Outcome read_tensors(const Json& header, const uint8_t* data, int64_t size, std::vector<Tensor>* tensors) {
  std::vector<Place> places;
  for (size_t i = 0; i < header.keys.size(); ++i) {
    if (header.keys[i] == "__metadata__") continue;
    STOMPP_TRY(read_tensor(header.keys[i], header.items[i], &tensors->emplace_back(), &places.emplace_back()));
    if (places.back().end > size) return bad_file("tensor " + shown(header.keys[i]) + " reaches beyond the file");
    tensors->back().data = data + places.back().begin;
  }
  std::sort(places.begin(), places.end(),
            [](const Place& a, const Place& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
  int64_t end = 0;
  for (const Place& place : places) {
    if (place.begin != end) return bad_file("there are gaps between tensors");
    end = place.end;
  }
  if (end != size) return bad_file("the file has bytes that no tensor has");
  std::sort(tensors->begin(), tensors->end(), [](const Tensor& a, const Tensor& b) { return a.name < b.name; });
  return {};
}

std::string digest(const Container& container) {
  Sha256 sha;
  sha.update(container.structure);
  for (const Tensor& tensor : container.tensors) {
    std::string text = tensor.name + " " + tensor.type_name + " [";
    for (size_t i = 0; i < tensor.shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(tensor.shape[i]);
    sha.update(text + "]");
    sha.update(tensor.data, static_cast<size_t>(tensor.bytes));
  }
  return sha.hex();
}

}  // namespace

Outcome read_container(const uint8_t* bytes, size_t size, Container* container) {
  uint64_t length = 0;
  for (size_t i = 0; i < 8 && size >= 8; ++i) length |= uint64_t{bytes[i]} << (8 * i);
  if (size < 8 || length > kMostHeaderBytes || length > size - 8)
    return bad_file("damaged or no safetensors file: it is cut short, or its header is longer than 64 MiB");
  const std::string_view text(reinterpret_cast<const char*>(bytes) + 8, static_cast<size_t>(length));
  if (text.empty() || text[0] != '{') return bad_file("damaged or no safetensors file: its header is no object");
  Json header;
  STOMPP_TRY(parse_json(text, false, &header));
  const Json* metadata = header.find("__metadata__");
  const auto entry = [&](const char* key) {
    const Json* found = metadata == nullptr ? nullptr : metadata->find(key);
    return found != nullptr && found->is(Json::Kind::kText) ? found->text : std::string();
  };
  if (entry("format") != "stompp_kernels.packed") return bad_file("no packed network: format is another one");
  const std::string version = entry("version");
  if (version != "1" && version != "2" && version != "3")
    return bad_file("version " + shown(version) + " is none that can be read, which are 1, 2 and 3");
  container->version = version[0] - '0';
  container->structure = entry("structure");
  const size_t start = 8 + static_cast<size_t>(length);
  STOMPP_TRY(read_tensors(header, bytes + start, static_cast<int64_t>(size - start), &container->tensors));
  if (digest(*container) != entry("sha256")) return bad_file("altered: the checksum does not match the contents");
  return {};
}

}  // namespace stompp::runtime

// The safetensors file around a packed network: metadata, checksum and tensors; see docs/file-format.md.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/outcome.h"

namespace stompp::runtime {

struct Tensor {
  enum class Type { kFloat32, kInt32, kInt64, kOther };

  std::string name;
  Type type = Type::kOther;
  std::string type_name;  // PyTorch's, "torch.float32"
  std::vector<int64_t> shape;
  const uint8_t* data = nullptr;  // row-major, at any address
  int64_t bytes = 0;
};

struct Container {
  int version = 0;
  std::string structure;        // JSON
  std::vector<Tensor> tensors;  // in order of names; their data lie in the file's bytes
};

// Reads a whole file. One of which more than half are holes is refused before it takes memory.
Outcome read_file(const char* path, std::vector<uint8_t>* bytes);

// Checks that every byte is where the header says, and the checksum.
Outcome read_container(const uint8_t* bytes, size_t size, Container* container);

}  // namespace stompp::runtime

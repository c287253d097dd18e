// Reads arrays of float32 that numpy.save wrote, and images of PGM and PPM (P5 and P6).
#pragma once

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "runtime/stompp.h"

struct Array {
  stompp_shape shape = {};
  std::vector<float> values;
};

// Takes the numbers of "(1, 3, 32, 32)" behind `text`.
inline bool parse_sizes(const char* text, stompp_shape* shape) {
  for (char* end; *text != ')' && *text != '\0'; text = end) {
    const long long size = std::strtoll(text, &end, 10);
    if (end == text || size < 1 || size > (1LL << 31) || shape->rank == STOMPP_MAX_RANK) return false;
    shape->sizes[shape->rank++] = size;
    end += std::strspn(end, ", ");
  }
  return shape->rank > 0;
}

// Returns what is wrong, or an empty text.
inline std::string read_npy(std::FILE* file, Array* array) {
  unsigned char start[10];
  if (std::fread(start, 1, 10, file) != 10 || std::memcmp(start, "\x93NUMPY\x01", 7) != 0)
    return "is no .npy file of version 1";
  std::string header(static_cast<size_t>(start[8] | start[9] << 8), '\0');
  if (std::fread(&header[0], 1, header.size(), file) != header.size()) return "is cut short";
  const size_t sizes = header.find("'shape': (");
  if (header.find("'<f4'") == std::string::npos || header.find("'fortran_order': False") == std::string::npos ||
      sizes == std::string::npos || !parse_sizes(header.c_str() + sizes + 10, &array->shape))
    return "must hold float32 in row-major order";
  size_t count = 1;
  for (int i = 0; i < array->shape.rank; ++i) count *= static_cast<size_t>(array->shape.sizes[i]);
  if (count > (size_t{1} << 32)) return "is too large";
  array->values.resize(count);
  return std::fread(array->values.data(), 4, count, file) == count ? "" : "is cut short";
}

// Values are in [0, 1]; the result is one image, [1, channels, height, width].
inline std::string read_pnm(std::FILE* file, Array* array) {
  char kind = 0;
  int width = 0, height = 0, most = 0;
  if (std::fscanf(file, "P%c %d %d %d", &kind, &width, &height, &most) != 4 || (kind != '5' && kind != '6') ||
      width < 1 || height < 1 || width > 65536 || height > 65536 || most < 1 || most > 255 || std::fgetc(file) < 0)
    return "is no PGM or PPM image with a byte for each value";
  const int channels = kind == '5' ? 1 : 3, pixels = width * height;
  array->shape = {4, {1, channels, height, width}};
  array->values.resize(static_cast<size_t>(channels) * static_cast<size_t>(pixels));
  for (int i = 0; i < pixels * channels; ++i) {
    const int value = std::fgetc(file);
    if (value < 0) return "is cut short";
    const int at = i % channels * pixels + i / channels;
    array->values[static_cast<size_t>(at)] = static_cast<float>(value) / static_cast<float>(most);
  }
  return "";
}

inline std::string read_array(const std::string& path, Array* array) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return path + " cannot be read";
  const bool npy = path.size() > 4 && path.substr(path.size() - 4) == ".npy";
  const std::string wrong = npy ? read_npy(file, array) : read_pnm(file, array);
  std::fclose(file);
  return wrong.empty() ? "" : path + " " + wrong;
}

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/stat.h>
#include <unistd.h>
#endif

#include "runtime/file/container.h"

namespace stompp::runtime {
namespace {

constexpr int64_t kSmallBytes = 1 << 20;  // of a file that may be all holes

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

// Bytes that are no holes, where the system tells; blocks are not counted, as file systems that compress report few.
int64_t bytes_in(std::FILE* file, int64_t size) {
#if defined(SEEK_DATA) && defined(SEEK_HOLE)
  int64_t there = 0;
  for (off_t at = 0; at < size;) {
    const off_t data = lseek(fileno(file), at, SEEK_DATA);
    if (data < 0) return errno == ENXIO ? there : size;
    at = lseek(fileno(file), data, SEEK_HOLE);
    if (at < 0) return size;
    there += at - data;
  }
  lseek(fileno(file), 0, SEEK_SET);
  return there;
#else
  (void)file;
  return size;
#endif
}

// The size of a regular file, or -1.
int64_t size_of(std::FILE* file) {
#if defined(__unix__) || defined(__APPLE__)
  struct stat status;
  return fstat(fileno(file), &status) == 0 && S_ISREG(status.st_mode) ? static_cast<int64_t>(status.st_size) : -1;
#else
  const bool found = std::fseek(file, 0, SEEK_END) == 0;
  const int64_t size = found ? std::ftell(file) : -1;
  std::rewind(file);
  return size;
#endif
}

}  // namespace

Outcome read_file(const char* path, std::vector<uint8_t>* bytes) {
  const std::unique_ptr<std::FILE, Close> file(std::fopen(path, "rb"));
  if (file == nullptr) return {STOMPP_NO_FILE, shown_path(path) + " cannot be read: " + std::strerror(errno)};
  const int64_t size = size_of(file.get());
  if (size < 0) return {STOMPP_NO_FILE, shown_path(path) + " is no regular file"};
  if (size > kSmallBytes && bytes_in(file.get(), size) < size / 2)
    return bad_file(shown_path(path) + " is a sparse file, of which more than half are holes");
  bytes->resize(static_cast<size_t>(size));
  if (std::fread(bytes->data(), 1, bytes->size(), file.get()) != bytes->size())
    return {STOMPP_NO_FILE, shown_path(path) + " cannot be read whole"};
  return {};
}

}  // namespace stompp::runtime

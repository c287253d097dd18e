#include "core/product/packed_weight.h"

#include "core/product/small_groups.h"

#include <cstring>

namespace stompp {
namespace {

constexpr char kMagic[4] = {'S', 'K', 'P', 'W'};
constexpr uint32_t kVersion = 1;

struct Header {
  char magic[4];
  uint32_t version;
  uint32_t layout;
  uint32_t panel_outputs;
  uint32_t k_bytes;
  uint32_t checksum;  // of the header with 0 in this place
  int64_t out_channels, in_channels;
  int32_t kernel_h, kernel_w;
  int64_t groups;
  int64_t total_bytes;
};
static_assert(sizeof(Header) == 64, "the header is one cache line");

int64_t tap_sum_bytes(const WeightShape& shape, const WeightLayout& layout) {
  if (layout.id == LayoutId::kTapWords || shape.small_groups()) return 0;
  return round_up(shape.taps() * shape.out_channels * static_cast<int64_t>(sizeof(int32_t)), 64);
}

// FNV-1a (Fowler, Noll and Vo): a layout's number is one bit away from another's.
uint32_t checksum_of(Header header) {
  header.checksum = 0;
  unsigned char bytes[sizeof(Header)];
  std::memcpy(bytes, &header, sizeof(header));
  uint32_t hash = 2166136261u;
  for (const unsigned char byte : bytes) hash = (hash ^ byte) * 16777619u;
  return hash;
}

bool layout_of(uint32_t id, uint32_t k_bytes, WeightLayout* layout) {
  *layout = {static_cast<LayoutId>(id), static_cast<int64_t>(k_bytes)};
  switch (layout->id) {
    case LayoutId::kWords:
    case LayoutId::kSmallGroups:
    case LayoutId::kTapWords:
      return k_bytes == 4;
    case LayoutId::kBytes:
    case LayoutId::kInterleavedBytes:
      return k_bytes == 1;
    case LayoutId::kLongs:
      return k_bytes == 8;
  }
  return false;
}

// Returns where byte `byte` of the row of output `n` (within its panel) lies.
int64_t panel_offset(const WeightLayout& layout, int64_t byte, int64_t n) {
  const int64_t kr = layout.k_bytes, half = kPanelOutputs / 2;
  if (layout.id == LayoutId::kInterleavedBytes) n = n % half * 2 + n / half;
  return byte / kr * kr * kPanelOutputs + n * kr + byte % kr;
}

}  // namespace

int64_t packed_bytes(const WeightShape& shape, const WeightLayout& layout) {
  if (shape.small_groups())
    return static_cast<int64_t>(sizeof(Header)) + words_for(shape.out_channels) * shape.K() * kWordBytes;
  return static_cast<int64_t>(sizeof(Header)) + tap_sum_bytes(shape, layout) +
         shape.groups * shape.panels_per_group() * layout.panel_bytes(shape);
}

Status pack_weight_words(const uint32_t* words, const WeightShape& shape, const WeightLayout& wanted, uint8_t* out,
                         const Parallel& pool) {
  const Status status = check_shape(shape);
  if (!status.is_ok()) return status;
  const WeightLayout layout = layout_for(shape, wanted);
  const int64_t total = packed_bytes(shape, layout);
  const int64_t taps = shape.taps(), row_words = words_for(shape.in_channels);
  const int64_t tap_bytes = shape.tap_bytes(), tap_step = layout.tap_bytes(shape), panels = shape.panels_per_group();

  Header header = {};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = kVersion;
  header.layout = static_cast<uint32_t>(layout.id);
  header.panel_outputs = kPanelOutputs;
  header.k_bytes = static_cast<uint32_t>(layout.k_bytes);
  header.out_channels = shape.out_channels;
  header.in_channels = shape.in_channels;
  header.kernel_h = static_cast<int32_t>(shape.kernel_h);
  header.kernel_w = static_cast<int32_t>(shape.kernel_w);
  header.groups = shape.groups;
  header.total_bytes = total;
  header.checksum = checksum_of(header);
  std::memcpy(out, &header, sizeof(header));
  if (shape.small_groups()) {
    pack_small_groups(words, shape, reinterpret_cast<uint32_t*>(out + sizeof(Header)), pool);
    return Status::ok();
  }

  const int64_t sum_bytes = tap_sum_bytes(shape, layout);
  uint8_t* sums_out = out + sizeof(Header);
  uint8_t* panels_out = sums_out + sum_bytes;
  std::memset(sums_out, 0, static_cast<size_t>(sum_bytes));

  parallel_for(pool, shape.groups * panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t group = p / panels, first = (p % panels) * kPanelOutputs;
      uint8_t* panel = panels_out + p * layout.panel_bytes(shape);
      std::memset(panel, 0, static_cast<size_t>(layout.panel_bytes(shape)));
      for (int64_t n = 0; n < kPanelOutputs && first + n < shape.group_outputs(); ++n) {
        const int64_t channel = group * shape.group_outputs() + first + n;
        for (int64_t tap = 0; tap < taps; ++tap) {
          int32_t pop = 0;
          for (int64_t i = 0; i < row_words; ++i) {
            const uint32_t word = words[(channel * taps + tap) * row_words + i] & valid_bits(shape.in_channels, i);
            pop += popcount32(word);
            for (int64_t b = 0; b < kWordBytes && i * kWordBytes + b < tap_bytes; ++b)
              panel[panel_offset(layout, tap * tap_step + i * kWordBytes + b, n)] =
                  static_cast<uint8_t>(word >> (8 * b));
          }
          const int32_t sum = static_cast<int32_t>(shape.in_channels) - 2 * pop;
          if (sum_bytes > 0) std::memcpy(sums_out + (tap * shape.out_channels + channel) * 4, &sum, sizeof(sum));
        }
      }
    }
  });
  return Status::ok();
}

Status unpack_weight_words(const PackedWeight& weight, uint32_t* words, const Parallel& pool) {
  const WeightShape& shape = weight.shape;
  if (shape.small_groups()) {
    unpack_small_groups(reinterpret_cast<const uint32_t*>(weight.panels), shape, words, pool);
    return Status::ok();
  }
  const int64_t taps = shape.taps(), row_words = words_for(shape.in_channels);
  const int64_t tap_bytes = shape.tap_bytes(), tap_step = weight.layout.tap_bytes(shape);
  parallel_for(pool, shape.out_channels, 16, [&](int64_t begin, int64_t end) {
    for (int64_t channel = begin; channel < end; ++channel) {
      const int64_t group = channel / shape.group_outputs(), n = channel % shape.group_outputs();
      const uint8_t* panel = weight.panel(group, n / kPanelOutputs);
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t i = 0; i < row_words; ++i) {
          uint32_t word = 0;
          for (int64_t b = 0; b < kWordBytes && i * kWordBytes + b < tap_bytes; ++b) {
            const int64_t at = panel_offset(weight.layout, tap * tap_step + i * kWordBytes + b, n % kPanelOutputs);
            word |= static_cast<uint32_t>(panel[at]) << (8 * b);
          }
          words[(channel * taps + tap) * row_words + i] = word;
        }
    }
  });
  return Status::ok();
}

Status view_packed(const uint8_t* data, int64_t bytes, const WeightShape& expected, PackedWeight* weight) {
  Header header;
  if (bytes < static_cast<int64_t>(sizeof(header))) return Status::error("packed weight: shorter than its header");
  std::memcpy(&header, data, sizeof(header));
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0)
    return Status::error("packed weight: these bytes were not made by pack_weight or pack_conv_weight on the CPU");
  if (header.version != kVersion) return Status::error("packed weight: made by another version of the format");
  if (header.checksum != checksum_of(header)) return Status::error("packed weight: its header was altered");
  const WeightShape shape = {header.out_channels, header.in_channels, header.kernel_h, header.kernel_w, header.groups};
  const Status status = check_shape(shape);
  if (!status.is_ok()) return status;
  WeightLayout layout;
  if (header.panel_outputs != kPanelOutputs || !layout_of(header.layout, header.k_bytes, &layout) ||
      (layout.id == LayoutId::kSmallGroups) != shape.small_groups())
    return Status::error("packed weight: unknown layout");
  if (header.total_bytes != bytes || packed_bytes(shape, layout) != bytes)
    return Status::error("packed weight: its size does not match its header");
  if (shape.out_channels != expected.out_channels || shape.in_channels != expected.in_channels ||
      shape.kernel_h != expected.kernel_h || shape.kernel_w != expected.kernel_w || shape.groups != expected.groups)
    return Status::error("packed weight: packed for another shape or another number of groups than the one given");
  weight->shape = shape;
  weight->layout = layout;
  weight->tap_sums = reinterpret_cast<const int32_t*>(data + sizeof(Header));
  weight->panels = data + sizeof(Header) + tap_sum_bytes(shape, layout);
  return Status::ok();
}

}  // namespace stompp

#include "core/masks/progressive.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/masks/refresh_mask.h"
#include "torch/host.h"

namespace stompp::binding {
namespace {

Surrogate surrogate_named(const std::string& name) {
  if (name == "none") return Surrogate::kNone;
  if (name == "identity") return Surrogate::kIdentity;
  if (name == "clip") return Surrogate::kClip;
  check(name == "approx_sign", "progressive: surrogate must be 'none', 'identity', 'clip' or 'approx_sign', got '",
        name, "'");
  return Surrogate::kApproxSign;
}

// Dimensions from the outermost to the innermost in memory, those of size 1 left out; empty optional unless the
// elements fill their memory without gaps or overlaps.
std::optional<std::vector<int64_t>> memory_order(const std::vector<int64_t>& sizes,
                                                 const std::vector<int64_t>& strides) {
  std::vector<int64_t> order;
  for (size_t i = 0; i < sizes.size(); ++i)
    if (sizes[i] != 1) order.push_back(static_cast<int64_t>(i));
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return strides[a] > strides[b]; });
  int64_t expected = 1;
  for (size_t i = order.size(); i-- > 0; expected *= sizes[order[i]])
    if (strides[order[i]] != expected) return std::nullopt;
  return order;
}

std::vector<int64_t> strides_of(const Tensor& tensor) {
  const auto strides = tensor.strides();
  return std::vector<int64_t>(strides.begin(), strides.end());
}

// The mask's bits, row-major over `sizes`, in the order in which the elements lie in memory.
std::vector<uint32_t> permute_mask(const uint32_t* mask, const std::vector<int64_t>& sizes,
                                   const std::vector<int64_t>& order) {
  std::vector<int64_t> row_major(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) row_major[i - 1] = row_major[i] * sizes[i];
  int64_t n = 1;
  for (const int64_t dim : order) n *= sizes[dim];
  std::vector<uint32_t> permuted(words_for(n), 0);
  std::vector<int64_t> index(order.size(), 0);
  for (int64_t to = 0, from = 0; to < n; ++to) {
    permuted[to / kWordBits] |= (mask[from / kWordBits] >> (from % kWordBits) & 1u) << (to % kWordBits);
    for (size_t i = order.size(); i-- > 0;) {
      const int64_t dim = order[i];
      from += row_major[dim];
      if (++index[i] < sizes[dim]) break;
      from -= row_major[dim] * sizes[dim];
      index[i] = 0;
    }
  }
  return permuted;
}

// `tensor`, of the shape of the dense `like`, with its elements in the same order in memory.
Tensor in_order_of(const Tensor& like, const Tensor& tensor) {
  bool same = true;
  for (int64_t i = 0; i < like.dim(); ++i) same = same && (like.size(i) == 1 || like.stride(i) == tensor.stride(i));
  if (same) return tensor;
  Tensor ordered = with_huge_pages(torch::stable::empty_like(like));
  torch::stable::copy_(ordered, tensor);
  return ordered;
}

// An op's arguments, checked, in the order in which the elements of its result lie in memory: a dense u keeps its
// strides, so channels_last stays; with a shared mask the batch has to be outermost.
struct Arguments {
  Arguments(const Tensor& u, const std::optional<Tensor>& mask_words, const std::string& surrogate, bool batch_shared) {
    const std::optional<FloatType> type = float_type(u.scalar_type());
    check(type.has_value(), "progressive: u must be a floating-point tensor");
    check(!batch_shared || u.dim() >= 1, "progressive: a mask shared by the batch needs a u with a batch dimension");
    std::optional<std::vector<int64_t>> order = memory_order(sizes_of(u), strides_of(u));
    const bool has_batch = batch_shared && u.size(0) != 1;
    if (order.has_value() && has_batch && u.numel() > 0 && order->front() != 0) order.reset();
    dense = order.has_value() ? u : row_major(u);
    values.u = dense->data_ptr();
    values.type = *type;
    values.batch = batch_shared ? u.size(0) : 1;
    values.n = !batch_shared ? u.numel() : values.batch == 0 ? 0 : u.numel() / values.batch;
    values.surrogate = surrogate_named(surrogate);
    if (!mask_words.has_value()) return;
    mask = words_of("progressive", "mask_words", *mask_words);
    int64_t entries = batch_shared ? 1 : u.numel();  // of one sample, also where the batch is empty
    for (int64_t d = 1; batch_shared && d < u.dim(); ++d) entries *= u.size(d);
    check_shape("progressive", "mask_words", *mask, {words_for(entries)});
    if (u.numel() == 0) return;
    values.mask = word_pointer(*mask);
    if (!order.has_value() || std::is_sorted(order->begin(), order->end())) return;
    if (has_batch) order->erase(order->begin());
    permuted_mask = permute_mask(values.mask, sizes_of(u), *order);
    values.mask = permuted_mask.data();
  }

  Tensor new_result() {
    Tensor out = with_huge_pages(torch::stable::empty_like(*dense));
    values.out = out.data_ptr();
    return out;
  }

  Progressive values = {};
  std::optional<Tensor> dense, mask;
  std::vector<uint32_t> permuted_mask;
};

Tensor progressive_cpu(const Tensor& u, const std::optional<Tensor>& mask_words, const std::string& surrogate,
                       bool batch_shared) {
  Arguments arguments(u, mask_words, surrogate, batch_shared);
  Tensor out = arguments.new_result();
  check(progressive_forward(arguments.values, torch_pool()));
  return out;
}

std::tuple<Tensor, Tensor> with_gate(Arguments& arguments) {
  Tensor out = arguments.new_result();
  Tensor gate = new_tensor({arguments.values.batch, words_for(arguments.values.n)}, ScalarType::Int);
  arguments.values.gate = static_cast<uint32_t*>(gate.data_ptr());
  check(progressive_forward(arguments.values, torch_pool()));
  return {out, gate};
}

std::tuple<Tensor, Tensor> progressive_gated_cpu(const Tensor& u, const std::optional<Tensor>& mask_words,
                                                 const std::string& surrogate, bool batch_shared) {
  Arguments arguments(u, mask_words, surrogate, batch_shared);
  check(arguments.values.surrogate != Surrogate::kApproxSign, "progressive_gated: approx_sign has no gate of one bit");
  return with_gate(arguments);
}

// draw: int64 [4], the seed, the tensor's id, the step and the probability in units of 2^-32.
DrawnMask drawn_mask(const Tensor& draw) {
  check_dtype("progressive_drawn", "draw", draw, ScalarType::Long, "int64");
  check_shape("progressive_drawn", "draw", draw, {4});
  const Tensor dense = row_major(draw);
  int64_t values[4];
  std::memcpy(values, dense.data_ptr(), sizeof(values));
  const auto [seed, tensor_id, step, one_below] = values;
  check(tensor_id >= 0 && tensor_id <= 0xffffffffll,
        "progressive_drawn: draw[1], the tensor's id, must fit 32 bits, got ", tensor_id);
  check(step >= 0, "progressive_drawn: draw[2], the step, must be at least 0, got ", step);
  check(one_below >= 0 && one_below <= (1ll << 32),
        "progressive_drawn: draw[3], the probability times 2^32, must be 0 to 2^32, got ", one_below);
  return {static_cast<uint64_t>(one_below),
          {static_cast<uint64_t>(seed), static_cast<uint32_t>(tensor_id), static_cast<uint64_t>(step)}};
}

std::tuple<Tensor, Tensor> progressive_drawn_cpu(const Tensor& u, const Tensor& draw, const std::string& surrogate) {
  Arguments arguments(u, std::nullopt, surrogate, false);
  const DrawnMask drawn = drawn_mask(draw);
  arguments.values.drawn = &drawn;
  return with_gate(arguments);
}

Tensor progressive_backward_cpu(const Tensor& grad, const Tensor& u, const std::optional<Tensor>& mask_words,
                                const std::string& surrogate, bool batch_shared) {
  Arguments arguments(u, mask_words, surrogate, batch_shared);
  check(grad.scalar_type() == u.scalar_type(), "progressive: grad and u must have one dtype");
  check_shape("progressive", "grad", grad, sizes_of(u));
  const Tensor ordered = in_order_of(*arguments.dense, grad);
  arguments.values.grad = ordered.data_ptr();
  Tensor out = arguments.new_result();
  check(progressive_backward(arguments.values, torch_pool()));
  return out;
}

Tensor gate_backward_cpu(const Tensor& grad, const Tensor& gate, Ints strides, bool batch_shared) {
  const std::optional<FloatType> type = float_type(grad.scalar_type());
  check(type.has_value(), "progressive_gate_backward: grad must be a floating-point tensor");
  const std::vector<int64_t> sizes = sizes_of(grad), wanted(strides.begin(), strides.end());
  check(wanted.size() == sizes.size(),
        "progressive_gate_backward: strides must be as many as grad has dimensions, got ", wanted.size());
  const std::optional<std::vector<int64_t>> order = memory_order(sizes, wanted);
  const bool has_batch = batch_shared && !sizes.empty() && sizes[0] != 1;
  check(
      grad.numel() == 0 || (order.has_value() && (!has_batch || order->front() == 0)),
      "progressive_gate_backward: strides must be those of dense elements, the batch outermost where it shares a mask");
  check(!batch_shared || !sizes.empty(), "progressive_gate_backward: a shared mask needs a batch dimension");
  const int64_t batch = batch_shared ? sizes[0] : 1;
  const int64_t n = !batch_shared ? grad.numel() : batch == 0 ? 0 : grad.numel() / batch;
  const Tensor words = words_of("progressive_gate_backward", "gate", gate);
  check_shape("progressive_gate_backward", "gate", words, {batch, words_for(n)});

  Tensor out = new_tensor(sizes, wanted, grad.scalar_type());
  const Tensor ordered = in_order_of(out, grad);
  check(gate_backward({ordered.data_ptr(), word_pointer(words), out.data_ptr(), *type, batch, n}, torch_pool()));
  return out;
}

void refresh_mask_cpu(const Tensor& mask_words, int64_t n, double p, double r, int64_t seed, int64_t tensor_id,
                      int64_t step) {
  check_dtype("refresh_mask_", "mask_words", mask_words, ScalarType::Int, "int32");
  check(n >= 0 && mask_words.is_contiguous() && mask_words.numel() == words_for(n),
        "refresh_mask_: mask_words must be contiguous and hold ceil(n / 32) words for n = ", n, ", got ",
        ShapeOf{mask_words});
  check(tensor_id >= 0 && tensor_id <= 0xffffffffll, "refresh_mask_: tensor_id must fit 32 bits, got ", tensor_id);
  check(step >= 0, "refresh_mask_: step must be at least 0, got ", step);
  RefreshMask refresh;
  check(make_refresh(n, p, r, static_cast<uint64_t>(seed), static_cast<uint32_t>(tensor_id),
                     static_cast<uint64_t>(step), &refresh));
  Tensor words = dense_of(mask_words);  // a copy where foreign memory begins at an odd byte
  check(refresh_mask(refresh, static_cast<uint32_t*>(words.data_ptr()), torch_pool()));
  if (words.data_ptr() != mask_words.data_ptr()) {
    Tensor target = mask_words;
    torch::stable::copy_(target, words);
  }
}

}  // namespace
}  // namespace stompp::binding

STABLE_TORCH_LIBRARY_IMPL(stompp, CPU, m) {
  using namespace stompp::binding;
  m.impl("progressive", TORCH_BOX(&progressive_cpu));
  m.impl("progressive_gated", TORCH_BOX(&progressive_gated_cpu));
  m.impl("progressive_drawn", TORCH_BOX(&progressive_drawn_cpu));
  m.impl("progressive_backward", TORCH_BOX(&progressive_backward_cpu));
  m.impl("progressive_gate_backward", TORCH_BOX(&gate_backward_cpu));
  m.impl("refresh_mask_", TORCH_BOX(&refresh_mask_cpu));
}

// Depthwise convolutions of maps whose channels are adjacent: one image and some neighbouring channels at a time, whose last rows
// stay in the first cache as the type in which sums are made.
#include <algorithm>

#include "load_vector.h"

namespace gkd::cpu {
namespace {

constexpr int kVectors = 2;  // of channels of a task; of float32 as many as a cache line has of a half type

template <class A>
constexpr int64_t kGroup = kVectors * Simd<A>::width;

struct Convolution {
  int64_t images, channels, height, width, size, stride, padding, out_height, out_width;

  Convolution(const Tensor& map, const Tensor& weight, int64_t stride, int64_t padding)
      : images(map.size(0)),
        channels(map.size(1)),
        height(map.size(2)),
        width(map.size(3)),
        size(weight.size(2)),
        stride(stride),
        padding(padding),
        out_height((height + 2 * padding - size) / stride + 1),
        out_width((width + 2 * padding - size) / stride + 1) {}

  // Columns of a row with its padding.
  int64_t columns() const { return width + 2 * padding; }

  // body(image, first channel, number of channels, number of the task) for groups of channels.
  template <class A, class Body>
  void for_each_group(const Body& body) const {
    const int64_t groups = (channels + kGroup<A> - 1) / kGroup<A>;
    torch::stable::parallel_for(0, images * groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = task % groups * kGroup<A>;
        body(task / groups, first, std::min(kGroup<A>, channels - first), task);
      }
    });
  }
};

// `count` neighbouring channels of one cell, at most a group; what the group has beyond them becomes 0.
template <class T, class A>
void read_cell(const T* in, int64_t count, A* out) {
  constexpr int W = Simd<A>::width;
  for (int v = 0; v < kVectors; ++v, in += W, out += W, count -= W) {
    if (count >= W) {
      store(out, load_vector(in));
      continue;
    }
    std::fill_n(out, W, A(0));
    if (count > 0) widen(in, count, out);
  }
}

template <class T, class A>
void write_cell(const A* in, int64_t count, T* out) {
  constexpr int W = Simd<A>::width;
  for (; count >= W; count -= W, in += W, out += W) store_vector(out, load(in));
  if (count > 0) narrow(in, count, out);
}

// The last rows [columns, group] of a group of channels of an image; row y has its place again `size` rows later.
template <class A>
class Rows {
 public:
  explicit Rows(const Convolution& c) : c_(c), rows_(c.size * c.columns() * kGroup<A>) {}

  A* row(int64_t y) { return rows_.data() + (y + c_.padding) % c_.size * c_.columns() * kGroup<A>; }

  // The rows that row y of the output sees.
  void at_output(int64_t y, A** rows) {
    for (int64_t k = 0; k < c_.size; ++k) rows[k] = row(y * c_.stride - c_.padding + k);
  }

  void clear(int64_t y) { std::fill_n(row(y), c_.columns() * kGroup<A>, A(0)); }

  // Reads the rows before `end` that were not read yet.
  template <class T>
  void read_until(int64_t end, const T* image, int64_t count) {
    for (; next_ < end; ++next_) {
      if (next_ < 0 || next_ >= c_.height) {
        clear(next_);
        continue;
      }
      // The padding beside a row is 0 from the beginning.
      A* out = row(next_) + c_.padding * kGroup<A>;
      const T* in = image + next_ * c_.width * c_.channels;
      for (int64_t x = 0; x < c_.width; ++x) read_cell(in + x * c_.channels, count, out + x * kGroup<A>);
    }
  }

  template <class T>
  void write(int64_t y, T* image, int64_t count) {
    const A* in = row(y) + c_.padding * kGroup<A>;
    T* out = image + y * c_.width * c_.channels;
    for (int64_t x = 0; x < c_.width; ++x) write_cell(in + x * kGroup<A>, count, out + x * c_.channels);
  }

 private:
  const Convolution& c_;
  std::vector<A> rows_;
  int64_t next_ = -c_.padding;
};

// weight [C,1,size,size] of a group as [size,size,group].
template <class A>
std::vector<A> group_weights(const Convolution& c, const A* weight, int64_t first, int64_t count) {
  const int64_t taps = c.size * c.size;
  std::vector<A> own(taps * kGroup<A>);
  for (int64_t channel = 0; channel < count; ++channel)
    for (int64_t tap = 0; tap < taps; ++tap) own[tap * kGroup<A> + channel] = weight[(first + channel) * taps + tap];
  return own;
}

// One row of the output of one vector of channels.
template <int size, class A>
void convolve_row(const Convolution& c, A* const* rows, const A* weight, A* out) {
  Vec<A> own[size * size];
  for (int tap = 0; tap < size * size; ++tap) own[tap] = load(weight + tap * kGroup<A>);
  for (int64_t x = 0; x < c.out_width; ++x) {
    Vec<A> sum = {};
    const int64_t first = x * c.stride * kGroup<A>;
#pragma GCC unroll 7
    for (int i = 0; i < size; ++i)
#pragma GCC unroll 7
      for (int j = 0; j < size; ++j) sum += own[i * size + j] * load(rows[i] + first + j * kGroup<A>);
    store(out + x * kGroup<A>, sum);
  }
}

// Adds what one row of the output's gradient, of one vector of channels, gives the map's and the weight's.
template <int size, class A>
void spread_row(const Convolution& c, const A* gradient, A* const* rows, const A* weight, A* const* of_rows, A* of_weight) {
  Vec<A> own[size * size], sum[size * size];
  for (int tap = 0; tap < size * size; ++tap) {
    own[tap] = load(weight + tap * kGroup<A>);
    sum[tap] = load(of_weight + tap * kGroup<A>);
  }
  for (int64_t x = 0; x < c.out_width; ++x) {
    const Vec<A> g = load(gradient + x * kGroup<A>);
    const int64_t first = x * c.stride * kGroup<A>;
#pragma GCC unroll 7
    for (int i = 0; i < size; ++i)
#pragma GCC unroll 7
      for (int j = 0; j < size; ++j) {
        const int64_t cell = first + j * kGroup<A>;
        sum[i * size + j] += g * load(rows[i] + cell);
        store(of_rows[i] + cell, load(of_rows[i] + cell) + g * own[i * size + j]);
      }
  }
  for (int tap = 0; tap < size * size; ++tap) store(of_weight + tap * kGroup<A>, sum[tap]);
}

template <class Body>
void with_size(int64_t size, const Body& body) {
  switch (size) {
    case 3:
      return body(std::integral_constant<int, 3>{});
    case 5:
      return body(std::integral_constant<int, 5>{});
    case 7:
      return body(std::integral_constant<int, 7>{});
    default:
      STD_TORCH_CHECK(false, "expected a window of 3, 5 or 7 cells a side");
  }
}

// body(type of an element, type of sums, size of the window)
template <class Body>
void with_form(const Tensor& map, int64_t size, const Body& body) {
  with_floating_type(map.scalar_type(), [&](auto element) {
    with_size(size, [&](auto side) { body(element, Accumulator<decltype(element)>{}, side); });
  });
}

Tensor depthwise_convolution(const Tensor& map, const Tensor& weight, int64_t stride, int64_t padding) {
  const Convolution c(map, weight, stride, padding);
  const Tensor dense = torch::stable::contiguous(weight);
  const Tensor cells = new_tensor(map, {c.images, c.out_height, c.out_width, c.channels}, map.scalar_type());
  Tensor out = torch::stable::transpose(torch::stable::transpose(cells, 1, 3), 2, 3);
  with_form(map, c.size, [&](auto element, auto exact, auto side) {
    using T = decltype(element);
    using A = decltype(exact);
    c.for_each_group<A>([&](int64_t image, int64_t first, int64_t count, int64_t) {
      const T* in = data<T>(map) + image * c.height * c.width * c.channels + first;
      T* result = data<T>(out) + image * c.out_height * c.out_width * c.channels + first;
      const std::vector<A> own = group_weights(c, data<A>(dense), first, count);
      Rows<A> rows(c);
      std::vector<A> row(c.out_width * kGroup<A>);
      A* seen[side];
      for (int64_t y = 0; y < c.out_height; ++y) {
        rows.read_until(y * c.stride - c.padding + c.size, in, count);
        rows.at_output(y, seen);
        for (int64_t at = 0; at < count; at += Simd<A>::width) {
          convolve_row<side>(c, seen, own.data() + at, row.data() + at);
          for (int k = 0; k < side; ++k) seen[k] += Simd<A>::width;
        }
        for (int64_t x = 0; x < c.out_width; ++x)
          write_cell(row.data() + x * kGroup<A>, count, result + (y * c.out_width + x) * c.channels);
      }
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> depthwise_convolution_backward(const Tensor& gradient, const Tensor& map, const Tensor& weight,
                                                          int64_t stride, int64_t padding) {
  const Convolution c(map, weight, stride, padding);
  const Tensor dense = torch::stable::contiguous(weight);
  const Tensor cells = new_tensor(map, {c.images, c.height, c.width, c.channels}, map.scalar_type());
  Tensor of_map = torch::stable::transpose(torch::stable::transpose(cells, 1, 3), 2, 3);
  Tensor of_weight = new_tensor(weight, {c.channels, 1, c.size, c.size}, weight.scalar_type());
  with_form(map, c.size, [&](auto element, auto exact, auto side) {
    using T = decltype(element);
    using A = decltype(exact);
    const int64_t groups = (c.channels + kGroup<A> - 1) / kGroup<A>, taps = c.size * c.size;
    std::vector<A> parts(c.images * groups * taps * kGroup<A>);
    c.for_each_group<A>([&](int64_t image, int64_t first, int64_t count, int64_t task) {
      const T* in = data<T>(map) + image * c.height * c.width * c.channels + first;
      const T* g = data<T>(gradient) + image * c.out_height * c.out_width * c.channels + first;
      T* result = data<T>(of_map) + image * c.height * c.width * c.channels + first;
      const std::vector<A> own = group_weights(c, data<A>(dense), first, count);
      A* part = parts.data() + task * taps * kGroup<A>;
      Rows<A> rows(c), spread(c);
      std::vector<A> row(c.out_width * kGroup<A>);
      A *seen[side], *reached[side];
      int64_t written = -c.padding;
      for (int64_t y = 0; y < c.out_height; ++y) {
        rows.read_until(y * c.stride - c.padding + c.size, in, count);
        rows.at_output(y, seen);
        spread.at_output(y, reached);
        for (int64_t x = 0; x < c.out_width; ++x)
          read_cell(g + (y * c.out_width + x) * c.channels, count, row.data() + x * kGroup<A>);
        for (int64_t at = 0; at < count; at += Simd<A>::width) {
          spread_row<side>(c, row.data() + at, seen, own.data() + at, reached, part + at);
          for (int k = 0; k < side; ++k) seen[k] += Simd<A>::width, reached[k] += Simd<A>::width;
        }
        const int64_t finished = y + 1 < c.out_height ? (y + 1) * c.stride - c.padding : c.height + c.padding;
        for (; written < finished; ++written) {
          if (written >= 0 && written < c.height) spread.write(written, result, count);
          spread.clear(written);
        }
      }
    });
    A* total = data<A>(of_weight);
    for (int64_t channel = 0; channel < c.channels; ++channel)
      for (int64_t tap = 0; tap < taps; ++tap) {
        A sum = 0;
        for (int64_t image = 0; image < c.images; ++image)
          sum += parts[((image * groups + channel / kGroup<A>) * taps + tap) * kGroup<A> + channel % kGroup<A>];
        total[channel * taps + tap] = sum;
      }
  });
  return {of_map, of_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CPU, m) {
  m.impl("depthwise_convolution", TORCH_BOX(&depthwise_convolution));
  m.impl("depthwise_convolution_backward", TORCH_BOX(&depthwise_convolution_backward));
}

}  // namespace gkd::cpu

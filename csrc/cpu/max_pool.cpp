// The largest values of windows of maps whose channels are adjacent.
#include <algorithm>
#include <limits>

#include "load_vector.h"

namespace gkd::cpu {
namespace {

template <class A>
Vec<A> larger(Vec<A> most, Vec<A> value) {
  return (value > most) | (value != value) ? value : most;  // what is no number stays
}

template <class A>
A larger(A most, A value) {
  return value > most || value != value ? value : most;
}

struct Pool {
  int64_t channels, height, width, side, stride, padding, out_height, out_width;

  // The cells of a window along one axis that lie on the map.
  std::pair<int64_t, int64_t> cells(int64_t out, int64_t length) const {
    const int64_t first = out * stride - padding;
    return {std::max<int64_t>(first, 0), std::min(first + side, length)};
  }

  template <class T>
  void window(const T* image, int64_t row, int64_t column, T* out) const {
    using A = Accumulator<T>;
    constexpr int64_t W = Simd<A>::width;
    constexpr A kLeast = -std::numeric_limits<A>::infinity();
    const auto [top, bottom] = cells(row, height);
    const auto [left, right] = cells(column, width);
    int64_t c = 0;
    for (; c + W <= channels; c += W) {
      Vec<A> most = Vec<A>{} + kLeast;
      for (int64_t y = top; y < bottom; ++y)
        for (int64_t x = left; x < right; ++x)
          most = larger<A>(most, load_vector(image + (y * width + x) * channels + c));
      store_vector(out + c, most);
    }
    for (; c < channels; ++c) {
      A most = kLeast;
      for (int64_t y = top; y < bottom; ++y)
        for (int64_t x = left; x < right; ++x)
          most = larger(most, static_cast<A>(image[(y * width + x) * channels + c]));
      out[c] = static_cast<T>(most);
    }
  }
};

Tensor max_pool(const Tensor& map, int64_t side, int64_t stride, int64_t padding) {
  const int64_t images = map.size(0), height = map.size(2), width = map.size(3);
  const Pool pool{map.size(1), height, width, side, stride, padding, (height + 2 * padding - side) / stride + 1,
                  (width + 2 * padding - side) / stride + 1};
  Tensor cells = new_tensor(map, {images, pool.out_height, pool.out_width, pool.channels}, map.scalar_type());
  with_floating_type(map.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const T* in = data<T>(map);
    T* out = data<T>(cells);
    torch::stable::parallel_for(0, images * pool.out_height, 4, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t column = 0; column < pool.out_width; ++column)
          pool.window(in + row / pool.out_height * height * width * pool.channels, row % pool.out_height, column,
                      out + (row * pool.out_width + column) * pool.channels);
    });
  });
  return torch::stable::transpose(torch::stable::transpose(cells, 1, 3), 2, 3);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CPU, m) { m.impl("max_pool", TORCH_BOX(&max_pool)); }

}  // namespace gkd::cpu

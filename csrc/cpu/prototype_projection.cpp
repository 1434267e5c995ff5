// Cosine of every embedding with every prototype of its level: unit vectors, then one blocked product.
#include <tuple>

#include "unit_rows.h"

namespace gkd::cpu {
namespace {

constexpr int kBlockTiles = 4;  // register tiles that share a panel of prototypes while it is in the first-level cache
constexpr int kBlockRows = kBlockTiles * kTileRows;

// cosine[L,B,P] for rows [first, first + count) of one level.
template <class T>
void project_block(const UnitRows<T>& x, const Panels<T>& panels, int64_t level, int64_t first, int64_t count,
                   int64_t prototypes, T* left, T* cosine) {
  constexpr int N = kTileColumns<T>;
  T tile[kTileRows * N];
  for (int64_t t = 0; t * kTileRows < count; ++t)
    interleave(x.row(level, first + t * kTileRows), x.padded,
               static_cast<int>(std::min<int64_t>(kTileRows, count - t * kTileRows)), x.channels,
               left + t * kTileRows * x.channels, kTileRows);
  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t width = std::min<int64_t>(N, prototypes - p * N);
    for (int64_t t = 0; t * kTileRows < count; ++t) {
      tile_product<1, kTileRows, false>(x.channels, left + t * kTileRows * x.channels, panels.panel(level, p), N,
                                        tile, N);
      const int64_t rows = std::min<int64_t>(kTileRows, count - t * kTileRows);
      for (int64_t i = 0; i < rows; ++i)
        std::copy_n(tile + i * N, width, cosine + (first + t * kTileRows + i) * prototypes + p * N);
    }
  }
}

template <class T>
Tensor forward(const Tensor& embeddings, const Tensor& prototypes) {
  const UnitRows<T> x(embeddings), y(prototypes);
  const Panels<T> panels(y);
  Tensor cosine = new_tensor(embeddings, {x.levels, x.rows, y.rows}, dtype_of<T>());
  const int64_t blocks = ceil_div(x.rows, kBlockRows);
  torch::stable::parallel_for(0, x.levels * blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> left(kBlockRows * x.channels);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t level = i / blocks, first = i % blocks * kBlockRows;
      project_block(x, panels, level, first, std::min<int64_t>(kBlockRows, x.rows - first), y.rows, left.data(),
                    data<T>(cosine) + level * x.rows * y.rows);
    }
  });
  return cosine;
}

// d rows = (G other_unit) through the normalisation, for G[i][k] = gradient[i * row_stride + k * k_stride].
template <class T>
Tensor side_gradient(const Tensor& vectors, const UnitRows<T>& rows, const UnitRows<T>& other, const Tensor& gradient,
                     int64_t row_stride, int64_t k_stride) {
  constexpr int N = kTileColumns<T>;
  Tensor result = new_tensor(vectors, {rows.levels, rows.rows, rows.channels}, vectors.scalar_type());
  const int64_t blocks = ceil_div(rows.rows, kTileRows), depth = other.rows;
  torch::stable::parallel_for(0, rows.levels * blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> left(kTileRows * depth), out(kTileRows * rows.padded);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t level = task / blocks, first = task % blocks * kTileRows;
      const int64_t count = std::min<int64_t>(kTileRows, rows.rows - first);
      const T* g = data<T>(gradient) + level * rows.rows * depth + first * row_stride;
      for (int64_t k = 0; k < depth; ++k)
        for (int64_t i = 0; i < kTileRows; ++i)
          left[k * kTileRows + i] = i < count ? g[i * row_stride + k * k_stride] : T(0);
      for (int64_t c = 0; c < rows.padded; c += N)
        tile_product<1, kTileRows, false>(depth, left.data(), other.row(level, 0) + c, other.padded, out.data() + c,
                                          rows.padded);
      for (int64_t i = 0; i < count; ++i) {
        T* d = out.data() + i * rows.padded;
        const T* unit = rows.row(level, first + i);
        normalise_backward(d, unit, dot(d, unit, rows.channels), rows.length_inverse(level, first + i), rows.channels);
        write_row(d, rows.channels, result, level * rows.rows + first + i);
      }
    }
  });
  return result;
}

template <class T>
std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& embeddings, const Tensor& prototypes,
                                    bool need_embeddings, bool need_prototypes) {
  const UnitRows<T> x(embeddings), y(prototypes);
  const Tensor g = torch::stable::contiguous(gradient);
  const auto none = [&](const Tensor& like) { return new_tensor(like, {0}, like.scalar_type()); };
  return {need_embeddings ? side_gradient(embeddings, x, y, g, y.rows, 1) : none(embeddings),
          need_prototypes ? side_gradient(prototypes, y, x, g, 1, y.rows) : none(prototypes)};
}

Tensor prototype_projection(const Tensor& embeddings, const Tensor& prototypes) {
  return is_double({&embeddings, &prototypes}) ? forward<double>(embeddings, prototypes)
                                               : forward<float>(embeddings, prototypes);
}

std::tuple<Tensor, Tensor> prototype_projection_backward(const Tensor& gradient, const Tensor& embeddings,
                                                         const Tensor& prototypes, bool need_embeddings,
                                                         bool need_prototypes) {
  return is_double({&embeddings, &prototypes})
             ? backward<double>(gradient, embeddings, prototypes, need_embeddings, need_prototypes)
             : backward<float>(gradient, embeddings, prototypes, need_embeddings, need_prototypes);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CPU, m) {
  m.impl("prototype_projection", TORCH_BOX(&prototype_projection));
  m.impl("prototype_projection_backward", TORCH_BOX(&prototype_projection_backward));
}

}  // namespace gkd::cpu

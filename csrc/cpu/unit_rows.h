// Vectors of length 1: the operand of every cosine.
#pragma once

#include <algorithm>
#include <cmath>

#include "gemm.h"

namespace gkd::cpu {

// out[0:n] = row `row` of a contiguous [*, n] tensor of any floating dtype.
template <class T>
void read_row(const Tensor& rows, int64_t row, int64_t n, T* out) {
  with_floating_type(rows.scalar_type(), [&](auto tag) {
    const auto* in = data<decltype(tag)>(rows) + row * n;
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(in[i]);
  });
}

// Row `row` of a contiguous [*, n] tensor of any floating dtype = in[0:n].
template <class T>
void write_row(const T* in, int64_t n, Tensor& rows, int64_t row) {
  with_floating_type(rows.scalar_type(), [&](auto tag) {
    using Out = decltype(tag);
    Out* out = data<Out>(rows) + row * n;
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<Out>(in[i]);
  });
}

// Dividing by a shorter length than this would blow rounding noise up to a direction: such a vector has none.
constexpr double kShortest = 1e-8;

// Scales a row to length 1 and returns 1 / length; 0 for a vector without direction.
template <class T>
T normalise(T* row, int64_t n) {
  const T square = dot(row, row, n);
  const T inverse = square < T(kShortest * kShortest) ? T(0) : T(1) / std::sqrt(square);
  for (int64_t i = 0; i < n; ++i) row[i] *= inverse;
  return inverse;
}

// d x = (g - (g . unit) unit) / |x|, given the projection g . unit.
template <class T>
void normalise_backward(T* gradient, const T* unit, T projection, T inverse, int64_t n) {
  for (int64_t i = 0; i < n; ++i) gradient[i] = inverse * (gradient[i] - projection * unit[i]);
}

// A batch [L,R,C] of vectors as unit vectors in the accumulation type, rows padded by zeros to whole tiles.
template <class T>
struct UnitRows {
  int64_t levels, rows, channels, padded;
  Tensor unit, inverse;

  explicit UnitRows(const Tensor& vectors)
      : levels(vectors.size(0)),
        rows(vectors.size(1)),
        channels(vectors.size(2)),
        padded(round_up(channels, kTileColumns<T>)),
        unit(new_tensor(vectors, {levels, rows, padded}, dtype_of<T>())),
        inverse(new_tensor(vectors, {levels, rows}, dtype_of<T>())) {
    const Tensor source = torch::stable::contiguous(vectors);
    T* inverses = data<T>(inverse);
    torch::stable::parallel_for(0, levels * rows, 64, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        T* out = data<T>(unit) + i * padded;
        read_row(source, i, channels, out);
        inverses[i] = normalise(out, channels);
        for (int64_t c = channels; c < padded; ++c) out[c] = T(0);
      }
    });
  }

  const T* row(int64_t level, int64_t index) const { return data<T>(unit) + (level * rows + index) * padded; }
  T length_inverse(int64_t level, int64_t index) const { return data<T>(inverse)[level * rows + index]; }
};

// The same rows interleaved into panels [L, R / tile columns, C, tile columns], the right operand of X Y^T.
template <class T>
struct Panels {
  static constexpr int columns = kTileColumns<T>;
  int64_t count, channels;
  Tensor storage;

  explicit Panels(const UnitRows<T>& source)
      : count(ceil_div(source.rows, columns)),
        channels(source.channels),
        storage(new_tensor(source.unit, {source.levels, count, channels, columns}, dtype_of<T>())) {
    torch::stable::parallel_for(0, source.levels * count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t level = i / count, first = i % count * columns;
        const int filled = static_cast<int>(std::min<int64_t>(columns, source.rows - first));
        interleave(source.row(level, first), source.padded, filled, channels,
                   data<T>(storage) + i * channels * columns, columns);
      }
    });
  }

  const T* panel(int64_t level, int64_t index) const {
    return data<T>(storage) + (level * count + index) * channels * columns;
  }
};

}  // namespace gkd::cpu

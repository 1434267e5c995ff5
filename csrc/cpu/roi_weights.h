// Where RoIAlign looks: the level of each box and its bilinear weights.
//
// A bin averages a grid of sample points, each a bilinear interpolation; a sample outside of the map is 0. All of it
// factorises into rows and columns: out[r][c] = sum_y rows[r][y] sum_x columns[c][x] f[y][x], with few weights a bin.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <tuple>

#include "pyramid.h"

namespace gkd::cpu {

struct RoiAlignOptions {
  std::vector<double> strides;
  int64_t rows, columns;  // bins
  int64_t sampling_ratio;
  bool aligned;
  int64_t canonical_size, canonical_level;

  int64_t bins() const { return rows * columns; }
};

// Weights of the bins along one axis: those of bin b are [first[b], first[b + 1]).
template <class A>
struct AxisWeights {
  std::vector<int64_t> first, cell;
  std::vector<A> weight;
  int64_t begin = 0, end = 0;  // all cells lie in [begin, end)

  explicit AxisWeights(int64_t bins) : first(bins + 1) {}

  int64_t bins() const { return static_cast<int64_t>(first.size()) - 1; }

  void add(int64_t bin, int64_t at, A value) {
    const int64_t size = static_cast<int64_t>(cell.size());
    for (int64_t i = std::max(first[bin], size - 2); i < size; ++i)  // neighbouring samples share cells
      if (cell[i] == at) {
        weight[i] += value;
        return;
      }
    begin = size == 0 ? at : std::min(begin, at);
    end = std::max(end, at + 1);
    cell.push_back(at);
    weight.push_back(value);
  }
};

// Of the `count` samples of a bin, those in [first, past) can lie in the map.
struct SampleRange {
  int64_t count, first, past;
};

inline SampleRange sample_range(double base, double bin_size, int64_t size, int64_t sampling_ratio) {
  if (sampling_ratio > 0) return {sampling_ratio, 0, sampling_ratio};
  const double count = std::ceil(bin_size);
  constexpr double kMost = 1 << 24;  // beyond, float32 tells samples no longer apart, and the map's share of a bin is nothing
  if (!(count >= 1 && count <= kMost)) return {1, 0, 0};
  const double step = bin_size / count, slack = 4;  // slack for the rounding of positions: each of them is tested anyway
  const double first = std::clamp((-1 - base) / step - slack, 0.0, count);
  const double past = std::clamp((static_cast<double>(size) - base) / step + slack, 0.0, count);
  return {static_cast<int64_t>(count), static_cast<int64_t>(first), static_cast<int64_t>(past)};
}

template <class A>
AxisWeights<A> sample_axis(A start, A end, int64_t size, int64_t bins, const RoiAlignOptions& options) {
  AxisWeights<A> axis(bins);
  const A length = options.aligned ? end - start : std::max(end - start, A(1));
  const A bin_size = length / static_cast<A>(bins);
  for (int64_t bin = 0; bin < bins; ++bin) {
    // Volatile, because a product that is fused into a sum rounds differently: one rounding decides whether a sample on the
    // border of the map counts.
    const volatile A to_bin = static_cast<A>(bin) * bin_size;
    const A base = start + to_bin;
    const SampleRange samples = sample_range(base, bin_size, size, options.sampling_ratio);
    const A count = static_cast<A>(samples.count);
    for (int64_t s = samples.first; s < samples.past; ++s) {
      const A position = base + (static_cast<A>(s) + A(0.5)) * bin_size / count;
      if (!(position >= A(-1) && position <= static_cast<A>(size))) continue;
      const A inside = std::clamp(position, A(0), static_cast<A>(size - 1));
      const int64_t low = static_cast<int64_t>(inside);
      const A fraction = inside - static_cast<A>(low);
      axis.add(bin, low, (A(1) - fraction) / count);
      axis.add(bin, std::min(low + 1, size - 1), fraction / count);
    }
    axis.first[bin + 1] = static_cast<int64_t>(axis.cell.size());
  }
  return axis;
}

inline float log2_stride(double stride) { return static_cast<float>(std::round(std::log2(stride))); }

// Level that fits a box, or -1: with several levels, a box of negative area has none.
inline int64_t fitting_level(const float* box, const RoiAlignOptions& options) {
  if (options.strides.size() == 1) return 0;
  const float size = std::sqrt((box[2] - box[0]) * (box[3] - box[1]));
  const float target = static_cast<float>(options.canonical_level) +
                       std::log2(size / static_cast<float>(options.canonical_size)) + 1e-6f;
  if (std::isnan(target)) return -1;
  const float lowest = log2_stride(options.strides.front()), highest = log2_stride(options.strides.back());
  return static_cast<int64_t>(std::clamp(std::floor(target), lowest, highest) - lowest);
}

template <class A>
struct Roi {
  int64_t box, image, level = 0;
  AxisWeights<A> rows, columns;

  bool empty() const { return rows.begin == rows.end || columns.begin == columns.end; }
};

// Weights of one box on the map of its level; none for a box with a NaN or without a level.
template <class A>
void place(const float* box, const PyramidShape& shape, const RoiAlignOptions& options, Roi<A>& roi) {
  const int64_t level = fitting_level(box, options);
  if (level < 0 || std::any_of(box, box + 4, [](float x) { return std::isnan(x); })) return;
  A side[4];
  for (int k = 0; k < 4; ++k) {
    const volatile A cells = std::clamp(box[k], -FLT_MAX, FLT_MAX) * static_cast<A>(1.0 / options.strides[level]);
    side[k] = options.aligned ? cells - A(0.5) : cells;
  }
  roi.level = level;
  roi.rows = sample_axis(side[1], side[3], shape.heights[level], options.rows, options);
  roi.columns = sample_axis(side[0], side[2], shape.widths[level], options.columns, options);
}

// Boxes [B,4] with their weights, sorted by level, image and first row.
template <class A>
std::vector<Roi<A>> place_boxes(const Tensor& boxes, const Tensor& image_index, const PyramidShape& shape,
                                const RoiAlignOptions& options) {
  STD_TORCH_CHECK(shape.levels() == 1 || log2_stride(options.strides.back()) - log2_stride(options.strides.front()) <
                                             static_cast<float>(shape.levels()),
                  "strides: expected each at most twice the one before");
  const Tensor corners = torch::stable::contiguous(boxes), images = torch::stable::contiguous(image_index);
  std::vector<Roi<A>> rois;
  for (int64_t i = 0; i < boxes.size(0); ++i) {
    const int64_t image = data<int64_t>(images)[i];
    STD_TORCH_CHECK(image >= 0 && image < shape.images, "image_index: expected values in [0,", shape.images, "), got ",
                    image);
    rois.push_back({i, image, 0, AxisWeights<A>(options.rows), AxisWeights<A>(options.columns)});
  }
  torch::stable::parallel_for(0, boxes.size(0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) place(data<float>(corners) + 4 * i, shape, options, rois[i]);
  });
  std::stable_sort(rois.begin(), rois.end(), [](const Roi<A>& a, const Roi<A>& b) {
    return std::tie(a.level, a.image, a.rows.begin) < std::tie(b.level, b.image, b.rows.begin);
  });
  return rois;
}

}  // namespace gkd::cpu

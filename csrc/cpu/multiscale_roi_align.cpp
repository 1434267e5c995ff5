// RoIAlign over a pyramid. Planar maps are pooled along their rows, interleaved ones along their channels, and neither is copied;
// the backward pass is the transpose, gathered tile by tile of the gradient.
#include "gradient_tiles.h"
#include "roi_sampling.h"

namespace gkd {
namespace {

constexpr int64_t kForwardChannels = 32, kForwardRois = 16;  // of one task
template <class A>
constexpr int kWidth = Simd<A>::width;

// Column weights by vector lanes: lane c of slot k has the k-th weight of bin c and where its cell lies in one or two vectors.
template <class A>
struct ColumnLanes {
  using Lane = std::conditional_t<std::is_same_v<A, double>, int64_t, int32_t>;
  typedef Lane Lanes __attribute__((vector_size(kVectorBytes)));
  static constexpr int kSlots = 8;
  int vectors, slots = 0;
  int64_t start;  // first cell in the vectors
  Vec<A> weight[kSlots];
  Lanes cell[kSlots];

  // False if the vectors don't hold the bins, or the span of cells, or would reach over the border of the map.
  bool set(const AxisWeights<A>& columns, int64_t map_width) {
    const int64_t width = columns.end - columns.begin;
    vectors = width <= kWidth<A> ? 1 : 2;
    const int64_t span = vectors * kWidth<A>;
    if (columns.bins() > kWidth<A> || width > span || map_width < span) return false;
    start = std::min(columns.begin, map_width - span);
    for (int64_t c = 0; c < columns.bins(); ++c)
      for (int64_t i = columns.first[c], k = 0; i < columns.first[c + 1]; ++i, ++k) {
        if (k == kSlots) return false;
        for (; slots <= k; ++slots) {
          weight[slots] = Vec<A>{};
          cell[slots] = Lanes{};
        }
        weight[k][c] = columns.weight[i];
        cell[k][c] = static_cast<Lane>(columns.cell[i] - start);
      }
    return true;
  }

  Vec<A> pool(Vec<A> left, Vec<A> right) const {
    Vec<A> sum{};
    for (int k = 0; k < slots; ++k) sum += weight[k] * pick(left, right, cell[k]);
    return sum;
  }

 private:
  static Vec<A> pick(Vec<A> left, Vec<A> right, Lanes index) {
#if defined(__clang__)
    Vec<A> picked;
    for (int i = 0; i < kWidth<A>; ++i)
      picked[i] = index[i] < kWidth<A> ? left[index[i]] : right[index[i] - kWidth<A>];
    return picked;
#else
    return __builtin_shuffle(left, right, index);
#endif
  }
};

// One channel of a box whose columns fit into one or two vectors. Writes up to a vector past its last bin.
template <int vectors, class T, class A>
void pool_in_registers(const T* plane, int64_t row_stride, const AxisWeights<A>& rows, const ColumnLanes<A>& lanes,
                       int64_t columns, A* out) {
  for (int64_t r = 0; r < rows.bins(); ++r) {
    Vec<A> left{}, right{};
    for (int64_t i = rows.first[r]; i < rows.first[r + 1]; ++i) {
      const T* line = plane + rows.cell[i] * row_stride + lanes.start;
      left += rows.weight[i] * load_vector(line);
      if (vectors == 2) right += rows.weight[i] * load_vector(line + kWidth<A>);
    }
    store(out + r * columns, lanes.pool(left, right));
  }
}

// One channel of any box; `line` has room for a row of the map.
template <class T, class A>
void pool_in_memory(const T* plane, int64_t row_stride, const Roi<A>& roi, A* line, A* out) {
  const AxisWeights<A>&rows = roi.rows, &columns = roi.columns;
  const int64_t width = columns.end - columns.begin;
  for (int64_t r = 0; r < rows.bins(); ++r) {
    std::fill_n(line, width, A(0));
    for (int64_t i = rows.first[r]; i < rows.first[r + 1]; ++i) {
      const T* from = plane + rows.cell[i] * row_stride + columns.begin;
      const A weight = rows.weight[i];
      for (int64_t x = 0; x < width; ++x) line[x] += weight * static_cast<A>(from[x]);
    }
    for (int64_t c = 0; c < columns.bins(); ++c) {
      A sum = 0;
      for (int64_t i = columns.first[c]; i < columns.first[c + 1]; ++i)
        sum += columns.weight[i] * line[columns.cell[i] - columns.begin];
      out[r * columns.bins() + c] = sum;
    }
  }
}

// pooled[channel][bin] of channels [first, first + count).
template <class T, class A>
void pool_planar(const FeatureMap& map, const Roi<A>& roi, int64_t first, int64_t count, A* pooled) {
  const int64_t columns = roi.columns.bins(), bins = roi.rows.bins() * columns, stride = map.stride(2);
  ColumnLanes<A> lanes;
  const bool fits = lanes.set(roi.columns, map.width);
  std::vector<A> line(fits ? 0 : map.width);
  for (int64_t c = 0; c < count; ++c) {
    const T* plane = map.row<T>(roi.image, first + c, 0);
    A* out = pooled + c * bins;
    if (!fits)
      pool_in_memory(plane, stride, roi, line.data(), out);
    else if (lanes.vectors == 1)
      pool_in_registers<1>(plane, stride, roi.rows, lanes, columns, out);
    else
      pool_in_registers<2>(plane, stride, roi.rows, lanes, columns, out);
  }
}

// body(offset of a cell in its map, its weight) for all cells of bin (r, c).
template <class A, class Body>
void for_each_cell(const FeatureMap& map, const Roi<A>& roi, int64_t r, int64_t c, const Body& body) {
  const AxisWeights<A>&rows = roi.rows, &columns = roi.columns;
  for (int64_t i = rows.first[r]; i < rows.first[r + 1]; ++i)
    for (int64_t j = columns.first[c]; j < columns.first[c + 1]; ++j)
      body(rows.cell[i] * map.stride(2) + columns.cell[j] * map.stride(3), rows.weight[i] * columns.weight[j]);
}

// pooled[channel][bin] of channels [first, first + count).
template <class T, class A>
void pool_interleaved(const FeatureMap& map, const Roi<A>& roi, int64_t first, int64_t count, A* pooled) {
  constexpr int W = kWidth<A>;
  const int64_t bins = roi.rows.bins() * roi.columns.bins();
  for (int64_t k = 0; k < count; k += 2 * W) {
    const T* image = map.row<T>(roi.image, first + k, 0);
    const int64_t channels = std::min<int64_t>(2 * W, count - k);
    for (int64_t bin = 0; bin < bins; ++bin) {
      const int64_t r = bin / roi.columns.bins(), c = bin % roi.columns.bins();
      A sums[2 * W] = {};
      if (channels == 2 * W) {
        Vec<A> left{}, right{};
        for_each_cell(map, roi, r, c, [&](int64_t offset, A weight) {
          left += weight * load_vector(image + offset);
          right += weight * load_vector(image + offset + W);
        });
        store(sums, left);
        store(sums + W, right);
      } else {
        for_each_cell(map, roi, r, c, [&](int64_t offset, A weight) {
          for (int64_t j = 0; j < channels; ++j) sums[j] += weight * static_cast<A>(image[offset + j]);
        });
      }
      for (int64_t j = 0; j < channels; ++j) pooled[(k + j) * bins + bin] = sums[j];
    }
  }
}

PyramidShape shape_of(const Pyramid& maps) {
  PyramidShape shape{maps.images(), maps.channels(), {}, {}, {}};
  for (const FeatureMap& map : maps.maps) {
    shape.heights.push_back(map.height);
    shape.widths.push_back(map.width);
  }
  return shape;
}

template <class T>
Tensor forward(const std::vector<Tensor>& features, const Tensor& boxes, const Tensor& image_index,
               const RoiAlignOptions& options) {
  using A = Accumulator<T>;
  const Pyramid maps(features);
  const auto rois = place_boxes<A>(boxes, image_index, shape_of(maps), options);
  const int64_t count = boxes.size(0), channels = maps.channels(), bins = options.bins();
  Tensor result = new_result(features[0], {count, channels, options.rows, options.columns});
  T* out = data<T>(result);
  const int64_t groups = ceil_div(count, kForwardRois);
  torch::stable::parallel_for(0, ceil_div(channels, kForwardChannels) * groups, 1, [&](int64_t begin, int64_t end) {
    std::vector<A> pooled(kForwardChannels * bins + kWidth<A>);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task / groups * kForwardChannels, past = std::min((task % groups + 1) * kForwardRois, count);
      const int64_t block = std::min(kForwardChannels, channels - first);
      for (int64_t i = task % groups * kForwardRois; i < past; ++i) {
        const Roi<A>& roi = rois[i];
        if (roi.empty())
          std::fill_n(pooled.data(), block * bins, A(0));
        else if (is_planar(maps[roi.level]))
          pool_planar<T>(maps[roi.level], roi, first, block, pooled.data());
        else
          pool_interleaved<T>(maps[roi.level], roi, first, block, pooled.data());
        narrow(pooled.data(), block * bins, out + (roi.box * channels + first) * bins);
      }
    }
  });
  return result;
}

// Whether a bin row of a box has cells in the rows of a tile.
template <class A>
bool touches_row(const GradientTile<A>& tile, const AxisWeights<A>& rows, int64_t r) {
  return std::any_of(rows.cell.begin() + rows.first[r], rows.cell.begin() + rows.first[r + 1],
                     [&](int64_t y) { return tile.owns_row(y); });
}

// tile[y] += rows[r][y] (sum_c g[r][c] columns[c]) for one channel; `columns` holds the column weights of every bin, zeros
// between them, in whole vectors from the first column.
template <class A>
void scatter_plane(const Roi<A>& roi, const A* g, const std::vector<A>& columns, int64_t channel,
                   const GradientTile<A>& tile) {
  const AxisWeights<A>& rows = roi.rows;
  const int64_t bins = roi.columns.bins(), span = static_cast<int64_t>(columns.size()) / bins;
  for (int64_t r = 0; r < rows.bins(); ++r) {
    if (!touches_row(tile, rows, r)) continue;
    for (int64_t x = 0; x < span; x += kWidth<A>) {
      Vec<A> sum{};
      for (int64_t c = 0; c < bins; ++c) sum += g[r * bins + c] * load(&columns[c * span + x]);
      for (int64_t i = rows.first[r]; i < rows.first[r + 1]; ++i) {
        if (!tile.owns_row(rows.cell[i])) continue;
        A* out = tile.row(channel, rows.cell[i]) + roi.columns.begin + x;
        store(out, load(out) + rows.weight[i] * sum);
      }
    }
  }
}

// Adds the gradient g[channel][bin] of a box to a planar tile.
template <class A>
void scatter_planar(const Roi<A>& roi, const A* g, const GradientTile<A>& tile) {
  const AxisWeights<A>& columns = roi.columns;
  const int64_t span = round_up(columns.end - columns.begin, kWidth<A>), bins = roi.rows.bins() * columns.bins();
  std::vector<A> dense(columns.bins() * span);
  for (int64_t c = 0; c < columns.bins(); ++c)
    for (int64_t i = columns.first[c]; i < columns.first[c + 1]; ++i)
      dense[c * span + columns.cell[i] - columns.begin] += columns.weight[i];
  for (int64_t k = 0; k < tile.channels; ++k) scatter_plane(roi, g + k * bins, dense, tile.first_channel + k, tile);
}

// The same for an interleaved tile.
template <class A>
void scatter_interleaved(const Roi<A>& roi, const A* g, const GradientTile<A>& tile) {
  constexpr int W = kWidth<A>;
  const AxisWeights<A>&rows = roi.rows, &columns = roi.columns;
  const int64_t bins = rows.bins() * columns.bins(), padded = tile.cell_stride;
  A of_bin[kInterleavedChannels] = {};
  for (int64_t r = 0; r < rows.bins(); ++r) {
    if (!touches_row(tile, rows, r)) continue;
    for (int64_t c = 0; c < columns.bins(); ++c) {
      for (int64_t k = 0; k < tile.channels; ++k) of_bin[k] = g[k * bins + r * columns.bins() + c];
      for (int64_t i = rows.first[r]; i < rows.first[r + 1]; ++i) {
        if (!tile.owns_row(rows.cell[i])) continue;
        A* line = tile.row(tile.first_channel, rows.cell[i]);
        for (int64_t j = columns.first[c]; j < columns.first[c + 1]; ++j) {
          A* cell = line + columns.cell[j] * padded;
          const A weight = rows.weight[i] * columns.weight[j];
          for (int64_t k = 0; k < padded; k += W) store(cell + k, load(cell + k) + weight * load(of_bin + k));
        }
      }
    }
  }
}

template <class T>
std::vector<Tensor> backward(const Tensor& gradient, const Tensor& boxes, const Tensor& image_index,
                             const PyramidShape& shape, const RoiAlignOptions& options) {
  using A = Accumulator<T>;
  const auto rois = place_boxes<A>(boxes, image_index, shape, options);
  std::vector<int64_t> first(shape.levels() * shape.images + 1);  // of the boxes of each level and image
  for (const auto& roi : rois) ++first[roi.level * shape.images + roi.image + 1];
  for (size_t i = 1; i < first.size(); ++i) first[i] += first[i - 1];
  const auto for_each_roi = [&](const GradientTile<A>& tile, const auto& body) {
    const int64_t group = tile.level * shape.images + tile.image;
    for (int64_t i = first[group]; i < first[group + 1] && rois[i].rows.begin < tile.past_row(); ++i)
      if (rois[i].rows.end > tile.first_row && !rois[i].empty()) body(rois[i]);
  };

  const Tensor pooled = torch::stable::contiguous(gradient);
  const std::vector<Tensor> results = new_gradients(gradient, shape);
  const Pyramid maps(results);
  const int64_t bins = options.bins();
  const auto touches = [&](const GradientTile<A>& tile) {
    bool any = false;
    for_each_roi(tile, [&](const Roi<A>&) { any = true; });
    return any;
  };
  fill_gradients<T>(maps, touches, [&](const GradientTile<A>& tile) {
    std::vector<A> g(tile.channels * bins);
    for_each_roi(tile, [&](const Roi<A>& roi) {
      widen(data<T>(pooled) + (roi.box * shape.channels + tile.first_channel) * bins, tile.channels * bins, g.data());
      if (is_planar(maps[tile.level]))
        scatter_planar(roi, g.data(), tile);
      else
        scatter_interleaved(roi, g.data(), tile);
    });
  });
  return results;
}

Tensor multiscale_roi_align(std::vector<Tensor> features, const Tensor& boxes, const Tensor& image_index,
                            std::vector<int64_t> output_size, std::vector<double> strides, int64_t sampling_ratio,
                            bool aligned, int64_t canonical_size, int64_t canonical_level) {
  const RoiAlignOptions options{strides, output_size[0], output_size[1], sampling_ratio,
                                aligned, canonical_size, canonical_level};
  std::optional<Tensor> result;
  with_floating_type(features[0].scalar_type(),
                     [&](auto tag) { result = forward<decltype(tag)>(features, boxes, image_index, options); });
  return *result;
}

std::vector<Tensor> multiscale_roi_align_backward(const Tensor& gradient, const Tensor& boxes,
                                                  const Tensor& image_index, int64_t images,
                                                  std::vector<int64_t> heights, std::vector<int64_t> widths,
                                                  std::vector<int64_t> channels_last, std::vector<double> strides,
                                                  int64_t sampling_ratio, bool aligned, int64_t canonical_size,
                                                  int64_t canonical_level) {
  const PyramidShape shape{images, gradient.size(1), heights, widths, channels_last};
  const RoiAlignOptions options{strides, gradient.size(2), gradient.size(3), sampling_ratio,
                                aligned, canonical_size,   canonical_level};
  std::vector<Tensor> results;
  with_floating_type(gradient.scalar_type(), [&](auto tag) {
    results = backward<decltype(tag)>(gradient, boxes, image_index, shape, options);
  });
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CPU, m) {
  m.impl("multiscale_roi_align", TORCH_BOX(&multiscale_roi_align));
  m.impl("multiscale_roi_align_backward", TORCH_BOX(&multiscale_roi_align_backward));
}

}  // namespace gkd

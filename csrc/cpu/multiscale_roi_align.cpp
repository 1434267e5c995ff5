// RoIAlign over a pyramid. Planar maps are pooled along their rows, interleaved ones along their channels, and neither is copied;
// the backward pass is the transpose, gathered tile by tile of the gradient.
#include "gradient_tiles.h"
#include "roi_weights.h"

namespace gkd::cpu {
namespace {

template <class A>
constexpr int kWidth = Simd<A>::width;

// Column weights by vector lanes: lane c of slot k has the k-th weight of bin c and where its cell lies in one or two vectors.
template <class A>
struct ColumnLanes {
  using Lane = std::conditional_t<std::is_same_v<A, double>, int64_t, int32_t>;
  typedef Lane Lanes __attribute__((vector_size(kVectorBytes)));
  static constexpr int kSlots = 8;
  int vectors = 0, slots = 0;  // no vectors: they would not hold the bins or all cells, or reach over the border of the map
  int64_t start = 0;           // first cell in the vectors
  Vec<A> weight[kSlots] = {};
  Lanes cell[kSlots];

  void set(const AxisWeights<A>& columns, int64_t map_width) {
    const int64_t width = columns.end - columns.begin, span = width <= kWidth<A> ? kWidth<A> : 2 * kWidth<A>;
    if (columns.bins() > kWidth<A> || width > span || map_width < span) return;
    for (int64_t c = 0; c < columns.bins(); ++c)
      slots = std::max(slots, static_cast<int>(columns.first[c + 1] - columns.first[c]));
    if (slots > kSlots) return;
    vectors = static_cast<int>(span / kWidth<A>);
    start = std::min(columns.begin, map_width - span);
    for (int k = 0; k < kSlots; ++k)
      for (int c = 0; c < kWidth<A>; ++c) cell[k][c] = static_cast<Lane>(columns.begin - start);
    for (int64_t c = 0; c < columns.bins(); ++c)
      for (int64_t i = columns.first[c], k = 0; i < columns.first[c + 1]; ++i, ++k) {
        weight[k][c] = columns.weight[i];
        cell[k][c] = static_cast<Lane>(columns.cell[i] - start);
      }
  }
};

// Lanes of two vectors in a row.
template <class A>
Vec<A> pick(Vec<A> left, Vec<A> right, typename ColumnLanes<A>::Lanes index) {
#if defined(__clang__)
  Vec<A> picked;
  for (int i = 0; i < kWidth<A>; ++i) picked[i] = index[i] < kWidth<A> ? left[index[i]] : right[index[i] - kWidth<A>];
  return picked;
#else
  return __builtin_shuffle(left, right, index);
#endif
}

// pooled[channel][bin] for a box whose columns fit into vectors. Writes up to a vector past the last bin.
template <int vectors, int slots, class T, class A>
void pool_in_registers(const FeatureMap& map, const Roi<A>& roi, const ColumnLanes<A>& lanes, int64_t first,
                       int64_t count, A* pooled) {
  const int64_t row_bins = roi.rows.bins(), columns = roi.columns.bins(), stride = map.stride(2);
  const int64_t *taps = roi.rows.first.data(), *cells = roi.rows.cell.data();
  const A* weights = roi.rows.weight.data();
  Vec<A> weight[slots];  // copies: `pooled` might change the originals, for all that the compiler knows
  typename ColumnLanes<A>::Lanes cell[slots];
#pragma GCC unroll 8
  for (int k = 0; k < slots; ++k) {
    weight[k] = lanes.weight[k];
    cell[k] = lanes.cell[k];
  }
  for (int64_t c = 0; c < count; ++c) {
    const T* plane = map.row<T>(roi.image, first + c, 0) + lanes.start;
    A* out = pooled + c * row_bins * columns;
    for (int64_t r = 0; r < row_bins; ++r) {
      Vec<A> left{}, right{}, sum{};
      for (int64_t i = taps[r]; i < taps[r + 1]; ++i) {
        const T* line = plane + cells[i] * stride;
        left += weights[i] * load_vector(line);
        if (vectors == 2) right += weights[i] * load_vector(line + kWidth<A>);
      }
#pragma GCC unroll 8
      for (int k = 0; k < slots; ++k) sum += weight[k] * pick<A>(left, right, cell[k]);
      store(out + r * columns, sum);
    }
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
void pool_planar(const FeatureMap& map, const Roi<A>& roi, const ColumnLanes<A>& lanes, int64_t first, int64_t count,
                 A* pooled) {
  const bool few = lanes.slots <= 4;
  if (lanes.vectors == 1 && few) return pool_in_registers<1, 4, T>(map, roi, lanes, first, count, pooled);
  if (lanes.vectors == 1) return pool_in_registers<1, 8, T>(map, roi, lanes, first, count, pooled);
  if (lanes.vectors == 2 && few) return pool_in_registers<2, 4, T>(map, roi, lanes, first, count, pooled);
  if (lanes.vectors == 2) return pool_in_registers<2, 8, T>(map, roi, lanes, first, count, pooled);
  std::vector<A> line(map.width);
  for (int64_t c = 0; c < count; ++c)
    pool_in_memory(map.row<T>(roi.image, first + c, 0), map.stride(2), roi, line.data(),
                   pooled + c * roi.rows.bins() * roi.columns.bins());
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
  for (int64_t k = 0, channels = 0; k < count; k += channels) {
    const T* image = map.row<T>(roi.image, first + k, 0);
    channels = count - k >= 2 * W ? 2 * W : std::min<int64_t>(W, count - k);
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
      } else if (channels == W) {
        Vec<A> sum{};
        for_each_cell(map, roi, r, c, [&](int64_t offset, A weight) { sum += weight * load_vector(image + offset); });
        store(sums, sum);
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

// First box of each level and image.
template <class A>
std::vector<int64_t> group_starts(const std::vector<Roi<A>>& rois, const PyramidShape& shape) {
  std::vector<int64_t> starts(shape.levels() * shape.images + 1);
  for (const auto& roi : rois) ++starts[roi.level * shape.images + roi.image + 1];
  for (size_t i = 1; i < starts.size(); ++i) starts[i] += starts[i - 1];
  return starts;
}

// Boxes of one level and image, for some channels.
struct Task {
  int64_t level, first_roi, past_roi, first_channel, channels;
};

constexpr int64_t kTaskRois = 64, kPooledPlanes = 4;  // these planes stay in the second-level cache for all tasks on them

std::vector<Task> make_tasks(const Pyramid& maps, const std::vector<int64_t>& starts) {
  std::vector<Task> tasks;
  for (int64_t c = 0; c < maps.channels(); c += kTaskChannels)
    for (int64_t group = 0; group + 1 < static_cast<int64_t>(starts.size()); ++group) {
      const int64_t level = group / maps.images(), past = std::min(c + kTaskChannels, maps.channels());
      const int64_t block = is_planar(maps[level]) ? kPooledPlanes : kInterleavedChannels;
      for (int64_t b = c; b < past; b += block)
        for (int64_t i = starts[group]; i < starts[group + 1]; i += kTaskRois)
          tasks.push_back({level, i, std::min(i + kTaskRois, starts[group + 1]), b, std::min(block, past - b)});
    }
  return tasks;
}

// Boxes that together cover much of their rows find them faster if these were fetched in the order of memory. Inlined: the
// compiler drops calls of a function that does nothing but prefetch.
template <class T, class A>
__attribute__((always_inline)) inline void prefetch_rows(const FeatureMap& map, const Roi<A>* rois, const Task& task) {
  int64_t covered = 0, end = 0;
  const int64_t begin = rois[task.first_roi].rows.begin;
  for (int64_t i = task.first_roi; i < task.past_roi; ++i) {
    const AxisWeights<A>&rows = rois[i].rows, &columns = rois[i].columns;
    covered += (rows.end - rows.begin) * (columns.end - columns.begin);
    end = std::max(end, rows.end);
  }
  if (4 * covered < (end - begin) * map.width) return;
  for (int64_t c = 0; c < task.channels; ++c)
    for (int64_t y = begin; y < end; ++y) {
      const T* row = map.row<T>(rois[task.first_roi].image, task.first_channel + c, y);
      for (int64_t x = 0; x < map.width; x += 64 / sizeof(T)) __builtin_prefetch(row + x);
    }
}

template <class T>
Tensor forward(const std::vector<Tensor>& features, const Tensor& boxes, const Tensor& image_index,
               const RoiAlignOptions& options) {
  using A = Accumulator<T>;
  const Pyramid maps(features);
  const PyramidShape shape = shape_of(maps);
  const auto rois = place_boxes<A>(boxes, image_index, shape, options);
  const auto tasks = make_tasks(maps, group_starts(rois, shape));
  const int64_t count = boxes.size(0), channels = maps.channels(), bins = options.bins();
  std::vector<ColumnLanes<A>> lanes(count);
  torch::stable::parallel_for(0, count, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) lanes[i].set(rois[i].columns, maps[rois[i].level].width);
  });

  Tensor result = new_tensor(features[0], {count, channels, options.rows, options.columns}, features[0].scalar_type());
  T* out = data<T>(result);
  torch::stable::parallel_for(0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t begin, int64_t end) {
    std::vector<A> pooled(kInterleavedChannels * bins + kWidth<A>);
    for (int64_t t = begin; t < end; ++t) {
      const Task& task = tasks[t];
      const FeatureMap& map = maps[task.level];
      if (is_planar(map)) prefetch_rows<T>(map, rois.data(), task);
      for (int64_t i = task.first_roi; i < task.past_roi; ++i) {
        const Roi<A>& roi = rois[i];
        if (roi.empty())
          std::fill_n(pooled.data(), task.channels * bins, A(0));
        else if (is_planar(map))
          pool_planar<T>(map, roi, lanes[i], task.first_channel, task.channels, pooled.data());
        else
          pool_interleaved<T>(map, roi, task.first_channel, task.channels, pooled.data());
        narrow(pooled.data(), task.channels * bins, out + (roi.box * channels + task.first_channel) * bins);
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
  const std::vector<int64_t> starts = group_starts(rois, shape);
  const auto for_each_roi = [&](const GradientTile<A>& tile, const auto& body) {
    const int64_t group = tile.level * shape.images + tile.image;
    for (int64_t i = starts[group]; i < starts[group + 1] && rois[i].rows.begin < tile.past_row(); ++i)
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

}  // namespace gkd::cpu

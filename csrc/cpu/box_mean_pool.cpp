// Mean of the feature cells under each box.
//
// Few cells under boxes are summed directly, many through sums over columns, whose cost depends neither on the number of
// boxes nor on their height. A map whose cells lie together (NCHW) is taken plane by plane; a channels_last map box by box
// or in blocks of channels forward, and row by row backward. Every result is written by one task, in an order that does not depend on
// the number of threads.
#include <algorithm>
#include <cmath>
#include <limits>

#include "feature_map.h"

namespace gkd::cpu {
namespace {

// Cells rows top..bottom, columns left..right, ends excluded; none for a box with a NaN coordinate.
struct Cells {
  int64_t box, left, top, right, bottom;
  int64_t width() const { return right - left; }
  int64_t area() const { return width() * (bottom - top); }
};

void cell_range(float lower, float upper, float stride, bool mirror, int64_t size, int64_t& first, int64_t& last) {
  const auto cell = [&](float coordinate) {
    const float position = std::floor((mirror ? std::abs(coordinate) : coordinate) / stride);
    return static_cast<int64_t>(std::clamp(position, 0.0f, static_cast<float>(size - 1)));
  };
  first = cell(lower);
  last = std::max(first, cell(upper)) + 1;
}

// One level with the boxes of each image.
struct Level {
  FeatureMap map;
  std::vector<std::vector<Cells>> boxes;

  // Sums over columns pay off where the boxes hold this many times the cells of the map.
  bool crowded(int64_t image) const {
    int64_t area = 0;
    for (const Cells& cells : boxes[image]) area += cells.area();
    return area > 2 * map.cells();
  }
  bool by_planes() const { return map.cells_adjoin() || !map.channels_adjoin(); }
};

std::vector<Level> make_levels(const std::vector<Tensor>& features, const Tensor& boxes, const Tensor& image_index,
                               const std::vector<double>& strides, bool mirror) {
  std::vector<Level> levels;
  for (size_t l = 0; l < features.size(); ++l) {
    Level level{FeatureMap(features[l]), {}};
    level.boxes.resize(level.map.images);
    for (int64_t i = 0; i < boxes.size(0); ++i) {
      const int64_t image = data<int64_t>(image_index)[i];
      STD_TORCH_CHECK(image >= 0 && image < level.map.images, "image_index: expected values in [0,", level.map.images,
                      "), got ", image);
      const float* box = data<float>(boxes) + 4 * i;
      if (std::isnan(box[0] + box[1] + box[2] + box[3]) &&
          (std::isnan(box[0]) || std::isnan(box[1]) || std::isnan(box[2]) || std::isnan(box[3])))
        continue;
      Cells cells{i, 0, 0, 0, 0};
      const float stride = static_cast<float>(strides[l]);
      cell_range(box[0], box[2], stride, mirror, level.map.width, cells.left, cells.right);
      cell_range(box[1], box[3], stride, mirror, level.map.height, cells.top, cells.bottom);
      level.boxes[image].push_back(cells);
    }
    levels.push_back(std::move(level));
  }
  return levels;
}

// Independent partial sums keep the rounding error low and let the compiler use vectors.
template <class T>
double sum(const T* values, int64_t count) {
  constexpr int64_t kLanes = 16;
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t k = 0; k < kLanes; ++k) lanes[k] += values[i + k];
  double total = 0;
  for (; i < count; ++i) total += values[i];
  for (int64_t k = 0; k < kLanes; ++k) total += lanes[k];
  return total;
}

template <class T>
class PlanePool {
 public:
  // Means of one plane into out[box * channels].
  void operator()(const Level& level, int64_t image, int64_t channel, T* out) {
    const FeatureMap& map = level.map;
    const std::vector<Cells>& boxes = level.boxes[image];
    if (boxes.empty()) return;
    buffer_.resize(map.cells());
    const T* plane = map.read(Run{image, channel, 0, map.cells(), true}, buffer_.data());
    const bool crowded = level.crowded(image);
    if (crowded) sum_columns(plane, map);
    for (const Cells& cells : boxes) {
      double total = 0;
      if (crowded) {
        const double* above = columns_.data() + cells.top * map.width;
        const double* below = columns_.data() + cells.bottom * map.width;
        for (int64_t x = cells.left; x < cells.right; ++x) total += below[x] - above[x];
      } else {
        for (int64_t y = cells.top; y < cells.bottom; ++y)
          total += sum(plane + y * map.width + cells.left, cells.width());
      }
      out[cells.box * map.channels] = static_cast<T>(total / cells.area());
    }
  }

 private:
  std::vector<T> buffer_;
  std::vector<double> columns_;  // [H+1,W]: sums of the rows above

  void sum_columns(const T* plane, const FeatureMap& map) {
    columns_.assign((map.height + 1) * map.width, 0.0);
    for (int64_t y = 0; y < map.height; ++y) {
      const double* above = columns_.data() + y * map.width;
      double* below = columns_.data() + (y + 1) * map.width;
      for (int64_t x = 0; x < map.width; ++x) below[x] = above[x] + plane[y * map.width + x];
    }
  }
};

template <class T>
class PlaneGradient {
 public:
  void operator()(const Level& level, int64_t image, int64_t channel, const T* gradient) {
    const FeatureMap& map = level.map;
    const Run run{image, channel, 0, map.cells(), true};
    buffer_.resize(map.cells());
    T* plane = map.target(run, buffer_.data());
    if (level.crowded(image))
      from_differences(level.boxes[image], map, gradient, plane);
    else
      directly(level.boxes[image], map, gradient, plane);
    map.write(run, plane);
  }

 private:
  std::vector<T> buffer_;
  std::vector<double> steps_;  // [H+1,W]: by how much each row differs from the one above

  static void directly(const std::vector<Cells>& boxes, const FeatureMap& map, const T* gradient, T* plane) {
    std::fill_n(plane, map.cells(), T(0));
    for (const Cells& cells : boxes) {
      const T share = gradient[cells.box * map.channels] / static_cast<T>(cells.area());
      for (int64_t y = cells.top; y < cells.bottom; ++y)
        for (int64_t x = cells.left; x < cells.right; ++x) plane[y * map.width + x] += share;
    }
  }

  void from_differences(const std::vector<Cells>& boxes, const FeatureMap& map, const T* gradient, T* plane) {
    steps_.assign((map.height + 1) * map.width, 0.0);
    for (const Cells& cells : boxes) {
      const double share = static_cast<double>(gradient[cells.box * map.channels]) / cells.area();
      double* first = steps_.data() + cells.top * map.width;
      double* past = steps_.data() + cells.bottom * map.width;
      for (int64_t x = cells.left; x < cells.right; ++x) {
        first[x] += share;
        past[x] -= share;
      }
    }
    for (int64_t y = 0; y < map.height; ++y) {
      double* row = steps_.data() + y * map.width;
      for (int64_t x = 0; x < map.width; ++x) {
        if (y > 0) row[x] += row[x - map.width];
        plane[y * map.width + x] = static_cast<T>(row[x]);
      }
    }
  }
};

// Mean over the cells of one box of all channels of a channels_last map.
template <class T>
void pool_channels(const FeatureMap& map, int64_t image, const Cells& cells, T* out) {
  std::vector<T> buffer(map.channels);
  std::vector<double> total(map.channels);
  for (int64_t y = cells.top; y < cells.bottom; ++y)
    for (int64_t x = cells.left; x < cells.right; ++x) {
      const T* values = map.read(Run{image, 0, y * map.width + x, map.channels, false}, buffer.data());
      for (int64_t c = 0; c < map.channels; ++c) total[c] += values[c];
    }
  for (int64_t c = 0; c < map.channels; ++c) out[c] = static_cast<T>(total[c] / cells.area());
}

// Means of all boxes of an image for some channels of a channels_last map: sums over columns grow row by row, and a box
// subtracts its part of them where it begins and adds it where it ends.
template <class T>
void pool_block(const Level& level, int64_t image, int64_t first, int64_t count, T* out) {
  struct Edge {
    int64_t row, index;
    double sign;
  };
  const FeatureMap& map = level.map;
  const std::vector<Cells>& boxes = level.boxes[image];
  std::vector<Edge> edges;
  for (size_t i = 0; i < boxes.size(); ++i) {
    edges.push_back({boxes[i].top, static_cast<int64_t>(i), -1.0});
    edges.push_back({boxes[i].bottom, static_cast<int64_t>(i), 1.0});
  }
  std::sort(edges.begin(), edges.end(), [](const Edge& a, const Edge& b) { return a.row < b.row; });
  std::vector<double> columns(map.width * count), totals(boxes.size() * count);
  std::vector<T> buffer(count);
  auto edge = edges.begin();
  for (int64_t y = 0; edge != edges.end(); ++y) {
    for (; edge != edges.end() && edge->row == y; ++edge) {
      double* total = totals.data() + edge->index * count;
      for (int64_t x = boxes[edge->index].left; x < boxes[edge->index].right; ++x)
        for (int64_t c = 0; c < count; ++c) total[c] += edge->sign * columns[x * count + c];
    }
    for (int64_t x = 0; x < map.width && edge != edges.end(); ++x) {
      const T* values = map.read(Run{image, first, y * map.width + x, count, false}, buffer.data());
      for (int64_t c = 0; c < count; ++c) columns[x * count + c] += values[c];
    }
  }
  for (size_t i = 0; i < boxes.size(); ++i)
    for (int64_t c = 0; c < count; ++c)
      out[boxes[i].box * map.channels + first + c] = static_cast<T>(totals[i * count + c] / boxes[i].area());
}

constexpr int64_t kBlockChannels = 64;  // their sums over columns stay in the second-level cache

template <class T>
void pool_channels_last(const Level& level, T* out) {
  const int64_t channels = level.map.channels;
  for (int64_t image = 0; image < level.map.images; ++image) {
    const std::vector<Cells>& own = level.boxes[image];
    const bool crowded = level.crowded(image);
    const int64_t tasks = crowded ? (channels + kBlockChannels - 1) / kBlockChannels : own.size();
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        if (crowded)
          pool_block(level, image, i * kBlockChannels, std::min(kBlockChannels, channels - i * kBlockChannels), out);
        else
          pool_channels(level.map, image, own[i], out + own[i].box * channels);
    });
  }
}

// Gradient of one row of cells of a channels_last map: a running sum of the boxes that begin and end along it.
template <class T>
void row_gradient(const Level& level, int64_t image, int64_t y, const T* gradient) {
  const FeatureMap& map = level.map;
  std::vector<double> steps((map.width + 1) * map.channels);
  for (const Cells& cells : level.boxes[image]) {
    if (y < cells.top || y >= cells.bottom) continue;
    const T* values = gradient + cells.box * map.channels;
    double* first = steps.data() + cells.left * map.channels;
    double* past = steps.data() + cells.right * map.channels;
    for (int64_t c = 0; c < map.channels; ++c) {
      const double share = static_cast<double>(values[c]) / cells.area();
      first[c] += share;
      past[c] -= share;
    }
  }
  std::vector<T> buffer(map.channels);
  for (int64_t x = 0; x < map.width; ++x) {
    double* here = steps.data() + x * map.channels;
    const Run run{image, 0, y * map.width + x, map.channels, false};
    T* out = map.target(run, buffer.data());
    for (int64_t c = 0; c < map.channels; ++c) {
      if (x > 0) here[c] += here[c - map.channels];
      out[c] = static_cast<T>(here[c]);
    }
    map.write(run, out);
  }
}

// Planes of all levels in turns, so that equal shares of the index range are equal shares of the work.
template <class Task>
void for_each_plane(const std::vector<Level>& levels, const Task& make_task) {
  const int64_t count = levels.size(), planes = levels[0].map.images * levels[0].map.channels;
  torch::stable::parallel_for(0, count * planes, 8, [&](int64_t begin, int64_t end) {
    auto task = make_task();
    for (int64_t i = begin; i < end; ++i) {
      const Level& level = levels[i % count];
      const int64_t plane = i / count;
      if (level.by_planes()) task(i % count, plane / level.map.channels, plane % level.map.channels);
    }
  });
}

template <class T>
Tensor forward(const std::vector<Level>& levels, const Tensor& like, int64_t boxes) {
  const int64_t count = levels.size(), channels = levels[0].map.channels;
  Tensor out = new_tensor(like, {count, boxes, channels}, dtype_of<T>());
  T* means = data<T>(out);
  std::fill_n(means, out.numel(), std::numeric_limits<T>::quiet_NaN());
  for_each_plane(levels, [&] {
    return [&, pool = PlanePool<T>()](int64_t l, int64_t image, int64_t channel) mutable {
      pool(levels[l], image, channel, means + l * boxes * channels + channel);
    };
  });
  for (int64_t l = 0; l < count; ++l)
    if (!levels[l].by_planes()) pool_channels_last(levels[l], means + l * boxes * channels);
  return out;
}

template <class T>
void backward(const std::vector<Level>& levels, const Tensor& gradient, int64_t boxes) {
  const int64_t channels = levels[0].map.channels;
  const T* values = data<T>(gradient);
  for_each_plane(levels, [&] {
    return [&, spread = PlaneGradient<T>()](int64_t l, int64_t image, int64_t channel) mutable {
      spread(levels[l], image, channel, values + l * boxes * channels + channel);
    };
  });
  for (size_t l = 0; l < levels.size(); ++l) {
    if (levels[l].by_planes()) continue;
    const int64_t height = levels[l].map.height;
    torch::stable::parallel_for(0, levels[l].map.images * height, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        row_gradient(levels[l], i / height, i % height, values + l * boxes * channels);
    });
  }
}

// Embeddings [L,B,C], float32 (float64 for float64 features).
Tensor box_mean_pool(std::vector<Tensor> features, const Tensor& boxes, const Tensor& image_index,
                     std::vector<double> strides, bool mirror) {
  const Tensor b = torch::stable::contiguous(boxes), i = torch::stable::contiguous(image_index);
  const std::vector<Level> levels = make_levels(features, b, i, strides, mirror);
  return is_double({&features[0]}) ? forward<double>(levels, boxes, boxes.size(0))
                                   : forward<float>(levels, boxes, boxes.size(0));
}

// Gradients of the features, in their dtypes and layouts; `gradient` [L,B,C] as the forward's result.
std::vector<Tensor> box_mean_pool_backward(const Tensor& gradient, std::vector<Tensor> features, const Tensor& boxes,
                                           const Tensor& image_index, std::vector<double> strides, bool mirror) {
  const Tensor g = torch::stable::contiguous(gradient);
  const Tensor b = torch::stable::contiguous(boxes), i = torch::stable::contiguous(image_index);
  std::vector<Tensor> gradients;
  for (const Tensor& feature : features) gradients.push_back(torch::stable::empty_like(feature));
  const std::vector<Level> levels = make_levels(gradients, b, i, strides, mirror);
  if (is_double({&features[0]}))
    backward<double>(levels, g, boxes.size(0));
  else
    backward<float>(levels, g, boxes.size(0));
  return gradients;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CPU, m) {
  m.impl("box_mean_pool", TORCH_BOX(&box_mean_pool));
  m.impl("box_mean_pool_backward", TORCH_BOX(&box_mean_pool_backward));
}

}  // namespace gkd::cpu

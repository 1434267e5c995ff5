// Weighted squared differences of two pyramids, and their gradients: one pass over the maps each, whose weights are
// painted once for all channels.
//
// Work is cut into tiles by the shapes alone, and the tiles' sums are added in order, so that results do not depend on
// the number of threads.
#include <cstring>
#include <numeric>
#include <tuple>

#include "feature_map.h"
#include "gemm.h"
#include "huge_pages.h"
#include "weight_map.h"

namespace gkd::cpu {
namespace {

// Elements that are summed up in the accumulation type before they join a double; buffers of them stay in the
// first-level cache.
constexpr int64_t kStrip = 512;
// Elements of a map that are one task: long ways through memory, for the prefetcher.
constexpr int64_t kTileElements = 1 << 18;

// Weights of a run's cells: as foreground, and as background.
template <class T>
struct Weights {
  const T *foreground, *background;
};

// One level: both maps and the weights of every cell [N,H*W].
template <class T>
struct Level {
  FeatureMap student, teacher;
  Weights<T> weights;

  Weights<T> of(const Run& run) const {
    const int64_t cell = run.image * student.cells() + run.cell;
    return {weights.foreground + cell, weights.background + cell};
  }

  // Runs go where memory goes. Where the maps differ in layout they go along the channels: the cells that one line of
  // the cache holds are next to each other in time then, too.
  bool along_cells() const { return !student.runs_along_channels() && !teacher.runs_along_channels(); }
};

// A part of one level's map, of one image.
struct Tile {
  int64_t level, image, first_channel, channels, first_cell, cells;
};

template <class T>
std::vector<Level<T>> make_levels(const std::vector<Tensor>& student, const std::vector<Tensor>& teacher,
                                  const Tensor& weights) {
  std::vector<Level<T>> levels;
  Weights<T> next{data<T>(weights), data<T>(weights) + weights.numel() / 2};
  for (size_t l = 0; l < student.size(); ++l) {
    levels.push_back({FeatureMap(student[l]), FeatureMap(teacher[l]), next});
    const int64_t cells = levels.back().student.images * levels.back().student.cells();
    next = {next.foreground + cells, next.background + cells};
  }
  return levels;
}

template <class T>
std::vector<Tile> make_tiles(const std::vector<Level<T>>& levels) {
  std::vector<Tile> tiles;
  for (size_t l = 0; l < levels.size(); ++l) {
    const FeatureMap& map = levels[l].student;
    const bool along_cells = levels[l].along_cells();
    const int64_t most = along_cells ? kTileElements : kTileElements / std::max<int64_t>(1, map.channels);
    const int64_t cells = ceil_div(map.cells(), ceil_div(map.cells(), std::max<int64_t>(1, most)));
    const int64_t channels = along_cells ? std::max<int64_t>(1, kTileElements / cells) : map.channels;
    for (int64_t image = 0; image < map.images; ++image)
      for (int64_t channel = 0; channel < map.channels; channel += channels)
        for (int64_t cell = 0; cell < map.cells(); cell += cells)
          tiles.push_back({static_cast<int64_t>(l), image, channel, std::min(channels, map.channels - channel), cell,
                           std::min(cells, map.cells() - cell)});
  }
  return tiles;
}

// body(run) for the runs of a tile, in the order of memory.
template <class Body>
void for_each_run(const Tile& tile, bool along_cells, const Body& body) {
  const int64_t rows = along_cells ? tile.channels : tile.cells, length = along_cells ? tile.cells : tile.channels;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < length; i += kStrip) {
      const int64_t count = std::min(kStrip, length - i);
      if (along_cells)
        body(Run{tile.image, tile.first_channel + row, tile.first_cell + i, count, true});
      else
        body(Run{tile.image, tile.first_channel + i, tile.first_cell + row, count, false});
    }
}

// The first n < width lanes; the others are 0.
template <class T>
Vec<T> load_part(const T* p, int64_t n) {
  Vec<T> v = {};
  std::memcpy(&v, p, n * sizeof(T));
  return v;
}

// Sums in double, one for each lane of a vector.
template <class T>
struct LaneSums {
  double lanes[Simd<T>::width] = {};

  void add(Vec<T> v, double factor = 1) {
    for (int i = 0; i < Simd<T>::width; ++i) lanes[i] += factor * static_cast<double>(v[i]);
  }
  double total() const { return std::accumulate(lanes, lanes + Simd<T>::width, 0.0); }
};

template <class T>
struct Sums {
  LaneSums<T> foreground, background;

  // W (s-t)^2 and (1-O) r (s-t)^2 of a run of cells.
  void add_cells(const T* s, const T* t, Weights<T> weights, int64_t count) {
    constexpr int W = Simd<T>::width;
    const T *inside = weights.foreground, *outside = weights.background;
    Vec<T> painted[2] = {}, rest[2] = {};
    const auto add = [&](int j, Vec<T> difference, Vec<T> foreground_weight, Vec<T> background_weight) {
      const Vec<T> square = difference * difference;
      painted[j] += foreground_weight * square;
      rest[j] += background_weight * square;
    };
    int64_t i = 0;
    for (; i + 2 * W <= count; i += 2 * W) {
      add(0, load(s + i) - load(t + i), load(inside + i), load(outside + i));
      add(1, load(s + i + W) - load(t + i + W), load(inside + i + W), load(outside + i + W));
    }
    for (; i < count; i += W) {
      const int64_t n = std::min<int64_t>(W, count - i);
      add(0, load_part(s + i, n) - load_part(t + i, n), load_part(inside + i, n), load_part(outside + i, n));
    }
    foreground.add(painted[0] + painted[1]);
    background.add(rest[0] + rest[1]);
  }

  // The same of a run of one cell's channels.
  void add_channels(const T* s, const T* t, Weights<T> weights, int64_t count) {
    constexpr int W = Simd<T>::width;
    Vec<T> sum[2] = {};
    const auto add = [&](int j, Vec<T> difference) { sum[j] += difference * difference; };
    int64_t i = 0;
    for (; i + 2 * W <= count; i += 2 * W) {
      add(0, load(s + i) - load(t + i));
      add(1, load(s + i + W) - load(t + i + W));
    }
    for (; i < count; i += W) {
      const int64_t n = std::min<int64_t>(W, count - i);
      add(0, load_part(s + i, n) - load_part(t + i, n));
    }
    foreground.add(sum[0] + sum[1], *weights.foreground);
    background.add(sum[0] + sum[1], *weights.background);
  }
};

template <class T>
Sums<T> sum_tile(const Level<T>& level, const Tile& tile) {
  T s[kStrip], t[kStrip];
  Sums<T> sums;
  for_each_run(tile, level.along_cells(), [&](const Run& run) {
    const T *student = level.student.read(run, s), *teacher = level.teacher.read(run, t);
    if (run.along_cells)
      sums.add_cells(student, teacher, level.of(run), run.count);
    else
      sums.add_channels(student, teacher, level.of(run), run.count);
  });
  return sums;
}

// d foreground and d background of one level, times the 2 of the square.
template <class T>
struct Slopes {
  T foreground, background;

  Vec<T> vector(Weights<T> w, int64_t cell) const {
    return foreground * load(w.foreground + cell) + background * load(w.background + cell);
  }
  T at(Weights<T> w, int64_t cell) const { return foreground * w.foreground[cell] + background * w.background[cell]; }
};

// out = slope of the cell (s - t)
template <class T>
void difference(const T* s, const T* t, Weights<T> weights, bool along_cells, Slopes<T> slopes, int64_t count,
                T* out) {
  constexpr int W = Simd<T>::width;
  const T slope = slopes.at(weights, 0);
  int64_t i = 0;
  for (; i + W <= count; i += W) {
    const Vec<T> slope_vector = along_cells ? slopes.vector(weights, i) : slope + Vec<T>{};
    store(out + i, slope_vector * (load(s + i) - load(t + i)));
  }
  for (; i < count; ++i) out[i] = (along_cells ? slopes.at(weights, i) : slope) * (s[i] - t[i]);
}

template <class T>
void differentiate_tile(const Level<T>& level, const Tile& tile, Slopes<T> slopes, const FeatureMap* student_gradient,
                        const FeatureMap* teacher_gradient) {
  T s[kStrip], t[kStrip], buffer[kStrip];
  for_each_run(tile, level.along_cells(), [&](const Run& run) {
    const T *student = level.student.read(run, s), *teacher = level.teacher.read(run, t);
    if (student_gradient) {
      T* out = student_gradient->target(run, buffer);
      difference(student, teacher, level.of(run), run.along_cells, slopes, run.count, out);
      student_gradient->write(run, out);
    }
    if (teacher_gradient) {
      T* out = teacher_gradient->target(run, buffer);
      difference(teacher, student, level.of(run), run.along_cells, slopes, run.count, out);
      teacher_gradient->write(run, out);
    }
  });
}

// Weights [2, sum of N*H*W] of the cells, level after level, as foreground and as background. A base size of 0 paints
// every box on every level.
template <class T>
Tensor paint_weights(const std::vector<Tensor>& maps, const Tensor& boxes, const Tensor& image_index,
                     const Tensor& omega, const std::optional<Tensor>& trust, const std::vector<double>& strides,
                     bool last, double base_size) {
  int64_t cells = 0;
  for (const Tensor& map : maps) cells += map.size(0) * map.size(2) * map.size(3);
  Tensor weights = new_zeros(maps[0], {2, cells}, dtype_of<T>());
  std::vector<T*> level_weights;
  T* next = data<T>(weights);
  for (const Tensor& map : maps) {
    level_weights.push_back(next);
    next += map.size(0) * map.size(2) * map.size(3);
  }

  const int64_t count = boxes.size(0), images = maps[0].size(0);
  std::vector<T> values(omega.numel());
  with_floating_type(omega.scalar_type(),
                     [&](auto tag) { widen(data<decltype(tag)>(omega), omega.numel(), values.data()); });
  for (int64_t i = 0; i < count; ++i) {
    const int64_t image = data<int64_t>(image_index)[i];
    STD_TORCH_CHECK(image >= 0 && image < images, "image_index: expected values in [0,", images, "), got ", image);
    const float* box = data<float>(boxes) + 4 * i;
    if (has_nan(box)) continue;
    const bool every = base_size == 0;
    const int64_t own = every ? 0 : imitation_level(box, maps.size(), static_cast<float>(base_size));
    for (int64_t level = own; level < (every ? static_cast<int64_t>(maps.size()) : own + 1); ++level) {
      const T weight = values[level * count + i];
      if (std::isnan(weight)) continue;
      const int64_t height = maps[level].size(2), width = maps[level].size(3);
      const PaintArea area(box, static_cast<float>(strides[level]), height, width);
      paint(area, weight, last, width, level_weights[level] + image * height * width);
    }
  }
  T *inside = data<T>(weights), *outside = inside + cells;
  std::fill(outside, outside + cells, T(1));
  if (trust)
    with_floating_type(trust->scalar_type(),
                       [&](auto tag) { widen(data<decltype(tag)>(*trust), cells, outside); });
  for (int64_t i = 0; i < cells; ++i)
    if (inside[i] > T(0)) outside[i] = 0;
  return weights;
}

// foreground and background [2,L], foreground weight and background cells [2,L], and the weights [2, sum of N*H*W].
using Forward = std::tuple<Tensor, Tensor, Tensor>;

template <class T>
Forward forward(const std::vector<Tensor>& student, const std::vector<Tensor>& teacher, const Tensor& weights) {
  const std::vector<Level<T>> levels = make_levels<T>(student, teacher, weights);
  const std::vector<Tile> tiles = make_tiles(levels);
  std::vector<std::pair<double, double>> parts(tiles.size());
  torch::stable::parallel_for(0, tiles.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Sums<T> sums = sum_tile(levels[tiles[i].level], tiles[i]);
      parts[i] = {sums.foreground.total(), sums.background.total()};
    }
  });

  std::vector<double> foreground(levels.size()), background(levels.size());
  for (size_t i = 0; i < tiles.size(); ++i) {
    foreground[tiles[i].level] += parts[i].first;
    background[tiles[i].level] += parts[i].second;
  }
  const int64_t count = levels.size();
  Tensor squares = new_tensor(student[0], {2, count}, dtype_of<T>()), totals = new_tensor(student[0], {2, count}, dtype_of<T>());
  for (int64_t l = 0; l < count; ++l) {
    double weight = 0, empty = 0;
    const int64_t cells = levels[l].student.images * levels[l].student.cells();
    for (int64_t i = 0; i < cells; ++i) {
      const T w = levels[l].weights.foreground[i];
      weight += w;
      empty += w > T(0) ? 0 : 1;
    }
    data<T>(squares)[l] = static_cast<T>(foreground[l]);
    data<T>(squares)[count + l] = static_cast<T>(background[l]);
    data<T>(totals)[l] = static_cast<T>(weight);
    data<T>(totals)[count + l] = static_cast<T>(empty);
  }
  return {squares, totals, weights};
}

bool any_double(const std::vector<Tensor>& student, const std::vector<Tensor>& teacher) {
  return is_double({&student[0], &teacher[0]});
}

Forward masked_imitation(std::vector<Tensor> student, std::vector<Tensor> teacher, const Tensor& boxes,
                         const Tensor& image_index, const Tensor& omega, std::optional<Tensor> trust,
                         std::vector<double> strides, bool last, double base_size) {
  const Tensor b = torch::stable::contiguous(boxes), i = torch::stable::contiguous(image_index);
  const Tensor o = torch::stable::contiguous(omega);
  if (trust) trust = torch::stable::contiguous(*trust);
  if (any_double(student, teacher))
    return forward<double>(student, teacher, paint_weights<double>(student, b, i, o, trust, strides, last, base_size));
  return forward<float>(student, teacher, paint_weights<float>(student, b, i, o, trust, strides, last, base_size));
}

template <class T>
std::vector<Tensor> backward(const Tensor& gradient, const std::vector<Tensor>& student,
                             const std::vector<Tensor>& teacher, const Tensor& weights,
                             const std::vector<bool>& need) {
  const std::vector<Level<T>> levels = make_levels<T>(student, teacher, weights);
  std::vector<Tensor> gradients;
  std::vector<std::optional<FeatureMap>> maps;
  for (size_t i = 0; i < need.size(); ++i) {
    const Tensor& map = i < student.size() ? student[i] : teacher[i - student.size()];
    gradients.push_back(need[i] ? torch::stable::empty_like(map) : new_tensor(map, {0}, map.scalar_type()));
    use_huge_pages(gradients.back());
    maps.push_back(need[i] ? std::optional<FeatureMap>(gradients.back()) : std::nullopt);
  }
  const std::vector<Tile> tiles = make_tiles(levels);
  torch::stable::parallel_for(0, tiles.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t level = tiles[i].level;
      const T* slope = data<T>(gradient) + level;
      const Slopes<T> slopes{2 * slope[0], 2 * slope[levels.size()]};
      const auto map_of = [&](size_t index) { return maps[index] ? &*maps[index] : nullptr; };
      differentiate_tile(levels[level], tiles[i], slopes, map_of(level), map_of(level + levels.size()));
    }
  });
  return gradients;
}

std::vector<Tensor> masked_imitation_backward(const Tensor& gradient, std::vector<Tensor> student,
                                              std::vector<Tensor> teacher, const Tensor& weights,
                                              std::vector<bool> need) {
  const Tensor g = torch::stable::contiguous(gradient);
  return any_double(student, teacher) ? backward<double>(g, student, teacher, weights, need)
                                      : backward<float>(g, student, teacher, weights, need);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CPU, m) {
  m.impl("masked_imitation", TORCH_BOX(&masked_imitation));
  m.impl("masked_imitation_backward", TORCH_BOX(&masked_imitation_backward));
}

}  // namespace gkd::cpu

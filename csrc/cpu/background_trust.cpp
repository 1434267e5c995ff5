// How much every cell resembles a prototype, in both feature spaces, and what it counts as background where they agree.
//
// Some cells at a time are centred and packed; of their cosines with the prototypes only the largest is kept, while they
// are in registers. All sums have an order fixed by the shapes, so that results do not depend on the number of threads.
#include <cmath>

#include "feature_map.h"
#include "unit_rows.h"

namespace gkd::cpu {
namespace {

constexpr int kPanels = 4;  // of cells, which share a panel of prototypes while it is in the first-level cache

template <class T>
constexpr int kBlockCells = kPanels * kTileColumns<T>;

// Sums of the channels of a part of one image, in double.
template <class T>
void add_channels(const FeatureMap& map, int64_t image, int64_t first_cell, int64_t cells, double* sums) {
  constexpr int64_t kStrip = 512;
  T buffer[kStrip];
  if (!map.runs_along_channels()) {
    for (int64_t c = 0; c < map.channels; ++c)
      for (int64_t i = 0; i < cells; i += kStrip) {
        const int64_t count = std::min(kStrip, cells - i);
        const T* in = map.read(Run{image, c, first_cell + i, count, true}, buffer);
        constexpr int W = Simd<T>::width;
        Vec<T> sum = {};
        int64_t j = 0;
        for (; j + W <= count; j += W) sum += load(in + j);
        double total = 0;
        for (int k = 0; k < W; ++k) total += sum[k];
        for (; j < count; ++j) total += in[j];
        sums[c] += total;
      }
    return;
  }
  for (int64_t c = 0; c < map.channels; c += kStrip) {
    const int64_t count = std::min(kStrip, map.channels - c);
    for (int64_t i = 0; i < cells; ++i) {
      const T* in = map.read(Run{image, c, first_cell + i, count, false}, buffer);
      for (int64_t k = 0; k < count; ++k) sums[c + k] += in[k];
    }
  }
}

// A part of one image of one level.
struct Part {
  int64_t level, image, first_cell, cells, first_output;
};

std::vector<Part> make_parts(const std::vector<Tensor>& maps, int64_t most) {
  std::vector<Part> parts;
  int64_t output = 0;
  for (size_t l = 0; l < maps.size(); ++l) {
    const int64_t images = maps[l].size(0), cells = maps[l].size(2) * maps[l].size(3);
    for (int64_t image = 0; image < images; ++image)
      for (int64_t first = 0; first < cells; first += most) {
        const int64_t count = std::min(most, cells - first);
        parts.push_back({static_cast<int64_t>(l), image, first, count, output});
        output += count;
      }
  }
  return parts;
}

template <class T>
Tensor means_of(const std::vector<Tensor>& features) {
  const int64_t levels = features.size(), channels = features[0].size(1);
  const std::vector<Part> parts = make_parts(features, 4096);
  std::vector<double> sums(parts.size() * channels), totals(channels);
  torch::stable::parallel_for(0, parts.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      add_channels<T>(FeatureMap(features[parts[i].level]), parts[i].image, parts[i].first_cell, parts[i].cells,
                      sums.data() + i * channels);
  });
  Tensor means = new_tensor(features[0], {levels, channels}, dtype_of<T>());
  size_t part = 0;
  for (int64_t l = 0; l < levels; ++l) {
    std::fill(totals.begin(), totals.end(), 0.0);
    for (; part < parts.size() && parts[part].level == l; ++part)
      for (int64_t c = 0; c < channels; ++c) totals[c] += sums[part * channels + c];
    const int64_t cells = std::max<int64_t>(1, features[l].size(0) * features[l].size(2) * features[l].size(3));
    for (int64_t c = 0; c < channels; ++c) data<T>(means)[l * channels + c] = static_cast<T>(totals[c] / static_cast<double>(cells));
  }
  return means;
}

// One level's prototypes in one space: centred, of length 1, in panels of kTileRows; the last panel is filled up with a
// repeated one, which changes no maximum.
template <class T>
struct Centred {
  std::vector<T> mean, panels;
  int64_t count = 0;

  Centred(const Tensor& prototypes, const Tensor& means, int64_t level, bool filled) {
    const int64_t rows = prototypes.size(1), channels = prototypes.size(2);
    mean.resize(channels);
    read_row(means, level, channels, mean.data());
    std::vector<T> units, row(channels);
    for (int64_t r = 0; r < rows; ++r) {
      read_row(prototypes, level * rows + r, channels, row.data());
      if (filled && std::all_of(row.begin(), row.end(), [](T x) { return x == T(0); })) continue;
      for (int64_t c = 0; c < channels; ++c) row[c] -= mean[c];
      normalise(row.data(), channels);
      units.insert(units.end(), row.begin(), row.end());
      ++count;
    }
    for (int64_t first = 0; first < count; first += kTileRows) {
      T* panel = &*panels.insert(panels.end(), kTileRows * channels, T(0));
      for (int64_t i = 0; i < kTileRows; ++i) {
        const T* unit = units.data() + std::min(first + i, count - 1) * channels;
        for (int64_t c = 0; c < channels; ++c) panel[c * kTileRows + i] = unit[c];
      }
    }
  }
};

// Cells of one map, centred, in panels [C, tile columns]; those beyond the last are 0.
template <class T>
struct CentredCells {
  static constexpr int N = kTileColumns<T>, W = Simd<T>::width;
  std::vector<T> panels, row;
  T squares[kBlockCells<T>];

  explicit CentredCells(int64_t channels) : panels(kBlockCells<T> * channels), row(std::max<int64_t>(channels, kBlockCells<T>)) {}

  void read(const FeatureMap& map, const std::vector<T>& mean, const Part& part) {
    std::fill(panels.begin(), panels.end(), T(0));
    std::fill(std::begin(squares), std::end(squares), T(0));
    if (map.runs_along_channels()) {
      for (int64_t i = 0; i < part.cells; ++i) {
        const T* in = map.read(Run{part.image, 0, part.first_cell + i, map.channels, false}, row.data());
        T* out = panels.data() + i / N * N * map.channels + i % N;
        for (int64_t c = 0; c < map.channels; ++c) out[c * N] = in[c] - mean[c];
      }
    } else {
      for (int64_t c = 0; c < map.channels; ++c) {
        const T* in = map.read(Run{part.image, c, part.first_cell, part.cells, true}, row.data());
        for (int64_t first = 0; first < part.cells; first += N) {
          T* out = panels.data() + first * map.channels + c * N;
          for (int64_t i = 0; i < std::min<int64_t>(N, part.cells - first); ++i) out[i] = in[first + i] - mean[c];
        }
      }
    }
    add_squares(map.channels, part.cells);
  }

  // Largest cosine of each cell.
  void nearest(const Centred<T>& prototypes, int64_t cells, T* cosine) const {
    const int64_t channels = prototypes.mean.size(), count = ceil_div(cells, N);
    T best[kBlockCells<T>];
    std::fill(std::begin(best), std::end(best), T(-1e30));  // below every product, and finite
    alignas(64) T tile[kTileRows * N];
    for (int64_t p = 0; p < ceil_div(prototypes.count, kTileRows); ++p)
      for (int64_t panel = 0; panel < count; ++panel) {
        tile_product<1, kTileRows, false>(channels, prototypes.panels.data() + p * kTileRows * channels,
                                          panels.data() + panel * N * channels, N, tile, N);
        for (int half = 0; half < N; half += W) {
          Vec<T> largest = load(best + panel * N + half);
          for (int i = 0; i < kTileRows; ++i) {
            const Vec<T> product = load(tile + i * N + half);
            largest = product > largest ? product : largest;
          }
          store(best + panel * N + half, largest);
        }
      }
    for (int64_t i = 0; i < cells; ++i)
      cosine[i] = squares[i] < T(kShortest * kShortest) ? T(0) : best[i] / std::sqrt(squares[i]);
  }

 private:
  void add_squares(int64_t channels, int64_t cells) {
    for (int64_t panel = 0; panel < ceil_div(cells, N); ++panel)
      for (int half = 0; half < N; half += W) {
        Vec<T> sum = {};
        for (int64_t c = 0; c < channels; ++c) {
          const Vec<T> x = load(panels.data() + (panel * channels + c) * N + half);
          sum += x * x;
        }
        store(squares + panel * N + half, sum);
      }
  }
};

template <class T>
Tensor trust_of(const std::vector<Tensor>& student, const std::vector<Tensor>& teacher, const Tensor (&prototypes)[2],
                const Tensor (&means)[2], bool filled) {
  const std::vector<Tensor>* maps[2] = {&student, &teacher};
  std::vector<Centred<T>> spaces[2];
  for (int s = 0; s < 2; ++s)
    for (size_t l = 0; l < student.size(); ++l) spaces[s].emplace_back(prototypes[s], means[s], l, filled);
  const std::vector<Part> parts = make_parts(student, kBlockCells<T>);
  Tensor trust = new_tensor(student[0], {parts.empty() ? 0 : parts.back().first_output + parts.back().cells}, dtype_of<T>());
  torch::stable::parallel_for(0, parts.size(), 1, [&](int64_t begin, int64_t end) {
    CentredCells<T> cells[2] = {CentredCells<T>(student[0].size(1)), CentredCells<T>(teacher[0].size(1))};
    T cosine[2][kBlockCells<T>];
    for (int64_t i = begin; i < end; ++i) {
      const Part& part = parts[i];
      for (int s = 0; s < 2; ++s) {
        const Centred<T>& space = spaces[s][part.level];
        cells[s].read(FeatureMap((*maps[s])[part.level]), space.mean, part);
        cells[s].nearest(space, part.cells, cosine[s]);
      }
      T* out = data<T>(trust) + part.first_output;
      for (int64_t j = 0; j < part.cells; ++j) {
        const T resembles = cosine[1][j] < T(0) ? T(0) : cosine[1][j];
        const T agrees = T(1) - std::abs(cosine[0][j] - cosine[1][j]);
        out[j] = resembles * (agrees < T(0) ? T(0) : agrees);
      }
    }
  });
  return trust;
}

Tensor channel_means(std::vector<Tensor> features) {
  return is_double({&features[0]}) ? means_of<double>(features) : means_of<float>(features);
}

Tensor background_trust(std::vector<Tensor> student, std::vector<Tensor> teacher, const Tensor& student_prototypes,
                        const Tensor& teacher_prototypes, const Tensor& student_means, const Tensor& teacher_means,
                        bool filled) {
  const Tensor prototypes[2] = {torch::stable::contiguous(student_prototypes), torch::stable::contiguous(teacher_prototypes)};
  const Tensor means[2] = {torch::stable::contiguous(student_means), torch::stable::contiguous(teacher_means)};
  return is_double({&student[0], &teacher[0]}) ? trust_of<double>(student, teacher, prototypes, means, filled)
                                               : trust_of<float>(student, teacher, prototypes, means, filled);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CPU, m) {
  m.impl("channel_means", TORCH_BOX(&channel_means));
  m.impl("background_trust", TORCH_BOX(&background_trust));
}

}  // namespace gkd::cpu

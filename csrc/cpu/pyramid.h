// Feature pyramids whose maps are read row by row or cell by cell, and their gradients.
#pragma once

#include "../common.h"
#include "feature_map.h"

namespace gkd::cpu {

// Planar (NCHW): the cells of a row are adjacent. Otherwise interleaved (channels_last): the channels of a cell are.
inline bool is_planar(const FeatureMap& map) { return map.stride(3) == 1 || map.width == 1; }

struct Pyramid {
  std::vector<Tensor> tensors;  // keeps copies of maps alive that were neither
  std::vector<FeatureMap> maps;

  explicit Pyramid(const std::vector<Tensor>& features) {
    for (const Tensor& feature : features) {
      const FeatureMap map(feature);
      tensors.push_back(is_planar(map) || map.channels_adjoin() ? feature : torch::stable::contiguous(feature));
      maps.emplace_back(tensors.back());
    }
  }

  const FeatureMap& operator[](int64_t level) const { return maps[level]; }
  int64_t levels() const { return static_cast<int64_t>(maps.size()); }
  int64_t images() const { return maps[0].images; }
  int64_t channels() const { return maps[0].channels; }
};

// All that a pyramid's gradient needs of it; channels_last[l] is 1 where the channels of a cell are adjacent.
struct PyramidShape {
  int64_t images, channels;
  std::vector<int64_t> heights, widths, channels_last;

  int64_t levels() const { return static_cast<int64_t>(heights.size()); }
};

inline std::vector<Tensor> new_gradients(const Tensor& like, const PyramidShape& shape) {
  std::vector<Tensor> gradients;
  for (int64_t l = 0; l < shape.levels(); ++l) {
    const int64_t n = shape.images, c = shape.channels, h = shape.heights[l], w = shape.widths[l];
    if (shape.channels_last[l]) {
      const Tensor cells = new_tensor(like, {n, h, w, c}, like.scalar_type());
      gradients.push_back(torch::stable::transpose(torch::stable::transpose(cells, 1, 3), 2, 3));
    } else {
      gradients.push_back(new_tensor(like, {n, c, h, w}, like.scalar_type()));
    }
  }
  return gradients;
}

}  // namespace gkd::cpu

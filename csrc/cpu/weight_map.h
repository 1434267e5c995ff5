// The weight maps of feature imitation: every box paints its weight on the level that fits its size.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "convert.h"

namespace gkd::cpu {

// clip(floor(log2(sqrt((w+1)(h+1)) / base + 1e-6)), 0, L-1); infinite corners may give NaN, which is level 0.
inline int64_t imitation_level(const float* box, int64_t levels, float base) {
  const float width = std::max(box[2] - box[0] + 1.0f, 0.0f), height = std::max(box[3] - box[1] + 1.0f, 0.0f);
  const float level = std::floor(std::log2(std::sqrt(width * height) / base + 1e-6f));
  return level > 0 ? static_cast<int64_t>(std::min(level, static_cast<float>(levels - 1))) : 0;
}

// Cells [top, bottom) x [left, right) of a box, and whether it covers none and paints the single cell (top, left).
struct PaintArea {
  int64_t top, bottom, left, right;
  bool single;

  PaintArea(const float* box, float stride, int64_t height, int64_t width)
      : top(cell(box[1], stride, height, width)),
        bottom(std::min(cell(box[3], stride, height, width), height)),
        left(cell(box[0], stride, height, width)),
        right(std::min(cell(box[2], stride, height, width), width)),
        single(left >= right || top >= bottom) {
    if (!single) return;
    top = std::min(top, height - 1);
    left = std::min(left, width - 1);
  }

 private:
  static int64_t cell(float coordinate, float stride, int64_t height, int64_t width) {
    const float limit = static_cast<float>(std::max(height, width));
    return static_cast<int64_t>(std::min(std::max(coordinate, 0.0f) / stride, limit));
  }
};

// Paints one box into a map [H,W] that starts as zeros; `last`: areas overwrite instead of taking the maximum.
template <class T>
void paint(const PaintArea& area, T weight, bool last, int64_t width, T* map) {
  if (area.single) {
    T& cell = map[area.top * width + area.left];
    cell = std::max(cell, weight);
    return;
  }
  for (int64_t y = area.top; y < area.bottom; ++y)
    for (int64_t x = area.left; x < area.right; ++x) {
      T& cell = map[y * width + x];
      cell = last ? weight : std::max(cell, weight);
    }
}

inline bool has_nan(const float* box) {
  return std::isnan(box[0]) || std::isnan(box[1]) || std::isnan(box[2]) || std::isnan(box[3]);
}

}  // namespace gkd::cpu

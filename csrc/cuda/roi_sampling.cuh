// Where RoIAlign looks. A bin averages a grid of sample points, each a bilinear interpolation; a sample outside of the map
// is 0. Positions are rounded exactly as the reference rounds them: one rounding decides whether a sample on the border of the
// map counts, so products are kept from being fused into sums.
#pragma once

#include <cfloat>
#include <cmath>

#include "block.cuh"
#include "multiscale_roi_align.h"

namespace gkd::cuda {

// Weights of one sample along one axis; none outside of the map.
struct Sample {
  int low, high;
  float weight_low, weight_high;
};

// Of the samples of a bin, those in [first, past) can matter.
struct SampleRange {
  int first, past;
};

struct Axis {
  float start, bin;
  int size, samples;  // cells of the map, samples a bin

  __device__ Axis(const RoiAlign& call, const Roi& roi, int size, int axis)
      : Axis(roi.start[axis], roi.bin[axis], size, call.sampling_ratio) {}

  __device__ Axis(float start, float bin, int size, int sampling_ratio)
      : start(start), bin(bin), size(size), samples(sampling_ratio) {
    // Beyond, float32 tells samples no longer apart, and the map's share of a bin is nothing.
    constexpr float kMost = 1 << 24;
    const float adaptive = ceilf(bin);
    if (sampling_ratio == 0) samples = adaptive >= 1 && adaptive <= kMost ? static_cast<int>(adaptive) : 0;
  }

  __device__ float base(int b) const { return start + __fmul_rn(static_cast<float>(b), bin); }
  __device__ float position(int b, int s) const {
    return base(b) + (static_cast<float>(s) + 0.5f) * bin / static_cast<float>(samples);
  }

  __device__ bool inside(float position) const { return position >= -1.0f && position <= static_cast<float>(size); }

  __device__ Sample sample(float position) const {
    const float clamped = fminf(fmaxf(position, 0.0f), static_cast<float>(size - 1));
    const int low = static_cast<int>(clamped);
    const float fraction = clamped - static_cast<float>(low);
    return {low, smaller(low + 1, size - 1), 1.0f - fraction, fraction};
  }

  // Samples of bin b between two positions. Adaptive ones can be many.
  __device__ SampleRange between(int b, float low, float high, int sampling_ratio) const {
    if (sampling_ratio > 0 || samples == 0) return {0, samples};
    constexpr float kSlack = 8;  // above the rounding of these quotients; each position is tested anyway
    const float step = bin / static_cast<float>(samples), count = static_cast<float>(samples);
    return {static_cast<int>(fminf(fmaxf((low - base(b)) / step - kSlack, 0.0f), count)),
            static_cast<int>(fminf(fmaxf((high - base(b)) / step + kSlack, 0.0f), count))};
  }

  // What bin b takes of a cell, times the samples of a bin.
  __device__ float weight(int b, int cell, int sampling_ratio) const {
    const float at = static_cast<float>(cell);
    const SampleRange range = between(b, at - 1, at + 1, sampling_ratio);
    float sum = 0;
#pragma unroll 1
    for (int s = range.first; s < range.past; ++s) {
      const float where = position(b, s);
      if (!inside(where)) continue;
      const Sample taken = sample(where);
      if (taken.low == cell) sum += taken.weight_low;
      if (taken.high == cell) sum += taken.weight_high;
    }
    return sum;
  }

  // Cells that the samples of all bins touch, ends excluded.
  __device__ void extent(int bins, int& begin, int& end) const {
    begin = end = 0;
    if (samples == 0) return;
    const float a = position(0, 0), b = position(bins - 1, samples - 1);
    const float low = fminf(a, b), high = fmaxf(a, b), last = static_cast<float>(size - 1);
    if (high < -1.0f || low > last + 1.0f) return;
    const bool known = !isnan(a) && !isnan(b);
    begin = known && low > 0.0f ? static_cast<int>(fminf(low, last)) : 0;
    end = known && high < last ? smaller(static_cast<int>(fmaxf(high, 0.0f)) + 2, size) : size;
  }

  // Bins that may take of the cells [first, past), ends excluded.
  __device__ SampleRange bins_over(int first, int past, int bins) const {
    if (!(bin > 0.0f)) return {0, bins};
    const float count = static_cast<float>(bins);
    const float low = (static_cast<float>(first) - 1.0f - start) / bin, high = (static_cast<float>(past) - start) / bin;
    return {static_cast<int>(fminf(fmaxf(floorf(low) - 1.0f, 0.0f), count)),
            static_cast<int>(fminf(fmaxf(floorf(high) + 2.0f, 0.0f), count))};
  }
};

// Level that fits a box, or -1: a box with a NaN, and with several levels a box of negative area, has none.
__device__ inline int fitting_level(const RoiAlign& call, const float* corner) {
  if (isnan(corner[0]) || isnan(corner[1]) || isnan(corner[2]) || isnan(corner[3])) return -1;
  if (call.maps.levels == 1) return 0;
  const float size = sqrtf((corner[2] - corner[0]) * (corner[3] - corner[1]));
  const float target = call.canonical_level + log2f(size / call.canonical_size) + 1e-6f;
  if (isnan(target)) return -1;
  return static_cast<int>(fminf(fmaxf(floorf(target), call.lowest_level), call.highest_level) - call.lowest_level);
}

__device__ inline int group_of(const RoiAlign& call, int box) {
  const int64_t image = call.image_index[box];
  const int level = fitting_level(call, call.corners + 4 * static_cast<int64_t>(box));
  const int none = call.maps.levels * call.maps.images;
  return level < 0 || image < 0 || image >= call.maps.images ? none : level * call.maps.images + static_cast<int>(image);
}

__device__ inline Roi place_roi(const RoiAlign& call, int box, int group) {
  Roi roi{};
  roi.box = box;
  roi.group = group;
  if (group == call.maps.levels * call.maps.images) return roi;
  const int level = group / call.maps.images;
  const FeatureMap& map = call.maps.maps[level];
  const float* corner = call.corners + 4 * static_cast<int64_t>(box);
  const auto cells = [&](int k) {
    const float finite = fminf(fmaxf(corner[k], -FLT_MAX), FLT_MAX);
    return __fmul_rn(finite, call.scales[level]) - (call.aligned ? 0.5f : 0.0f);
  };
#pragma unroll
  for (int axis = 0; axis < 2; ++axis) {
    const float start = cells(axis == 0 ? 1 : 0), length = cells(axis == 0 ? 3 : 2) - start;
    roi.start[axis] = start;
    roi.bin[axis] = (call.aligned ? length : fmaxf(length, 1.0f)) / static_cast<float>(call.bins[axis]);
  }
  Axis(call, roi, map.height, 0).extent(call.bins[0], roi.top, roi.bottom);
  Axis(call, roi, map.width, 1).extent(call.bins[1], roi.left, roi.right);
  return roi;
}

}  // namespace gkd::cuda

// RoIAlign over a pyramid with raw pointers to memory of the device.
#pragma once

#include <cmath>

#include "device_pyramid.h"

namespace gkd::cuda {

// A box on the map of its level, in cells; group = level * N + image, or L * N for a box that pools to zeros. All of its
// samples lie in rows top..bottom, columns left..right, ends excluded.
struct alignas(16) Roi {
  float start[2], bin[2];  // rows, columns
  int top, left, bottom, right;
  int box, group;
  int padding[2];
};

struct RoiAlign {
  Pyramid maps;
  int boxes;
  const float* corners;        // [B,4]
  const int64_t* image_index;  // [B]
  float scales[kMaxLevels];    // cells a pixel
  int bins[2];                 // rows, columns
  int sampling_ratio;
  bool aligned;
  float canonical_size, canonical_level, lowest_level, highest_level;
  // Written by place_rois.
  Roi* rois;    // [B], by group
  int* starts;  // [L*N+1]: where a group begins
};

// All that follows from the strides, one a level.
inline void set_scales(RoiAlign& call, const double* strides) {
  for (int l = 0; l < call.maps.levels; ++l) call.scales[l] = static_cast<float>(1.0 / strides[l]);
  call.lowest_level = static_cast<float>(std::round(std::log2(strides[0])));
  call.highest_level = static_cast<float>(std::round(std::log2(strides[call.maps.levels - 1])));
}

// Each returns what went wrong, or null. `pooled` [B,C,R_h,R_w] has the elements of the maps.
const char* multiscale_roi_align(const RoiAlign& call, Element element, void* pooled, void* stream);
// `call.maps` are the gradients to be written; `gradient` has the shape and elements of `pooled`.
const char* multiscale_roi_align_backward(const RoiAlign& call, Element element, const void* gradient, void* stream);

}  // namespace gkd::cuda

// Box mean pooling with raw pointers to memory of the device.
#pragma once

#include "device_pyramid.h"

namespace gkd::cuda {

// A box on the map of one level: rows top..bottom, columns left..right, ends excluded. Area NaN: a box with a NaN coordinate,
// or without an image, which has no cells.
struct alignas(16) BoxCells {
  int left, top, right, bottom;
  int box, image;
  float area;
  int padding;
};

struct BoxMeanPool {
  Pyramid maps;
  int boxes;
  const float* corners;        // [B,4]
  const int64_t* image_index;  // [B]
  float strides[kMaxLevels];
  bool mirror;
  BoxCells* cells;  // [L,B], by image: written and read by the forward pass
};

// Each returns what went wrong, or null. `tile_sums` has the shape of the maps in tiles, and room for floats; `crowded` [L,N].
const char* box_mean_pool(const BoxMeanPool& call, Element element, const Pyramid& tile_sums, int* crowded, float* means,
                          void* stream);
// `call.maps` are the gradients to be written; `gradient` [L,B,C].
const char* box_mean_pool_backward(const BoxMeanPool& call, Element element, const float* gradient, void* stream);

}  // namespace gkd::cuda

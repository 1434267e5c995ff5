// Offsets of matched boxes from their anchors, with raw pointers to memory of the device.
#pragma once

#include <cstdint>

namespace gkd::cuda {

struct EncodeBoxes {
  const float *anchors, *boxes;  // [A,4] or [N,A,4], [N,G,4]
  const int64_t* matched;        // [N,A]
  int images, of_image, most;
  bool shared;  // all images have the same anchors
  float weights[4];
  float* offsets;  // [N,A,4]
};

// Returns what went wrong, or null.
const char* encode_boxes(const EncodeBoxes& call, void* stream);

}  // namespace gkd::cuda

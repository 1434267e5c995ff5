// Matching of anchors with boxes, with raw pointers to memory of the device.
#pragma once

#include <cstdint>

namespace gkd::cuda {

struct MatchAnchors {
  const float *anchors, *boxes;  // [A,4] or [N,A,4], [N,G,4]
  const int64_t* counts;         // [N]
  int images, of_image, most, tiles;
  bool shared;  // all images have the same anchors
  float high, low;
  bool low_quality;
  // Written: the largest IoU of each box in each tile of anchors [N,tiles,G], and of all [N,G].
  float *largest, *top;
  int64_t* matched;  // [N,A]
};

int match_tiles(int anchors);
// Returns what went wrong, or null.
const char* match_anchors(const MatchAnchors& call, void* stream);

}  // namespace gkd::cuda

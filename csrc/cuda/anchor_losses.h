// Losses of the predictions of all anchors, with raw pointers to memory of the device.
#pragma once

#include "device_pyramid.h"

namespace gkd::cuda {

// A map [N,A_l*V,H,W] in any layout, and the gradient to be made of it, which has no gaps.
struct AnchorMap {
  const void* data;
  void* gradient;  // or null
  int64_t strides[4];
  int channels, cells, width, first_anchor, first_tile;
  bool interleaved;  // the gradient lies as channels_last
};

struct AnchorMaps {
  AnchorMap levels[kMaxLevels];
  int count, images, anchors, tiles, values;
  const int64_t* matched;  // [N,A]
  const float* weight;     // [N]
  float* parts;            // [tiles]
  float* loss;
};

struct FocalLoss {
  const int64_t* labels;  // [N,G]
  int most;
  float alpha, gamma;
};

struct SmoothL1Loss {
  const float* targets;  // [N,A,4]
  float beta;
};

int loss_tiles(int64_t elements);
// Each returns what went wrong, or null. Gradients are of the maps' type, float32 for float16.
const char* sigmoid_focal_loss(const AnchorMaps& maps, Element element, const FocalLoss& loss, void* stream);
const char* smooth_l1_loss(const AnchorMaps& maps, Element element, const SmoothL1Loss& loss, void* stream);

}  // namespace gkd::cuda

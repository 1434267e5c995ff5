// IoU of two boxes, rounded after every operation as torch's elementwise operators round: equal IoUs stay equal.
#pragma once

#include "block.cuh"

namespace gkd::cuda {

struct Corners {
  float x1, y1, x2, y2;
};

__device__ inline Corners corners_at(const float* boxes, int64_t box) {
  const float* corner = boxes + 4 * box;
  return {corner[0], corner[1], corner[2], corner[3]};
}

__device__ inline float area_of(const Corners& box) {
  return __fmul_rn(__fsub_rn(box.x2, box.x1), __fsub_rn(box.y2, box.y1));
}

// A box with a coordinate that is no number has no area that is one, and so no such IoU.
__device__ inline float iou_of(const Corners& a, float area_a, const Corners& b, float area_b) {
  const float width = fmaxf(__fsub_rn(fminf(a.x2, b.x2), fmaxf(a.x1, b.x1)), 0.0f);
  const float height = fmaxf(__fsub_rn(fminf(a.y2, b.y2), fmaxf(a.y1, b.y1)), 0.0f);
  const float common = __fmul_rn(width, height);
  return __fdiv_rn(common, __fsub_rn(__fadd_rn(area_a, area_b), common));
}

}  // namespace gkd::cuda

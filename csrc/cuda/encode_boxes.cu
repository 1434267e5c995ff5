// Offsets of matched boxes from their anchors, a thread an anchor.
#include "encode_boxes.h"

#include "iou.cuh"

namespace gkd::cuda {
namespace {

__global__ void __launch_bounds__(kThreads) encode(const __grid_constant__ EncodeBoxes call) {
  const int place = static_cast<int>(blockIdx.x) * kThreads + thread(), image = static_cast<int>(blockIdx.y);
  if (place >= call.of_image) return;
  const int64_t own = static_cast<int64_t>(image) * call.of_image + place, match = call.matched[own];
  float offsets[4] = {};
  if (match >= 0 && match < call.most) {
    const float* anchor = call.anchors + 4 * (call.shared ? place : own);
    const float* box = call.boxes + 4 * (static_cast<int64_t>(image) * call.most + match);
#pragma unroll
    for (int axis = 0; axis < 2; ++axis) {
      const float side = __fsub_rn(anchor[axis + 2], anchor[axis]), own_side = __fsub_rn(box[axis + 2], box[axis]);
      const float centre = __fadd_rn(anchor[axis], __fmul_rn(0.5f, side));
      const float own_centre = __fadd_rn(box[axis], __fmul_rn(0.5f, own_side));
      offsets[axis] = __fdiv_rn(__fmul_rn(call.weights[axis], __fsub_rn(own_centre, centre)), side);
      offsets[axis + 2] = __fmul_rn(call.weights[axis + 2], logf(__fdiv_rn(own_side, side)));
    }
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) call.offsets[4 * own + k] = offsets[k];
}

}  // namespace

const char* encode_boxes(const EncodeBoxes& call, void* stream) {
  if (call.images == 0 || call.of_image == 0) return nullptr;
  GKD_LAUNCH(encode, dim3(ceil_div(call.of_image, kThreads), call.images), kThreads, stream, call);
  return launch_error();
}

}  // namespace gkd::cuda

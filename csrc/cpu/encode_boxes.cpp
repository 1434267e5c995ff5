// Offsets of matched boxes from their anchors.
#include <cmath>

#include "exact.h"

namespace gkd::cpu {
namespace {

void encode(const float* anchor, const float* box, const float* weight, float* out) {
  for (int axis = 0; axis < 2; ++axis) {
    const float side = anchor[axis + 2] - anchor[axis], own_side = box[axis + 2] - box[axis];
    const float centre = anchor[axis] + 0.5f * side, own_centre = box[axis] + 0.5f * own_side;
    out[axis] = weight[axis] * (own_centre - centre) / side;
    out[axis + 2] = weight[axis + 2] * std::log(own_side / side);
  }
}

Tensor encode_boxes(const Tensor& anchors, const Tensor& boxes, const Tensor& matched, std::vector<double> weights) {
  const Tensor dense[3] = {torch::stable::contiguous(anchors), torch::stable::contiguous(boxes),
                           torch::stable::contiguous(matched)};
  const float *anchor = data<float>(dense[0]), *box = data<float>(dense[1]);
  const int64_t* match = data<int64_t>(dense[2]);
  const int64_t images = matched.size(0), of_image = matched.size(1), most = boxes.size(1);
  const bool shared = anchors.dim() == 2;
  const float weight[4] = {static_cast<float>(weights[0]), static_cast<float>(weights[1]),
                           static_cast<float>(weights[2]), static_cast<float>(weights[3])};
  Tensor result = new_zeros(boxes, {images, of_image, 4}, ScalarType::Float);
  float* out = data<float>(result);
  torch::stable::parallel_for(0, images * of_image, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (match[i] < 0 || match[i] >= most) continue;
      const int64_t image = i / of_image;
      encode(anchor + 4 * (shared ? i % of_image : i), box + 4 * (image * most + match[i]), weight, out + 4 * i);
    }
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CPU, m) { m.impl("encode_boxes", TORCH_BOX(&encode_boxes)); }

}  // namespace gkd::cpu

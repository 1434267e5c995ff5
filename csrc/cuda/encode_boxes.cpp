// Offsets of matched boxes from their anchors of CUDA tensors.
#include "encode_boxes.h"

#include "binding.h"

namespace gkd::cuda {
namespace {

Tensor forward(const Tensor& anchors, const Tensor& boxes, const Tensor& matched, std::vector<double> weights) {
  const OnDeviceOf device(boxes);
  const Tensor dense[3] = {torch::stable::contiguous(anchors), torch::stable::contiguous(boxes),
                           torch::stable::contiguous(matched)};
  EncodeBoxes call{};
  call.anchors = data<float>(dense[0]);
  call.boxes = data<float>(dense[1]);
  call.matched = data<int64_t>(dense[2]);
  call.images = checked_int(matched.size(0), "images");
  call.of_image = checked_int(matched.size(1), "anchors of an image");
  call.most = checked_int(boxes.size(1), "boxes of an image");
  call.shared = anchors.dim() == 2;
  for (int k = 0; k < 4; ++k) call.weights[k] = static_cast<float>(weights[k]);
  Tensor offsets = new_tensor(boxes, {call.images, call.of_image, 4}, ScalarType::Float);
  call.offsets = data<float>(offsets);
  check_launch(encode_boxes(call, device.stream()));
  return offsets;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CUDA, m) { m.impl("encode_boxes", TORCH_BOX(&forward)); }

}  // namespace gkd::cuda

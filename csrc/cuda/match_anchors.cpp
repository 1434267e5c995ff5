// Matching of anchors with boxes of CUDA tensors.
#include "match_anchors.h"

#include "binding.h"

namespace gkd::cuda {
namespace {

Tensor forward(const Tensor& anchors, const Tensor& boxes, const Tensor& counts, double high, double low,
               bool low_quality) {
  const OnDeviceOf device(boxes);
  const Tensor dense[3] = {torch::stable::contiguous(anchors), torch::stable::contiguous(boxes),
                           torch::stable::contiguous(counts)};
  MatchAnchors call{};
  call.anchors = data<float>(dense[0]);
  call.boxes = data<float>(dense[1]);
  call.counts = data<int64_t>(dense[2]);
  call.shared = anchors.dim() == 2;
  call.images = checked_int(boxes.size(0), "images");
  call.of_image = checked_int(anchors.size(call.shared ? 0 : 1), "anchors of an image");
  call.most = checked_int(boxes.size(1), "boxes of an image");
  call.tiles = match_tiles(call.of_image);
  call.high = static_cast<float>(high);
  call.low = static_cast<float>(low);
  call.low_quality = low_quality;
  Tensor largest = new_tensor(boxes, {call.images, call.tiles, call.most}, ScalarType::Float);
  Tensor top = new_tensor(boxes, {call.images, call.most}, ScalarType::Float);
  Tensor matched = new_tensor(counts, {call.images, call.of_image}, ScalarType::Long);
  call.largest = data<float>(largest);
  call.top = data<float>(top);
  call.matched = data<int64_t>(matched);
  check_launch(match_anchors(call, device.stream()));
  return matched;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CUDA, m) { m.impl("match_anchors", TORCH_BOX(&forward)); }

}  // namespace gkd::cuda

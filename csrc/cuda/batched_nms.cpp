// Non-maximum suppression of CUDA tensors.
#include "batched_nms.h"

#include "binding.h"

namespace gkd::cuda {
namespace {

std::tuple<Tensor, Tensor> forward(const Tensor& boxes, const Tensor& groups, const Tensor& order, double threshold,
                                   int64_t most) {
  const OnDeviceOf device(boxes);
  const Tensor dense[3] = {torch::stable::contiguous(boxes), torch::stable::contiguous(groups),
                           torch::stable::contiguous(order)};
  STD_TORCH_CHECK(boxes.size(1) <= kWord * kMostWords, "boxes: expected at most ", kWord * kMostWords, " of an image, got ",
                  boxes.size(1));
  BatchedNms call{};
  call.boxes = data<float>(dense[0]);
  call.groups = data<int64_t>(dense[1]);
  call.order = data<int64_t>(dense[2]);
  call.images = checked_int(boxes.size(0), "images");
  call.places = static_cast<int>(boxes.size(1));
  call.words = (call.places + kWord - 1) / kWord;
  call.most = checked_int(most, "boxes to keep");
  call.threshold = static_cast<float>(threshold);
  Tensor overlaps = new_tensor(order, {call.images, call.places, call.words}, ScalarType::Long);
  Tensor kept = new_tensor(order, {call.images, most}, ScalarType::Long), counts = new_tensor(order, {call.images}, ScalarType::Long);
  call.overlaps = data<uint64_t>(overlaps);
  call.kept = data<int64_t>(kept);
  call.counts = data<int64_t>(counts);
  check_launch(batched_nms(call, device.stream()));
  return {kept, counts};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CUDA, m) { m.impl("batched_nms", TORCH_BOX(&forward)); }

}  // namespace gkd::cuda

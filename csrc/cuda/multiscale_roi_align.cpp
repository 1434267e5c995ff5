// RoIAlign of CUDA tensors.
#include "multiscale_roi_align.h"

#include "binding.h"

namespace gkd::cuda {
namespace {

struct Sampling {
  std::vector<double> strides;
  int64_t sampling_ratio;
  bool aligned;
  int64_t canonical_size, canonical_level;
};

// A call with the tensors that it points into.
struct BoundCall {
  BoundPyramid maps;
  Tensor corners, image_index, rois, starts;
  RoiAlign call{};

  BoundCall(const std::vector<Tensor>& features, const Tensor& boxes, const Tensor& images, int64_t rows, int64_t columns,
            const Sampling& sampling)
      : maps(features),
        corners(torch::stable::contiguous(boxes)),
        image_index(torch::stable::contiguous(images)),
        rois(new_tensor(boxes, {boxes.size(0), sizeof(Roi)}, ScalarType::Byte)),
        starts(new_tensor(boxes, {int64_t(maps.maps.levels) * maps.maps.images + 1}, ScalarType::Int)) {
    call.maps = maps.maps;
    call.boxes = checked_int(boxes.size(0), "boxes");
    call.corners = data<float>(static_cast<const Tensor&>(corners));
    call.image_index = data<int64_t>(static_cast<const Tensor&>(image_index));
    call.bins[0] = checked_int(rows, "bins");
    call.bins[1] = checked_int(columns, "bins");
    checked_int(kTileChannels * rows * columns, "bins of the channels of a block");
    call.sampling_ratio = checked_int(sampling.sampling_ratio, "sampling_ratio");
    call.aligned = sampling.aligned;
    call.canonical_size = static_cast<float>(sampling.canonical_size);
    call.canonical_level = static_cast<float>(sampling.canonical_level);
    set_scales(call, sampling.strides.data());
    STD_TORCH_CHECK(call.maps.levels == 1 || call.highest_level - call.lowest_level < static_cast<float>(call.maps.levels),
                    "strides: expected each at most twice the one before");
    call.rois = data<Roi>(rois);
    call.starts = data<int>(starts);
  }
};

Tensor forward(std::vector<Tensor> features, const Tensor& boxes, const Tensor& image_index,
               std::vector<int64_t> output_size, std::vector<double> strides, int64_t sampling_ratio, bool aligned,
               int64_t canonical_size, int64_t canonical_level) {
  const OnDeviceOf device(boxes);
  const BoundCall bound(features, boxes, image_index, output_size[0], output_size[1],
                        {strides, sampling_ratio, aligned, canonical_size, canonical_level});
  const ScalarType dtype = features[0].scalar_type();
  Tensor pooled = new_tensor(features[0], {boxes.size(0), features[0].size(1), output_size[0], output_size[1]}, dtype);
  check_launch(multiscale_roi_align(bound.call, element_of(dtype), data<void>(pooled), device.stream()));
  return pooled;
}

std::vector<Tensor> backward(const Tensor& gradient, const Tensor& boxes, const Tensor& image_index, int64_t images,
                             std::vector<int64_t> heights, std::vector<int64_t> widths, std::vector<int64_t> channels_last,
                             std::vector<double> strides, int64_t sampling_ratio, bool aligned, int64_t canonical_size,
                             int64_t canonical_level) {
  const OnDeviceOf device(boxes);
  const Tensor pooled = torch::stable::contiguous(gradient);
  const ScalarType dtype = gradient.scalar_type();
  std::vector<Tensor> results;
  for (size_t l = 0; l < heights.size(); ++l) {
    const int64_t n = images, c = gradient.size(1), h = heights[l], w = widths[l];
    if (channels_last[l])
      results.push_back(torch::stable::transpose(
          torch::stable::transpose(new_tensor(gradient, {n, h, w, c}, dtype), 1, 3), 2, 3));
    else
      results.push_back(new_tensor(gradient, {n, c, h, w}, dtype));
  }
  const BoundCall bound(results, boxes, image_index, gradient.size(2), gradient.size(3),
                        {strides, sampling_ratio, aligned, canonical_size, canonical_level});
  check_launch(multiscale_roi_align_backward(bound.call, element_of(dtype), data<void>(pooled), device.stream()));
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CUDA, m) {
  m.impl("multiscale_roi_align", TORCH_BOX(&forward));
  m.impl("multiscale_roi_align_backward", TORCH_BOX(&backward));
}

}  // namespace gkd::cuda

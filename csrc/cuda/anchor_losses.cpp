// Losses of the predictions of all anchors of CUDA tensors.
#include "anchor_losses.h"

#include "binding.h"

namespace gkd::cuda {
namespace {

// A call with the tensors that it points into.
struct BoundMaps {
  Tensor matched, weight, parts, loss;
  std::vector<Tensor> gradients;
  Element element;
  AnchorMaps maps{};

  BoundMaps(const std::vector<Tensor>& given, const Tensor& matches, const Tensor& weights, int64_t values,
            const std::vector<int64_t>& channels_last, bool needed)
      : matched(torch::stable::contiguous(matches)),
        weight(torch::stable::contiguous(weights)),
        parts(weights),
        loss(new_tensor(weights, {}, ScalarType::Float)),
        element(element_of(given[0].scalar_type())) {
    STD_TORCH_CHECK(given.size() <= kMaxLevels, "maps: expected at most ", kMaxLevels, " levels on a GPU, got ", given.size());
    maps.count = static_cast<int>(given.size());
    maps.images = checked_int(given[0].size(0), "images");
    maps.values = static_cast<int>(values);
    int64_t anchors = 0, tiles = 0;
    for (size_t l = 0; l < given.size(); ++l) {
      const Tensor& map = given[l];
      AnchorMap& bound = maps.levels[l];
      const int64_t n = map.size(0), c = map.size(1), h = map.size(2), w = map.size(3);
      bound.data = map.const_data_ptr();
      for (int axis = 0; axis < 4; ++axis) bound.strides[axis] = map.stride(axis);
      bound.channels = checked_int(c, "channels");
      bound.cells = checked_int(h * w, "cells of a map");
      bound.width = static_cast<int>(w);
      bound.first_anchor = checked_int(anchors, "anchors");
      bound.first_tile = checked_int(tiles, "tiles of all maps");
      bound.interleaved = channels_last[l];
      if (needed) gradients.push_back(new_gradient(map, n, c, h, w, bound.interleaved));
      bound.gradient = needed ? gradients.back().mutable_data_ptr() : nullptr;
      anchors += h * w * (c / values);
      tiles += n * loss_tiles(c * h * w);
    }
    maps.anchors = checked_int(anchors, "anchors");
    maps.tiles = checked_int(tiles, "tiles of all maps");
    parts = new_tensor(weights, {maps.tiles}, ScalarType::Float);
    maps.matched = data<int64_t>(static_cast<const Tensor&>(matched));
    maps.weight = data<float>(static_cast<const Tensor&>(weight));
    maps.parts = data<float>(parts);
    maps.loss = data<float>(loss);
  }

  static Tensor new_gradient(const Tensor& map, int64_t n, int64_t c, int64_t h, int64_t w, bool interleaved) {
    const ScalarType dtype = map.scalar_type() == ScalarType::Half ? ScalarType::Float : map.scalar_type();
    if (!interleaved) return new_tensor(map, {n, c, h, w}, dtype);
    return torch::stable::transpose(torch::stable::transpose(new_tensor(map, {n, h, w, c}, dtype), 1, 3), 2, 3);
  }
};

std::tuple<Tensor, std::vector<Tensor>> focal(std::vector<Tensor> logits, const Tensor& matched, const Tensor& labels,
                                              const Tensor& weight, int64_t classes, double alpha, double gamma,
                                              std::vector<int64_t> channels_last, bool needed) {
  const OnDeviceOf device(matched);
  const BoundMaps bound(logits, matched, weight, classes, channels_last, needed);
  const Tensor own_labels = torch::stable::contiguous(labels);
  const FocalLoss loss{data<int64_t>(own_labels), checked_int(labels.size(1), "boxes of an image"), static_cast<float>(alpha),
                       static_cast<float>(gamma)};
  check_launch(sigmoid_focal_loss(bound.maps, bound.element, loss, device.stream()));
  return {bound.loss, bound.gradients};
}

std::tuple<Tensor, std::vector<Tensor>> smooth_l1(std::vector<Tensor> offsets, const Tensor& matched, const Tensor& targets,
                                                  const Tensor& weight, double beta, std::vector<int64_t> channels_last,
                                                  bool needed) {
  const OnDeviceOf device(matched);
  const BoundMaps bound(offsets, matched, weight, 4, channels_last, needed);
  const Tensor own_targets = torch::stable::contiguous(targets);
  const SmoothL1Loss loss{data<float>(own_targets), static_cast<float>(beta)};
  check_launch(smooth_l1_loss(bound.maps, bound.element, loss, device.stream()));
  return {bound.loss, bound.gradients};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CUDA, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&focal));
  m.impl("smooth_l1_loss", TORCH_BOX(&smooth_l1));
}

}  // namespace gkd::cuda

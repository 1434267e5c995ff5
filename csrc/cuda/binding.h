// Tensors as kernels take them, on the device and stream that torch has chosen.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <limits>

#include "../common.h"
#include "device_pyramid.h"

namespace gkd::cuda {

// Makes the device of a tensor the current one for as long as it lives.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_));
  }
  void* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

inline Element element_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return Element::kFloat;
    case ScalarType::Half:
      return Element::kHalf;
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    default:
      STD_TORCH_CHECK(false, "expected float32, float16 or bfloat16 on a GPU");
  }
  return Element::kFloat;
}

inline int element_size(ScalarType dtype) { return dtype == ScalarType::Float ? 4 : 2; }

// Counts are computed with as int inside of kernels.
inline int checked_int(int64_t count, const char* what) {
  STD_TORCH_CHECK(count >= 0 && count < std::numeric_limits<int>::max(), what, ": expected fewer than 2^31, got ", count);
  return static_cast<int>(count);
}

inline bool is_readable(const Tensor& map) { return map.stride(3) == 1 || map.stride(1) == 1; }

// Maps [N,C,H,W], with the tensors that keep them alive: copies of those that are neither planar nor interleaved.
struct BoundPyramid {
  std::vector<Tensor> tensors;
  Pyramid maps{};

  explicit BoundPyramid(const std::vector<Tensor>& features) {
    const int64_t levels = features.size();
    STD_TORCH_CHECK(levels <= kMaxLevels, "features: expected at most ", kMaxLevels, " levels on a GPU, got ", levels);
    maps.levels = static_cast<int>(levels);
    maps.images = checked_int(features[0].size(0), "images");
    maps.channels = checked_int(features[0].size(1), "channels");
    int64_t tiles = 0;
    for (const Tensor& feature : features) {
      tensors.push_back(is_readable(feature) ? feature : torch::stable::contiguous(feature));
      const Tensor& map = tensors.back();
      checked_int(map.size(2) * map.size(3), "cells of a map");
      const int64_t strides[4] = {map.stride(0), map.stride(1), map.stride(2), map.stride(3)};
      FeatureMap& bound = maps.maps[tensors.size() - 1];
      bound = make_map(const_cast<void*>(map.const_data_ptr()), strides, maps.channels, static_cast<int>(map.size(2)),
                       static_cast<int>(map.size(3)), element_size(map.scalar_type()));
      tiles += maps.images * tiles_of_image(bound);
    }
    checked_int(tiles, "tiles of all maps");
  }
};

inline void check_launch(const char* error) { STD_TORCH_CHECK(error == nullptr, "CUDA: ", error ? error : ""); }

}  // namespace gkd::cuda

// Runs one operator of csrc/cuda on the CPU: harness OPERATOR ORDER < arguments > results, in the order in which they are read below.
#include "arguments.h"

#include "../../../csrc/cuda/box_mean_pool.cu"
#include "../../../csrc/cuda/multiscale_roi_align.cu"

namespace {

using namespace gkd::cuda;
using namespace harness;

struct Features {
  Pyramid maps{};
  std::vector<Array> arrays;
  Element element;
  int element_size;

  // Element, levels, images, channels; for every map height, width, four strides, the bytes it spans and, unless they are to be
  // written, these.
  explicit Features(bool filled) {
    element = static_cast<Element>(read_int());
    element_size = element == Element::kFloat ? 4 : 2;
    maps.levels = read_int();
    maps.images = read_int();
    maps.channels = read_int();
    for (int l = 0; l < maps.levels; ++l) {
      const int height = read_int(), width = read_int();
      int64_t strides[4];
      for (int64_t& stride : strides) stride = read<int64_t>();
      const int64_t bytes = read<int64_t>();
      arrays.push_back(filled ? Array::read(bytes) : Array(bytes));
      maps.maps[l] = make_map(arrays.back().data<void>(), strides, maps.channels, height, width, element_size);
    }
  }

  void write() const {
    for (const Array& array : arrays) array.write();
  }
};

struct Boxes {
  int count = read_int();
  Array corners = Array::read(16 * count), image_index = Array::read(8 * count);
};

BoxMeanPool mean_pool_call(const Features& features, const Boxes& boxes) {
  BoxMeanPool call{features.maps, boxes.count, boxes.corners.data<float>(), boxes.image_index.data<int64_t>(), {}, false,
                   nullptr};
  for (int l = 0; l < features.maps.levels; ++l) call.strides[l] = static_cast<float>(read<double>());
  call.mirror = read_int();
  return call;
}

void run_mean_pool(bool backward) {
  const Features features(!backward);
  const Pyramid& maps = features.maps;
  const Boxes boxes;
  BoxMeanPool call = mean_pool_call(features, boxes);
  const int64_t bytes = 4ll * maps.levels * boxes.count * maps.channels;
  if (backward) {
    const Array gradient = Array::read(bytes);
    finish(box_mean_pool_backward(call, features.element, gradient.data<float>(), nullptr), {});
    return features.write();
  }
  Array means(bytes), crowded(4 * maps.levels * maps.images), cells(sizeof(BoxCells) * maps.levels * boxes.count);
  call.cells = cells.data<BoxCells>();
  std::vector<Array> sums;
  Pyramid tiles = maps;
  for (int l = 0; l < maps.levels; ++l) {
    const FeatureMap& map = maps.maps[l];
    sums.emplace_back(4 * maps.images * maps.channels * tiles_of_image(map));
    tiles.maps[l] = tile_map(map, sums.back().data<float>(), maps.channels);
  }
  finish(box_mean_pool(call, features.element, tiles, crowded.data<int>(), means.data<float>(), nullptr), {&means});
}

RoiAlign roi_align_call(const Features& features, const Boxes& boxes, Array& rois, Array& starts) {
  RoiAlign call{};
  call.maps = features.maps;
  call.boxes = boxes.count;
  call.corners = boxes.corners.data<float>();
  call.image_index = boxes.image_index.data<int64_t>();
  for (int& bins : call.bins) bins = read_int();
  std::vector<double> strides;
  for (int l = 0; l < features.maps.levels; ++l) strides.push_back(read<double>());
  call.sampling_ratio = read_int();
  call.aligned = read_int();
  call.canonical_size = static_cast<float>(read_int());
  call.canonical_level = static_cast<float>(read_int());
  set_scales(call, strides.data());
  call.rois = rois.data<Roi>();
  call.starts = starts.data<int>();
  return call;
}

void run_roi_align(bool backward) {
  const Features features(!backward);
  const Pyramid& maps = features.maps;
  const Boxes boxes;
  Array rois(sizeof(Roi) * boxes.count), starts(4 * (maps.levels * maps.images + 1));
  const RoiAlign call = roi_align_call(features, boxes, rois, starts);
  const int64_t bytes = int64_t(features.element_size) * boxes.count * maps.channels * call.bins[0] * call.bins[1];
  if (backward) {
    const Array gradient = Array::read(bytes);
    finish(multiscale_roi_align_backward(call, features.element, gradient.data<void>(), nullptr), {});
    return features.write();
  }
  Array pooled(bytes);
  finish(multiscale_roi_align(call, features.element, pooled.data<void>(), nullptr), {&pooled});
}

}  // namespace

int main(int count, char** arguments) {
  check(count == 3, "usage: harness OPERATOR ORDER < arguments > results");
  const std::string name = arguments[1], suffix = "_backward";
  gkd::emulation::set_order(atoi(arguments[2]));
  const bool backward = name.size() > suffix.size() && name.substr(name.size() - suffix.size()) == suffix;
  if (name == "box_mean_pool" || name == "box_mean_pool_backward")
    run_mean_pool(backward);
  else if (name == "multiscale_roi_align" || name == "multiscale_roi_align_backward")
    run_roi_align(backward);
  else
    check(false, "unknown operator");
}

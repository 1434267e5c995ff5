// Runs one operator of csrc/cuda on anchors on the CPU: detection OPERATOR ORDER < arguments > results, in the order in which they
// are read below.
#include "arguments.h"

#include "../../../csrc/cuda/anchor_losses.cu"
#include "../../../csrc/cuda/batched_nms.cu"
#include "../../../csrc/cuda/encode_boxes.cu"
#include "../../../csrc/cuda/match_anchors.cu"
#include "../../../csrc/cuda/sample_balanced.cu"

namespace {

using namespace gkd::cuda;
using namespace harness;

void run_match() {
  MatchAnchors call{};
  call.images = read_int(), call.of_image = read_int(), call.most = read_int();
  call.shared = read_int(), call.low_quality = read_int();
  call.high = static_cast<float>(read<double>()), call.low = static_cast<float>(read<double>());
  const int64_t n = call.images, a = call.of_image, g = call.most;
  const Array anchors = Array::read(16 * a * (call.shared ? 1 : n)), boxes = Array::read(16 * n * g), counts = Array::read(8 * n);
  call.tiles = match_tiles(call.of_image);
  const Array largest(4 * n * call.tiles * g), top(4 * n * g), matched(8 * n * a);
  call.anchors = anchors.data<float>(), call.boxes = boxes.data<float>(), call.counts = counts.data<int64_t>();
  call.largest = largest.data<float>(), call.top = top.data<float>(), call.matched = matched.data<int64_t>();
  finish(match_anchors(call, nullptr), {&matched});
}

void run_encode() {
  EncodeBoxes call{};
  call.images = read_int(), call.of_image = read_int(), call.most = read_int(), call.shared = read_int();
  for (float& weight : call.weights) weight = static_cast<float>(read<double>());
  const int64_t n = call.images, a = call.of_image;
  const Array anchors = Array::read(16 * a * (call.shared ? 1 : n)), boxes = Array::read(16 * n * call.most);
  const Array matched = Array::read(8 * n * a), offsets(16 * n * a);
  call.anchors = anchors.data<float>(), call.boxes = boxes.data<float>();
  call.matched = matched.data<int64_t>(), call.offsets = offsets.data<float>();
  finish(encode_boxes(call, nullptr), {&offsets});
}

void run_sample() {
  SampleBalanced call{};
  call.images = read_int(), call.of_image = read_int(), call.samples = read_int(), call.positives = read_int();
  const int64_t n = call.images;
  const Array matched = Array::read(8 * n * call.of_image), seeds = Array::read(8 * n);
  const Array index(8 * n * call.samples), drawn(8 * n * call.of_image);
  call.matched = matched.data<int64_t>(), call.seeds = seeds.data<int64_t>();
  call.index = index.data<int64_t>(), call.drawn = drawn.data<int64_t>();
  finish(sample_balanced(call, nullptr), {&index, &drawn});
}

void run_nms() {
  BatchedNms call{};
  call.images = read_int(), call.places = read_int(), call.most = read_int();
  call.threshold = static_cast<float>(read<double>());
  const int64_t n = call.images, k = call.places;
  const Array boxes = Array::read(16 * n * k), groups = Array::read(8 * n * k), order = Array::read(8 * n * k);
  call.words = (call.places + kWord - 1) / kWord;
  const Array overlaps(8 * n * k * call.words), kept(8 * n * call.most), counts(8 * n);
  call.boxes = boxes.data<float>(), call.groups = groups.data<int64_t>(), call.order = order.data<int64_t>();
  call.overlaps = overlaps.data<uint64_t>(), call.kept = kept.data<int64_t>(), call.counts = counts.data<int64_t>();
  finish(batched_nms(call, nullptr), {&kept, &counts});
}

struct Maps {
  AnchorMaps maps{};
  Element element;
  std::vector<Array> arrays, gradients;
  Array matched{0}, weight{0}, parts{0}, loss{4};

  // Element, levels, images, values of an anchor, whether gradients are needed; of every map channels, height, width, four
  // strides, whether it lies as channels_last, the bytes it spans and these; matches and weights.
  Maps() {
    element = static_cast<Element>(read_int());
    maps.count = read_int(), maps.images = read_int(), maps.values = read_int();
    const bool needed = read_int();
    const int state_size = element == Element::kBFloat16 ? 2 : 4;
    int64_t anchors = 0, tiles = 0;
    for (int l = 0; l < maps.count; ++l) {
      AnchorMap& map = maps.levels[l];
      const int64_t c = read_int(), h = read_int(), w = read_int();
      for (int64_t& stride : map.strides) stride = read<int64_t>();
      map.channels = static_cast<int>(c), map.cells = static_cast<int>(h * w), map.width = static_cast<int>(w);
      map.interleaved = read_int();
      map.first_anchor = static_cast<int>(anchors), map.first_tile = static_cast<int>(tiles);
      arrays.push_back(Array::read(read<int64_t>()));
      map.data = arrays.back().data<void>();
      if (needed) gradients.emplace_back(maps.images * c * h * w * state_size);
      map.gradient = needed ? gradients.back().data<void>() : nullptr;
      anchors += h * w * (c / maps.values);
      tiles += maps.images * loss_tiles(c * h * w);
    }
    maps.anchors = static_cast<int>(anchors), maps.tiles = static_cast<int>(tiles);
    matched = Array::read(8 * maps.images * anchors), weight = Array::read(4 * maps.images), parts = Array(4 * tiles);
    maps.matched = matched.data<int64_t>(), maps.weight = weight.data<float>();
    maps.parts = parts.data<float>(), maps.loss = loss.data<float>();
  }

  void write(const char* error) const {
    std::vector<const Array*> results{&loss};
    for (const Array& gradient : gradients) results.push_back(&gradient);
    finish(error, results);
  }
};

void run_focal() {
  const Maps maps;
  FocalLoss loss{};
  loss.most = read_int();
  loss.alpha = static_cast<float>(read<double>()), loss.gamma = static_cast<float>(read<double>());
  const Array labels = Array::read(8ll * maps.maps.images * loss.most);
  loss.labels = labels.data<int64_t>();
  maps.write(sigmoid_focal_loss(maps.maps, maps.element, loss, nullptr));
}

void run_smooth_l1() {
  const Maps maps;
  SmoothL1Loss loss{};
  loss.beta = static_cast<float>(read<double>());
  const Array targets = Array::read(16ll * maps.maps.images * maps.maps.anchors);
  loss.targets = targets.data<float>();
  maps.write(smooth_l1_loss(maps.maps, maps.element, loss, nullptr));
}

}  // namespace

int main(int count, char** arguments) {
  check(count == 3, "usage: detection OPERATOR ORDER < arguments > results");
  const std::string name = arguments[1];
  gkd::emulation::set_order(atoi(arguments[2]));
  if (name == "match_anchors")
    run_match();
  else if (name == "encode_boxes")
    run_encode();
  else if (name == "sample_balanced")
    run_sample();
  else if (name == "batched_nms")
    run_nms();
  else if (name == "sigmoid_focal_loss")
    run_focal();
  else if (name == "smooth_l1_loss")
    run_smooth_l1();
  else
    check(false, "unknown operator");
}

// Images of bytes, planes of colours, as one padded batch of pixels.
#include <algorithm>

#include "../common.h"

namespace gkd::cpu {
namespace {

constexpr int64_t kColours = 3, kBytes = 256;

Tensor normalise_images(std::vector<Tensor> images, const Tensor& values, int64_t height, int64_t width) {
  std::vector<Tensor> dense;
  for (const Tensor& image : images) dense.push_back(torch::stable::contiguous(image));
  const Tensor table = torch::stable::contiguous(values);
  const float* of = data<float>(table);
  const int64_t count = static_cast<int64_t>(images.size());
  Tensor pixels = new_tensor(values, {count, height, width, kColours}, ScalarType::Float);
  float* out = data<float>(pixels);
  torch::stable::parallel_for(0, count * height, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Tensor& image = dense[row / height];
      const int64_t y = row % height, own_height = image.size(1), own_width = y < own_height ? image.size(2) : 0;
      float* to = out + row * width * kColours;
      for (int64_t colour = 0; colour < kColours; ++colour) {
        const uint8_t* from = data<uint8_t>(image) + (colour * own_height + y) * image.size(2);
        for (int64_t x = 0; x < own_width; ++x) to[x * kColours + colour] = of[colour * kBytes + from[x]];
      }
      std::fill_n(to + own_width * kColours, (width - own_width) * kColours, 0.f);
    }
  });
  return torch::stable::transpose(torch::stable::transpose(pixels, 1, 3), 2, 3);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CPU, m) { m.impl("normalise_images", TORCH_BOX(&normalise_images)); }

}  // namespace gkd::cpu

// Box mean pooling of CUDA tensors.
#include "box_mean_pool.h"

#include "binding.h"

namespace gkd::cuda {
namespace {

// A call with the tensors that it points into.
struct BoundCall {
  BoundPyramid maps;
  Tensor corners, image_index;
  BoxMeanPool call{};

  BoundCall(const std::vector<Tensor>& features, const Tensor& boxes, const Tensor& images,
            const std::vector<double>& strides, bool mirror)
      : maps(features),
        corners(torch::stable::contiguous(boxes)),
        image_index(torch::stable::contiguous(images)) {
    checked_int(boxes.size(0) * maps.maps.levels, "boxes of all levels");
    call.maps = maps.maps;
    call.boxes = static_cast<int>(boxes.size(0));
    call.corners = data<float>(static_cast<const Tensor&>(corners));
    call.image_index = data<int64_t>(static_cast<const Tensor&>(image_index));
    for (size_t l = 0; l < strides.size(); ++l) call.strides[l] = static_cast<float>(strides[l]);
    call.mirror = mirror;
  }
};

// Embeddings [L,B,C], float32.
Tensor forward(std::vector<Tensor> features, const Tensor& boxes, const Tensor& image_index, std::vector<double> strides,
               bool mirror) {
  const OnDeviceOf device(boxes);
  BoundCall bound(features, boxes, image_index, strides, mirror);
  const Pyramid& maps = bound.call.maps;
  Tensor cells = new_tensor(boxes, {maps.levels, boxes.size(0), sizeof(BoxCells)}, ScalarType::Byte);
  bound.call.cells = data<BoxCells>(cells);
  Pyramid tile_sums = maps;
  std::vector<int64_t> places;
  int64_t floats = 0;
  for (int l = 0; l < maps.levels; ++l) {
    places.push_back(floats);
    floats += (maps.images * tiles_of_image(maps.maps[l]) * maps.channels + 3) / 4 * 4;  // 16 bytes, as one access reads
  }
  Tensor sums = new_tensor(boxes, {floats}, ScalarType::Float);
  for (int l = 0; l < maps.levels; ++l)
    tile_sums.maps[l] = tile_map(maps.maps[l], data<float>(sums) + places[l], maps.channels);
  Tensor crowded = new_tensor(boxes, {maps.levels, maps.images}, ScalarType::Int);
  Tensor means = new_tensor(boxes, {maps.levels, boxes.size(0), maps.channels}, ScalarType::Float);
  check_launch(box_mean_pool(bound.call, element_of(features[0].scalar_type()), tile_sums, data<int>(crowded),
                             data<float>(means), device.stream()));
  return means;
}

// Gradients of the features, in their dtypes and layouts; `gradient` [L,B,C] as the forward's result.
std::vector<Tensor> backward(const Tensor& gradient, std::vector<Tensor> features, const Tensor& boxes,
                             const Tensor& image_index, std::vector<double> strides, bool mirror) {
  const OnDeviceOf device(boxes);
  const Tensor means = torch::stable::contiguous(gradient);
  std::vector<Tensor> results;
  for (const Tensor& feature : features) results.push_back(torch::stable::empty_like(feature));
  const BoundCall bound(results, boxes, image_index, strides, mirror);
  check_launch(box_mean_pool_backward(bound.call, element_of(features[0].scalar_type()), data<float>(means), device.stream()));
  for (size_t l = 0; l < results.size(); ++l)
    if (!is_readable(results[l])) torch::stable::copy_(results[l], bound.maps.tensors[l]);
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CUDA, m) {
  m.impl("box_mean_pool", TORCH_BOX(&forward));
  m.impl("box_mean_pool_backward", TORCH_BOX(&backward));
}

}  // namespace gkd::cuda

// Balanced samples of CUDA tensors.
#include "sample_balanced.h"

#include "binding.h"

namespace gkd::cuda {
namespace {

std::tuple<Tensor, Tensor> forward(const Tensor& matched, const Tensor& seeds, int64_t samples, int64_t positives) {
  const OnDeviceOf device(matched);
  const Tensor dense[2] = {torch::stable::contiguous(matched), torch::stable::contiguous(seeds)};
  SampleBalanced call{};
  call.matched = data<int64_t>(dense[0]);
  call.seeds = data<int64_t>(dense[1]);
  call.images = checked_int(matched.size(0), "images");
  call.of_image = checked_int(matched.size(1), "places of an image");
  call.samples = checked_int(samples, "samples");
  call.positives = checked_int(positives, "positives");
  Tensor index = new_tensor(matched, {call.images, call.samples}, ScalarType::Long);
  Tensor drawn = new_tensor(matched, {call.images, call.of_image}, ScalarType::Long);
  call.index = data<int64_t>(index);
  call.drawn = data<int64_t>(drawn);
  check_launch(sample_balanced(call, device.stream()));
  return {index, drawn};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CUDA, m) { m.impl("sample_balanced", TORCH_BOX(&forward)); }

}  // namespace gkd::cuda

// Losses of the predictions of all anchors: one launch over all levels and images, whose threads take neighbouring elements of
// the gradient, and one that adds the blocks' sums in their order.
#include "anchor_losses.h"

#include "block.cuh"

namespace gkd::cuda {
namespace {

constexpr int kOfThread = 4, kTile = kOfThread * kThreads;

struct Term {
  float loss, gradient;
};

// u: the logit, negated for a positive; s = sigmoid(u) = 1 - p_t: loss a s^g softplus(u).
__device__ inline Term focal_term(float u, float gamma) {
  const float e = expf(-fabsf(u)), rest = log1pf(e), inverse = 1.0f / (1.0f + e);
  const float softplus = (u < 0 ? 0.0f : u) + rest;
  const float s = u > 0 ? inverse : e * inverse, other = u > 0 ? e * inverse : inverse;
  const float power = gamma == 0 ? 1.0f : gamma == 2 ? s * s : expf(gamma * ((u < 0 ? u : 0.0f) - rest));
  return {power * softplus, power * (gamma * other * softplus + s)};
}

__device__ inline Term evaluate(const FocalLoss& loss, float x, int64_t match, int64_t image, int64_t, int value, int values) {
  if (match < -1) return {0, 0};
  const int64_t label = match >= 0 && match < loss.most ? loss.labels[image * loss.most + match] : -1;
  const bool positive = label == value;
  const Term term = focal_term(positive ? -x : x, loss.gamma);
  const float a = loss.alpha < 0 ? 1.0f : positive ? loss.alpha : 1.0f - loss.alpha;
  return {a * term.loss, positive ? -a * term.gradient : a * term.gradient};
}

__device__ inline Term evaluate(const SmoothL1Loss& loss, float x, int64_t match, int64_t, int64_t anchor, int value, int) {
  if (match < 0) return {0, 0};
  const float difference = x - loss.targets[4 * anchor + value], distance = fabsf(difference);
  if (distance < loss.beta) return {0.5f * distance * distance / loss.beta, difference / loss.beta};
  return {distance - 0.5f * loss.beta, difference > 0 ? 1.0f : difference < 0 ? -1.0f : difference};
}

template <class T, class State, class Loss>
__global__ void __launch_bounds__(kThreads) sum_tile(const __grid_constant__ AnchorMaps maps, const __grid_constant__ Loss loss) {
  const int tile = static_cast<int>(blockIdx.x);
  int level = 0;
  while (level + 1 < maps.count && tile >= maps.levels[level + 1].first_tile) ++level;
  const AnchorMap& map = maps.levels[level];
  const int64_t elements = static_cast<int64_t>(map.cells) * map.channels;
  const int of_image = static_cast<int>((elements + kTile - 1) / kTile);
  const int64_t image = (tile - map.first_tile) / of_image;
  const int64_t first = static_cast<int64_t>((tile - map.first_tile) % of_image) * kTile;
  const int of_cell = map.channels / maps.values;
  const float weight = maps.weight[image];
  float sum = 0;
#pragma unroll 1
  for (int i = 0; i < kOfThread; ++i) {
    const int64_t element = first + i * kThreads + thread();
    if (element >= elements) break;
    const int channel = static_cast<int>(map.interleaved ? element % map.channels : element / map.cells);
    const int cell = static_cast<int>(map.interleaved ? element / map.channels : element % map.cells);
    const int64_t anchor = image * maps.anchors + map.first_anchor + static_cast<int64_t>(cell) * of_cell + channel / maps.values;
    const T* data = static_cast<const T*>(map.data) + image * map.strides[0] + channel * map.strides[1];
    const float x = to_float(data[cell / map.width * map.strides[2] + cell % map.width * map.strides[3]]);
    const Term term = evaluate(loss, x, maps.matched[anchor], image, anchor, channel % maps.values, maps.values);
    sum += term.loss;
    if (map.gradient) assign(static_cast<State*>(map.gradient)[image * elements + element], weight * term.gradient);
  }
  sum = block_sum(sum);
  if (thread() == 0) maps.parts[tile] = weight * sum;
}

__global__ void __launch_bounds__(kThreads) sum_parts(const __grid_constant__ AnchorMaps maps) {
  float sum = 0;
  for (int tile = thread(); tile < maps.tiles; tile += kThreads) sum += maps.parts[tile];
  sum = block_sum(sum);
  if (thread() == 0) *maps.loss = sum;
}

template <class Loss>
const char* run(const AnchorMaps& maps, Element element, const Loss& loss, void* stream) {
  const dim3 tiles(maps.tiles);
  if (maps.tiles > 0) {
    switch (element) {
      case Element::kFloat:
        GKD_LAUNCH((sum_tile<float, float, Loss>), tiles, kThreads, stream, maps, loss);
        break;
      case Element::kHalf:
        GKD_LAUNCH((sum_tile<__half, float, Loss>), tiles, kThreads, stream, maps, loss);
        break;
      case Element::kBFloat16:
        GKD_LAUNCH((sum_tile<__nv_bfloat16, __nv_bfloat16, Loss>), tiles, kThreads, stream, maps, loss);
        break;
    }
  }
  GKD_LAUNCH(sum_parts, dim3(1), kThreads, stream, maps);
  return launch_error();
}

}  // namespace

int loss_tiles(int64_t elements) { return static_cast<int>((elements + kTile - 1) / kTile); }

const char* sigmoid_focal_loss(const AnchorMaps& maps, Element element, const FocalLoss& loss, void* stream) {
  return run(maps, element, loss, stream);
}

const char* smooth_l1_loss(const AnchorMaps& maps, Element element, const SmoothL1Loss& loss, void* stream) {
  return run(maps, element, loss, stream);
}

}  // namespace gkd::cuda

// Matching of anchors with boxes without the matrix of their IoUs: a thread keeps the best box of its anchor, a block the
// largest IoU of each box among its anchors. Where anchors of low quality count as well, only the blocks that hold the largest
// IoU of all work theirs out again.
#include "match_anchors.h"

#include "iou.cuh"

namespace gkd::cuda {
namespace {

__device__ inline int boxes_of(const MatchAnchors& call, int image) {
  const int64_t count = call.counts[image];
  return static_cast<int>(smaller(larger(count, int64_t{0}), static_cast<int64_t>(call.most)));
}

struct Anchor {
  Corners corners;
  float area;
  float best_iou = 0;
  int best_box = 0;
};

__device__ inline Anchor anchor_of(const MatchAnchors& call, int image, int place) {
  const float none = nanf("");
  Anchor anchor{{none, none, none, none}, none};
  if (place < call.of_image) {
    const int64_t first = call.shared ? 0 : static_cast<int64_t>(image) * call.of_image;
    anchor.corners = corners_at(call.anchors, first + place);
    anchor.area = area_of(anchor.corners);
  }
  return anchor;
}

__device__ inline float look(Anchor& anchor, const Corners& box, float area, int number) {
  float iou = iou_of(box, area, anchor.corners, anchor.area);
  if (!(iou == iou)) iou = 0;
  if (iou > anchor.best_iou) {
    anchor.best_iou = iou;
    anchor.best_box = number;
  }
  return iou;
}

// Shows each thread every box of an image; see(number, box, area) is called by all threads.
template <class See, class Between>
__device__ inline void for_each_box(const MatchAnchors& call, int image, const See& see, const Between& between) {
  GKD_SHARED(Corners, boxes, kThreads);
  GKD_SHARED(float, areas, kThreads);
  const int count = boxes_of(call, image);
  for (int first = 0; first < count; first += kThreads) {
    if (first + thread() < count) {
      boxes[thread()] = corners_at(call.boxes, static_cast<int64_t>(image) * call.most + first + thread());
      areas[thread()] = area_of(boxes[thread()]);
    }
    __syncthreads();
    for (int i = 0; i < smaller(kThreads, count - first); ++i) see(first, i, boxes[i], areas[i]);
    between(first, smaller(kThreads, count - first));
    __syncthreads();
  }
}

__device__ inline float warp_max(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, distance));
  return value;
}

__global__ void __launch_bounds__(kThreads) match_tile(const __grid_constant__ MatchAnchors call) {
  GKD_SHARED(float, of_warp, kWarps * kThreads);
  const int tile = static_cast<int>(blockIdx.x), image = static_cast<int>(blockIdx.y);
  const int place = tile * kThreads + thread();
  Anchor anchor = anchor_of(call, image, place);
  float* largest = call.largest + (static_cast<int64_t>(image) * call.tiles + tile) * call.most;
  for_each_box(
      call, image,
      [&](int first, int i, const Corners& box, float area) {
        const float iou = look(anchor, box, area, first + i);
        const bool meet = __ballot_sync(kFullWarp, iou > 0) != 0;
        const float most = meet ? warp_max(iou) : 0.0f;
        if (lane() == 0) of_warp[warp() * kThreads + i] = most;
      },
      [&](int first, int count) {
        __syncthreads();
        if (thread() >= count) return;
        float most = 0;
        for (int w = 0; w < kWarps; ++w) most = fmaxf(most, of_warp[w * kThreads + thread()]);
        largest[first + thread()] = most;
      });
  if (place >= call.of_image) return;
  const bool background = boxes_of(call, image) == 0 || anchor.best_iou < call.low;
  call.matched[static_cast<int64_t>(image) * call.of_image + place] =
      background ? -1 : anchor.best_iou < call.high ? -2 : anchor.best_box;
}

// One block a box: its largest IoU of all tiles.
__global__ void __launch_bounds__(kThreads) largest_of_box(const __grid_constant__ MatchAnchors call) {
  GKD_SHARED(float, of_warp, kWarps);
  const int box = static_cast<int>(blockIdx.x), image = static_cast<int>(blockIdx.y);
  const bool real = box < boxes_of(call, image);
  float most = 0;
  for (int tile = thread(); real && tile < call.tiles; tile += kThreads)
    most = fmaxf(most, call.largest[(static_cast<int64_t>(image) * call.tiles + tile) * call.most + box]);
  most = warp_max(most);
  if (lane() == 0) of_warp[warp()] = most;
  __syncthreads();
  if (thread() > 0) return;
  for (int w = 0; w < kWarps; ++w) most = fmaxf(most, of_warp[w]);
  call.top[static_cast<int64_t>(image) * call.most + box] = most;
}

__global__ void __launch_bounds__(kThreads) match_again(const __grid_constant__ MatchAnchors call) {
  const int tile = static_cast<int>(blockIdx.x), image = static_cast<int>(blockIdx.y);
  const float* largest = call.largest + (static_cast<int64_t>(image) * call.tiles + tile) * call.most;
  const float* top = call.top + static_cast<int64_t>(image) * call.most;
  int holds = 0;
  for (int box = thread(); box < boxes_of(call, image); box += kThreads) holds += largest[box] == top[box];
  if (block_sum(holds) == 0) return;
  const int place = tile * kThreads + thread();
  Anchor anchor = anchor_of(call, image, place);
  bool again = false;
  for_each_box(
      call, image,
      [&](int first, int i, const Corners& box, float area) {
        again |= look(anchor, box, area, first + i) == top[first + i];
      },
      [](int, int) {});
  if (again && place < call.of_image)
    call.matched[static_cast<int64_t>(image) * call.of_image + place] = anchor.best_box;
}

}  // namespace

int match_tiles(int anchors) { return ceil_div(anchors, kThreads); }

const char* match_anchors(const MatchAnchors& call, void* stream) {
  if (call.images == 0 || call.tiles == 0) return nullptr;
  const dim3 tiles(call.tiles, call.images), boxes(call.most, call.images);
  GKD_LAUNCH(match_tile, tiles, kThreads, stream, call);
  if (call.low_quality && call.most > 0) {
    GKD_LAUNCH(largest_of_box, boxes, kThreads, stream, call);
    GKD_LAUNCH(match_again, tiles, kThreads, stream, call);
  }
  return launch_error();
}

}  // namespace gkd::cuda

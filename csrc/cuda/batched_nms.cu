// Non-maximum suppression: all overlaps at once, as bits; then one block an image goes through the boxes by descending score,
// 64 at a time, and strikes out what they overlap.
#include "batched_nms.h"

#include "iou.cuh"

namespace gkd::cuda {
namespace {

struct Ranked {
  Corners corners;
  float area;
  int64_t group;
};

__device__ inline Ranked ranked(const BatchedNms& call, int64_t image, int rank) {
  const int64_t place = image * call.places + call.order[image * call.places + rank];
  const Corners corners = corners_at(call.boxes, place);
  return {corners, area_of(corners), call.groups[place]};
}

// A thread has one box, a block one word of later ones.
__global__ void __launch_bounds__(kThreads) find_overlaps(const __grid_constant__ BatchedNms call) {
  GKD_SHARED(Ranked, others, kWord);
  const int word = static_cast<int>(blockIdx.y), first = word * kWord, rank = static_cast<int>(blockIdx.x) * kThreads + thread();
  const int64_t image = blockIdx.z;
  if (first + kWord <= static_cast<int>(blockIdx.x) * kThreads) return;  // all of them are earlier
  if (thread() < kWord && first + thread() < call.places) others[thread()] = ranked(call, image, first + thread());
  __syncthreads();
  if (rank >= call.places) return;
  const Ranked own = ranked(call, image, rank);
  uint64_t bits = 0;
  for (int i = larger(0, rank + 1 - first); i < smaller(kWord, call.places - first); ++i)
    if (others[i].group == own.group && iou_of(own.corners, own.area, others[i].corners, others[i].area) >= call.threshold)
      bits |= uint64_t{1} << i;
  call.overlaps[(image * call.places + rank) * call.words + word] = bits;
}

__global__ void __launch_bounds__(kThreads) sweep(const __grid_constant__ BatchedNms call) {
  GKD_SHARED(uint64_t, struck, kMostWords);
  GKD_SHARED(uint64_t, own, kWord);
  GKD_SHARED(uint64_t, kept, 1);
  const int64_t image = blockIdx.x;
  const int64_t *order = call.order + image * call.places, *groups = call.groups + image * call.places;
  const uint64_t* overlaps = call.overlaps + image * call.places * call.words;
  for (int w = thread(); w < call.words; w += kThreads) {
    uint64_t padding = 0;
    for (int i = 0; i < kWord; ++i) {
      const int rank = w * kWord + i;
      if (rank >= call.places || groups[order[rank]] < 0) padding |= uint64_t{1} << i;
    }
    struck[w] = padding;
  }
  int count = 0;  // of the first thread alone
  for (int w = 0; w < call.words; ++w) {
    const int first = w * kWord, inside = smaller(kWord, call.places - first);
    if (thread() < inside) own[thread()] = overlaps[static_cast<int64_t>(first + thread()) * call.words + w];
    __syncthreads();
    if (thread() == 0) {
      uint64_t alive = ~struck[w], chosen = 0;
      for (int i = 0; i < inside && count < call.most; ++i) {
        if (!(alive >> i & 1)) continue;
        alive &= ~own[i];
        chosen |= uint64_t{1} << i;
        call.kept[image * call.most + count++] = order[first + i];
      }
      kept[0] = chosen;
    }
    __syncthreads();
    for (int later = w + 1 + thread(); later < call.words; later += kThreads) {
      uint64_t bits = struck[later];
      for (int i = 0; i < inside; ++i)
        if (kept[0] >> i & 1) bits |= overlaps[static_cast<int64_t>(first + i) * call.words + later];
      struck[later] = bits;
    }
  }
  if (thread() > 0) return;
  call.counts[image] = count;
  for (int i = count; i < call.most; ++i) call.kept[image * call.most + i] = -1;
}

}  // namespace

const char* batched_nms(const BatchedNms& call, void* stream) {
  if (call.images == 0) return nullptr;
  if (call.places > 0 && call.most > 0)
    GKD_LAUNCH(find_overlaps, dim3(ceil_div(call.places, kThreads), call.words, call.images), kThreads, stream, call);
  GKD_LAUNCH(sweep, dim3(call.images), kThreads, stream, call);
  return launch_error();
}

}  // namespace gkd::cuda

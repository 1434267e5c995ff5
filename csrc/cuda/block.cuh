// What the threads of a block do together. All of kThreads call each of these.
#pragma once

#include "elements.cuh"

namespace gkd::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;

__device__ inline int thread() { return static_cast<int>(threadIdx.x); }
__device__ inline int lane() { return thread() % 32; }
__device__ inline int warp() { return thread() / 32; }

template <class T>
__device__ inline T warp_sum(T value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(kFullWarp, value, distance);
  return value;
}

template <class T>
__device__ inline T block_sum(T value) {
  GKD_SHARED(T, of_warp, kWarps);
  value = warp_sum(value);
  if (lane() == 0) of_warp[warp()] = value;
  __syncthreads();
  T total = 0;
  for (int w = 0; w < kWarps; ++w) total += of_warp[w];
  __syncthreads();
  return total;
}

// How many threads before this one, and in all, have the flag.
struct Rank {
  int before, total;
};

__device__ inline Rank block_rank(bool flag) {
  GKD_SHARED(int, of_warp, kWarps);
  const unsigned votes = __ballot_sync(kFullWarp, flag);
  if (lane() == 0) of_warp[warp()] = __popc(votes);
  __syncthreads();
  Rank rank{__popc(votes & ((1u << lane()) - 1)), 0};
  for (int w = 0; w < kWarps; ++w) {
    rank.before += w < warp() ? of_warp[w] : 0;
    rank.total += of_warp[w];
  }
  __syncthreads();
  return rank;
}

// Stable sort by group, one block a group: place(item, position) for every item of the block's own; returns where they begin.
// The group of an item is found three times rather than stored: no pass has to wait for another.
template <class GroupOf, class Place>
__device__ inline int sort_group(int count, int group, const GroupOf& group_of, const Place& place) {
  int lower = 0;
  for (int i = thread(); i < count; i += kThreads) lower += group_of(i) < group;
  const int start = block_sum(lower);
  for (int first = 0, position = start; first < count; first += kThreads) {
    const int item = first + thread();
    const bool own = item < count && group_of(item) == group;
    const Rank rank = block_rank(own);
    if (own) place(item, position + rank.before);
    position += rank.total;
  }
  return start;
}

}  // namespace gkd::cuda

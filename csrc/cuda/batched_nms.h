// Non-maximum suppression with raw pointers to memory of the device.
#pragma once

#include <cstdint>

namespace gkd::cuda {

constexpr int kWord = 64;           // places whose overlap with a box one word of bits tells
constexpr int kMostWords = 4096;    // of an image

struct BatchedNms {
  const float* boxes;             // [N,K,4]
  const int64_t *groups, *order;  // [N,K]
  int images, places, words, most;
  float threshold;
  uint64_t* overlaps;  // [N,K,words]: which later places, by descending score, overlap with each
  int64_t *kept, *counts;
};

// Returns what went wrong, or null.
const char* batched_nms(const BatchedNms& call, void* stream);

}  // namespace gkd::cuda

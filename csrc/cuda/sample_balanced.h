// Balanced samples by hashed keys, with raw pointers to memory of the device.
#pragma once

#include <cstdint>

namespace gkd::cuda {

struct SampleBalanced {
  const int64_t *matched, *seeds;  // [N,A], [N]
  int images, of_image, samples, positives;
  int64_t *index, *drawn;  // [N,samples], [N,A]
};

// Returns what went wrong, or null.
const char* sample_balanced(const SampleBalanced& call, void* stream);

}  // namespace gkd::cuda

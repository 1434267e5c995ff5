// Balanced samples by hashed keys, a block an image.
//
// The keys of an image differ from each other, being the images of different words under a bijection. So there is a bound below
// which exactly as many lie as are wanted; since keys are uniform, interpolation finds it in a few passes over the matches.
#include "sample_balanced.h"

#include "block.cuh"

namespace gkd::cuda {
namespace {

// MurmurHash3's finaliser.
__device__ inline uint32_t mix(uint32_t word) {
  word = (word ^ (word >> 16)) * 0x85EBCA6Bu;
  word = (word ^ (word >> 13)) * 0xC2B2AE35u;
  return word ^ (word >> 16);
}

struct Image {
  const int64_t* matched;
  int count;
  uint32_t base;

  __device__ bool belongs(int place, bool positive) const {
    return positive ? matched[place] >= 0 : matched[place] == -1;
  }
  __device__ int64_t key(int place) const { return mix(base + static_cast<uint32_t>(place) * 0x9E3779B9u); }

  // How many places of a kind have a key up to the bound; all threads get the same number.
  __device__ int up_to(bool positive, int64_t bound) const {
    int found = 0;
    for (int place = thread(); place < count; place += kThreads)
      found += belongs(place, positive) && key(place) <= bound;
    return block_sum(found);
  }
};

struct Draw {
  int64_t bound;
  int count;
};

// The bound up to which `wanted` places of a kind lie, or all of them.
__device__ inline Draw find_bound(const Image& image, bool positive, int wanted) {
  int64_t low = -1, high = 0xffffffffll;
  int below = 0, found = image.up_to(positive, high);
  wanted = smaller(wanted, found);
  if (wanted == 0) return {-1, 0};
  for (bool halve = false; found != wanted; halve = !halve) {
    const double share = halve ? 0.5 : static_cast<double>(wanted - below) / (found - below);
    const int64_t step = static_cast<int64_t>(share * static_cast<double>(high - low));
    const int64_t middle = smaller(larger(low + step, low + 1), high - 1);
    const int up_to = image.up_to(positive, middle);
    if (up_to < wanted) {
      low = middle;
      below = up_to;
    } else {
      high = middle;
      found = up_to;
    }
  }
  return {high, wanted};
}

// Writes the places of a kind up to a bound in ascending order.
__device__ inline void write_places(const Image& image, bool positive, const Draw& draw, int64_t* index) {
  for (int first = 0, position = 0; first < image.count && position < draw.count; first += kThreads) {
    const int place = first + thread();
    const bool own = place < image.count && image.belongs(place, positive) && image.key(place) <= draw.bound;
    const Rank rank = block_rank(own);
    if (own) index[position + rank.before] = place;
    position += rank.total;
  }
}

__global__ void __launch_bounds__(kThreads) sample(const __grid_constant__ SampleBalanced call) {
  const int64_t number = blockIdx.x, seed = call.seeds[number];
  const uint32_t high = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
  const Image image{call.matched + number * call.of_image, call.of_image, mix(static_cast<uint32_t>(seed) ^ mix(high))};
  int64_t* index = call.index + number * call.samples;
  const Draw positive = find_bound(image, true, call.positives);
  const Draw negative = find_bound(image, false, call.samples - positive.count);
  write_places(image, true, positive, index);
  write_places(image, false, negative, index + positive.count);
  for (int i = positive.count + negative.count + thread(); i < call.samples; i += kThreads) index[i] = -1;
  for (int place = thread(); place < image.count; place += kThreads) {
    const int64_t key = image.key(place);
    const bool drawn = (image.belongs(place, true) && key <= positive.bound) ||
                       (image.belongs(place, false) && key <= negative.bound);
    call.drawn[number * call.of_image + place] = drawn ? image.matched[place] : -2;
  }
}

}  // namespace

const char* sample_balanced(const SampleBalanced& call, void* stream) {
  if (call.images == 0) return nullptr;
  GKD_LAUNCH(sample, dim3(call.images), kThreads, stream, call);
  return launch_error();
}

}  // namespace gkd::cuda

// Balanced samples by hashed keys. Keys are uniform: of M places the q smallest lie, with next to no exception, below
// (q + margin) / M of their range, so that few keys are ever ordered.
#include <algorithm>
#include <cmath>

#include "../common.h"

namespace gkd::cpu {
namespace {

// MurmurHash3's finaliser.
inline uint32_t mix(uint32_t word) {
  word = (word ^ (word >> 16)) * 0x85EBCA6Bu;
  word = (word ^ (word >> 13)) * 0xC2B2AE35u;
  return word ^ (word >> 16);
}

struct Keys {
  uint32_t base;

  explicit Keys(int64_t seed)
      : base(mix(static_cast<uint32_t>(seed) ^ mix(static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32)))) {}
  uint32_t operator()(int64_t place) const { return mix(base + static_cast<uint32_t>(place) * 0x9E3779B9u); }
};

// Places with belongs(match), by key and place; those below the bound of keys.
template <class Belongs>
void collect(const int64_t* matched, int64_t count, const Keys& keys, const Belongs& belongs, uint32_t bound,
             std::vector<uint64_t>& found) {
  found.clear();
  for (int64_t i = 0; i < count; ++i)
    if (belongs(matched[i]) && keys(i) <= bound) found.push_back(uint64_t{keys(i)} << 32 | static_cast<uint64_t>(i));
}

// Puts the places of the `wanted` smallest keys into `index` in ascending order; returns how many there are.
template <class Belongs>
int64_t draw(const int64_t* matched, int64_t count, const Keys& keys, const Belongs& belongs, int64_t wanted,
             std::vector<uint64_t>& found, int64_t* index) {
  const int64_t among = std::count_if(matched, matched + count, belongs);
  wanted = std::min(wanted, among);
  if (wanted == 0) return 0;
  const double share = (wanted + 6 * std::sqrt(static_cast<double>(wanted)) + 16) / among;
  const uint32_t all = ~uint32_t{0};
  collect(matched, count, keys, belongs, share < 1 ? static_cast<uint32_t>(share * all) : all, found);
  if (static_cast<int64_t>(found.size()) < wanted) collect(matched, count, keys, belongs, all, found);
  std::nth_element(found.begin(), found.begin() + (wanted - 1), found.end());
  for (int64_t i = 0; i < wanted; ++i) index[i] = static_cast<int64_t>(found[i] & 0xffffffffu);
  std::sort(index, index + wanted);
  return wanted;
}

std::tuple<Tensor, Tensor> sample_balanced(const Tensor& matched, const Tensor& seeds, int64_t samples,
                                           int64_t positives) {
  const Tensor dense[2] = {torch::stable::contiguous(matched), torch::stable::contiguous(seeds)};
  const int64_t images = matched.size(0), count = matched.size(1);
  Tensor index = new_tensor(matched, {images, samples}, ScalarType::Long);
  Tensor drawn = new_tensor(matched, {images, count}, ScalarType::Long);
  torch::stable::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
    std::vector<uint64_t> found;
    for (int64_t image = begin; image < end; ++image) {
      const int64_t* own = data<int64_t>(dense[0]) + image * count;
      int64_t *places = data<int64_t>(index) + image * samples, *kept = data<int64_t>(drawn) + image * count;
      const Keys keys(data<int64_t>(dense[1])[image]);
      int64_t taken = draw(own, count, keys, [](int64_t m) { return m >= 0; }, positives, found, places);
      taken += draw(own, count, keys, [](int64_t m) { return m == -1; }, samples - taken, found, places + taken);
      std::fill(places + taken, places + samples, -1);
      std::fill(kept, kept + count, -2);
      for (int64_t i = 0; i < taken; ++i) kept[places[i]] = own[places[i]];
    }
  });
  return {index, drawn};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CPU, m) { m.impl("sample_balanced", TORCH_BOX(&sample_balanced)); }

}  // namespace gkd::cpu

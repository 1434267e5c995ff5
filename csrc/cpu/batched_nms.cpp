// Non-maximum suppression by descending score: each box is compared with those of its group that are kept, many at once, until
// as many are kept as are wanted.
#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "exact.h"

namespace gkd::cpu {
namespace {

// The kept boxes of one group, column by column, filled up to whole vectors with boxes that meet none.
class Kept {
 public:
  bool suppresses(const Box& box, float threshold) const {
    const float area = box.area();
    for (int64_t i = 0; i < count_; i += kLanes) {
      Lanes common;
      if (!intersect({columns_[0].data(), columns_[1].data(), columns_[2].data(), columns_[3].data(), columns_[4].data()},
                     i, box, common) &&
          threshold > 0)
        continue;
      if (any(common / (load(columns_[4].data() + i) + area - common) >= all(threshold))) return true;
    }
    return false;
  }

  void add(const Box& box) {
    const float values[5] = {box.x1, box.y1, box.x2, box.y2, box.area()};
    for (int c = 0; c < 5; ++c) {
      if (count_ % kLanes == 0) columns_[c].resize(count_ + kLanes, NAN);
      columns_[c][count_] = values[c];
    }
    ++count_;
  }

 private:
  int64_t count_ = 0;
  std::vector<float> columns_[5];
};

int64_t suppress(const float* boxes, const int64_t* groups, const int64_t* order, int64_t places, float threshold,
                 int64_t most, int64_t* kept) {
  std::unordered_map<int64_t, Kept> of_group;
  int64_t count = 0;
  for (int64_t i = 0; i < places && count < most; ++i) {
    const int64_t place = order[i];
    if (groups[place] < 0) continue;
    const float* corner = boxes + 4 * place;
    const Box box{corner[0], corner[1], corner[2], corner[3]};
    Kept& own = of_group[groups[place]];
    if (own.suppresses(box, threshold)) continue;
    own.add(box);
    kept[count++] = place;
  }
  std::fill(kept + count, kept + most, -1);
  return count;
}

std::tuple<Tensor, Tensor> batched_nms(const Tensor& boxes, const Tensor& groups, const Tensor& order, double threshold,
                                       int64_t most) {
  const Tensor dense[3] = {torch::stable::contiguous(boxes), torch::stable::contiguous(groups),
                           torch::stable::contiguous(order)};
  const int64_t images = groups.size(0), places = groups.size(1);
  Tensor kept = new_tensor(order, {images, most}, ScalarType::Long), counts = new_tensor(order, {images}, ScalarType::Long);
  torch::stable::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      data<int64_t>(counts)[n] = suppress(
          data<float>(dense[0]) + 4 * n * places, data<int64_t>(dense[1]) + n * places, data<int64_t>(dense[2]) + n * places,
          places, static_cast<float>(threshold), most, data<int64_t>(kept) + n * most);
  });
  return {kept, counts};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CPU, m) { m.impl("batched_nms", TORCH_BOX(&batched_nms)); }

}  // namespace gkd::cpu

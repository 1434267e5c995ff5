// Matching of anchors with boxes, block by block of anchors, without the matrix of their IoUs.
//
// A block knows the largest IoU of each box among its own anchors. Where anchors of low quality count as well, only the blocks
// that hold the largest of all are looked at again.
#include <algorithm>
#include <cmath>

#include "exact.h"

namespace gkd::cpu {
namespace {

constexpr int64_t kBlock = 512;

struct AnchorBlock {
  alignas(kVectorBytes) float x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock];
  int64_t count;
  Box bounds{INFINITY, INFINITY, -INFINITY, -INFINITY};

  AnchorBlock(const float* anchors, int64_t count) : count(count) {
    for (int64_t i = 0; i < kBlock; ++i) {
      // Places beyond the last anchor lie where no box is.
      const Box box = i < count ? Box{anchors[4 * i], anchors[4 * i + 1], anchors[4 * i + 2], anchors[4 * i + 3]}
                                : Box{NAN, NAN, NAN, NAN};
      x1[i] = box.x1, y1[i] = box.y1, x2[i] = box.x2, y2[i] = box.y2, area[i] = box.area();
    }
    for (int64_t i = 0; i < count; ++i) {
      bounds.x1 = std::min(bounds.x1, x1[i]), bounds.y1 = std::min(bounds.y1, y1[i]);
      bounds.x2 = std::max(bounds.x2, x2[i]), bounds.y2 = std::max(bounds.y2, y2[i]);
    }
  }

  BoxColumns columns() const { return {x1, y1, x2, y2, area}; }
  bool may_meet(const Box& box) const {
    return box.x1 < bounds.x2 && bounds.x1 < box.x2 && box.y1 < bounds.y2 && bounds.y1 < box.y2;
  }
};

// The best box of every anchor of a block.
struct Best {
  static constexpr int64_t kVectors = kBlock / kLanes;
  Lanes iou[kVectors] = {};
  Mask box[kVectors] = {};
  Mask again[kVectors] = {};  // not 0: no anchor has a larger IoU with some box
};

// Looks at one box; returns the largest IoU. With `top`, marks the anchors that have it.
float look(const AnchorBlock& block, const Box& box, int32_t number, Best& best, const float* top) {
  Lanes largest = {};
  const float area = box.area();
  const bool may_meet = block.may_meet(box), everywhere = top && *top == 0;
  if (!may_meet && !everywhere) return 0;
  for (int64_t v = 0; v * kLanes < block.count; ++v) {
    Lanes common, iou = {};
    if (may_meet && intersect(block.columns(), v * kLanes, box, common)) {
      iou = common / (area + load(block.area + v * kLanes) - common);
      iou = iou == iou ? iou : Lanes{};
      const auto better = iou > best.iou[v];
      best.box[v] = better ? Mask{} + number : best.box[v];
      best.iou[v] = better ? iou : best.iou[v];
      largest = larger(largest, iou);
    }
    if (top) best.again[v] |= iou == all(*top);
  }
  float found = 0;
  for (int k = 0; k < kLanes; ++k) found = std::max(found, largest[k]);
  return found;
}

struct Problem {
  const float *anchors, *boxes;
  const int64_t* counts;
  int64_t images, of_image, most, anchor_stride;  // anchor_stride: 0 where images share their anchors
  float high, low;

  int64_t blocks() const { return (of_image + kBlock - 1) / kBlock; }
  int64_t count(int64_t image) const { return std::clamp<int64_t>(counts[image], 0, most); }
  Box box(int64_t image, int64_t g) const {
    const float* corner = boxes + 4 * (image * most + g);
    return {corner[0], corner[1], corner[2], corner[3]};
  }
  AnchorBlock block(int64_t image, int64_t b) const {
    return {anchors + image * anchor_stride + 4 * b * kBlock, std::min(kBlock, of_image - b * kBlock)};
  }
  int64_t decided(float iou, int64_t number) const { return iou < low ? -1 : iou < high ? -2 : number; }
};

// The first pass: matches by the thresholds, and the largest IoU of each box in the block.
void match_block(const Problem& p, int64_t image, int64_t b, int64_t* matched, float* largest) {
  const AnchorBlock block = p.block(image, b);
  Best best;
  for (int64_t g = 0; g < p.count(image); ++g)
    largest[g] = look(block, p.box(image, g), static_cast<int32_t>(g), best, nullptr);
  for (int64_t i = 0; i < block.count; ++i)
    matched[i] = p.count(image) ? p.decided(best.iou[i / kLanes][i % kLanes], best.box[i / kLanes][i % kLanes]) : -1;
}

// The second pass: the anchors that no other one surpasses for some box.
void match_again(const Problem& p, int64_t image, int64_t b, const float* top, int64_t* matched) {
  const AnchorBlock block = p.block(image, b);
  Best best;
  for (int64_t g = 0; g < p.count(image); ++g) look(block, p.box(image, g), static_cast<int32_t>(g), best, top + g);
  for (int64_t i = 0; i < block.count; ++i)
    if (best.again[i / kLanes][i % kLanes]) matched[i] = best.box[i / kLanes][i % kLanes];
}

Tensor match_anchors(const Tensor& anchors, const Tensor& boxes, const Tensor& counts, double high, double low,
                     bool low_quality) {
  const Tensor dense[3] = {torch::stable::contiguous(anchors), torch::stable::contiguous(boxes),
                           torch::stable::contiguous(counts)};
  const bool shared = anchors.dim() == 2;
  const int64_t of_image = anchors.size(shared ? 0 : 1);
  const Problem p{data<float>(dense[0]), data<float>(dense[1]), data<int64_t>(dense[2]), boxes.size(0), of_image,
                  boxes.size(1), shared ? 0 : 4 * of_image, static_cast<float>(high), static_cast<float>(low)};
  Tensor result = new_tensor(counts, {p.images, of_image}, ScalarType::Long);
  int64_t* matched = data<int64_t>(result);
  std::vector<float> largest(p.images * p.blocks() * p.most);
  const auto for_each_block = [&](const auto& body) {
    torch::stable::parallel_for(0, p.images * p.blocks(), 4, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t image = task / p.blocks(), b = task % p.blocks();
        body(image, b, matched + image * of_image + b * kBlock, largest.data() + task * p.most);
      }
    });
  };
  for_each_block([&](int64_t image, int64_t b, int64_t* out, float* tops) { match_block(p, image, b, out, tops); });
  if (!low_quality) return result;
  std::vector<float> top(p.images * p.most);
  for (int64_t image = 0; image < p.images; ++image)
    for (int64_t b = 0; b < p.blocks(); ++b)
      for (int64_t g = 0; g < p.count(image); ++g)
        top[image * p.most + g] =
            std::max(top[image * p.most + g], largest[(image * p.blocks() + b) * p.most + g]);
  for_each_block([&](int64_t image, int64_t b, int64_t* out, const float* tops) {
    const float* own = top.data() + image * p.most;
    bool holds = false;
    for (int64_t g = 0; g < p.count(image); ++g) holds |= tops[g] == own[g];
    if (holds) match_again(p, image, b, own, out);
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CPU, m) { m.impl("match_anchors", TORCH_BOX(&match_anchors)); }

}  // namespace gkd::cpu

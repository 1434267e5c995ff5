// Losses of the predictions of all anchors, read from the maps on which the heads write them, with their gradients.
#include <algorithm>
#include <cmath>

#include "convert.h"
#include "elementary.h"

namespace gkd::cpu {
namespace {

constexpr int64_t kTask = 8192;  // elements that are worked on at once

// Maps [N,A_l*V,H_l,W_l] and the gradients to be made of them, as tasks of some cells of one map of one image.
struct Maps {
  struct Level {
    const Tensor* map;
    Tensor gradient;
    int64_t channels, cells, width, first_anchor, tasks;
    bool interleaved;  // the map lies as channels_last without gaps

    int64_t cells_of_task() const { return std::max<int64_t>(1, kTask / std::max<int64_t>(1, channels)); }
  };

  std::vector<Level> levels;
  int64_t images, anchors = 0, tasks = 0;
  bool needed;

  Maps(const std::vector<Tensor>& maps, int64_t values, const std::vector<int64_t>& channels_last, bool needed)
      : images(maps[0].size(0)), needed(needed) {
    for (size_t l = 0; l < maps.size(); ++l) {
      const Tensor& map = maps[l];
      const int64_t c = map.size(1), h = map.size(2), w = map.size(3);
      Level level{&map, map, c, h * w, w, anchors, 0, false};
      level.interleaved = (map.stride(1) == 1 || c == 1) && (map.stride(3) == c || w == 1) &&
                          (map.stride(2) == w * c || h == 1);
      const ScalarType dtype = map.scalar_type() == ScalarType::Half ? ScalarType::Float : map.scalar_type();
      if (needed && channels_last[l]) {
        const Tensor cells = new_zeros(map, {images, h, w, c}, dtype);
        level.gradient = torch::stable::transpose(torch::stable::transpose(cells, 1, 3), 2, 3);
      } else if (needed) {
        level.gradient = new_zeros(map, {images, c, h, w}, dtype);
      }
      level.tasks = (level.cells + level.cells_of_task() - 1) / level.cells_of_task();
      anchors += h * w * (c / values);
      tasks += level.tasks * images;
      levels.push_back(level);
    }
  }

  // body(level, image, first cell, number of cells) returns its part of the image's loss; returns sum_n weight_n loss_n.
  template <class Body>
  double sum(const float* weight, const Body& body) const {
    std::vector<double> parts(tasks);
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        int64_t rest = task;
        const Level* level = levels.data();
        while (rest >= level->tasks * images) rest -= level++->tasks * images;
        const int64_t image = rest / level->tasks, cell = rest % level->tasks * level->cells_of_task();
        parts[task] = weight[image] * body(*level, image, cell, std::min(level->cells_of_task(), level->cells - cell));
      }
    });
    double total = 0;
    for (const double part : parts) total += part;
    return total;
  }

  std::vector<Tensor> gradients() const {
    std::vector<Tensor> found;
    for (const Level& level : levels)
      if (needed) found.push_back(level.gradient);
    return found;
  }
};

// body(element of the map, index cell by cell) for the channels of some cells.
template <class T, class Body>
void for_each_element(const Tensor& map, int64_t image, int64_t cell, int64_t cells, const Body& body) {
  const int64_t channels = map.size(1), width = map.size(3);
  T* data = static_cast<T*>(const_cast<void*>(map.const_data_ptr())) + image * map.stride(0);
  for (int64_t i = 0; i < cells; ++i) {
    T* at = data + (cell + i) / width * map.stride(2) + (cell + i) % width * map.stride(3);
    for (int64_t c = 0; c < channels; ++c) body(at[c * map.stride(1)], i * channels + c);
  }
}

// body(element of the map, its number) for the four offsets of one anchor of a cell: matched anchors are few.
template <class Body>
void for_each_offset(const Tensor& map, int64_t image, int64_t cell, int64_t anchor, const Body& body) {
  with_floating_type(map.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const int64_t width = map.size(3), step = map.stride(1);
    T* at = static_cast<T*>(const_cast<void*>(map.const_data_ptr())) + image * map.stride(0) +
            cell / width * map.stride(2) + cell % width * map.stride(3) + 4 * anchor * step;
    for (int64_t k = 0; k < 4; ++k) body(at[k * step], k);
  });
}

template <class A>
void read_cells(const Maps::Level& level, int64_t image, int64_t cell, int64_t cells, A* out) {
  with_floating_type(level.map->scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const Tensor& map = *level.map;
    if (level.interleaved)
      widen(data<T>(map) + image * map.stride(0) + cell * level.channels, cells * level.channels, out);
    else
      for_each_element<T>(map, image, cell, cells, [&](T& x, int64_t i) { out[i] = static_cast<A>(x); });
  });
}

template <class A>
void write_cells(const Maps::Level& level, int64_t image, int64_t cell, int64_t cells, const A* in) {
  Tensor gradient = level.gradient;
  with_floating_type(gradient.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    if (gradient.stride(1) == 1 && gradient.stride(3) == level.channels)
      narrow(in, cells * level.channels, data<T>(gradient) + image * gradient.stride(0) + cell * level.channels);
    else
      for_each_element<T>(gradient, image, cell, cells, [&](T& x, int64_t i) { x = static_cast<T>(in[i]); });
  });
}

// With u the logit, negated for a positive: loss a s^g softplus(u), s = sigmoid(u) = 1 - p_t; its gradient by u is
// a s^g (g (1 - s) softplus(u) + s).
template <class A>
struct Focal {
  A gamma;

  // factor: a, with the sign of the gradient by the logit; becomes that gradient. Returns the sum of the losses.
  A run(const A* u, A* factor, int64_t count) const {
    constexpr int W = Simd<A>::width;
    Vec<A> sum = {};
    for (int64_t i = 0; i < count; i += W) {
      const Vec<A> x = load(u + i), a = load(factor + i), zero = {};
      const Vec<A> e = exp_of_negative(x > zero ? -x : x), rest = log_one_plus(e), inverse = 1 / (1 + e);
      const Vec<A> softplus = (x < zero ? zero : x) + rest;
      const Vec<A> s = x > zero ? inverse : e * inverse, other = x > zero ? e * inverse : inverse;
      Vec<A> power = zero + 1;
      if (gamma == 2)
        power = s * s;
      else if (gamma != 0)
        power = exp_of_negative(gamma * ((x < zero ? x : zero) - rest));  // log s = u - softplus(u)
      sum += (a < zero ? -a : a) * power * softplus;
      store(factor + i, a * power * (gamma * other * softplus + s));
    }
    A total = 0;
    for (int k = 0; k < W; ++k) total += sum[k];
    return total;
  }
};

constexpr int64_t kSpare = 16;  // elements behind the last one, up to a whole vector

template <class A>
class FocalTask {
 public:
  FocalTask(int64_t classes, A alpha, A gamma) : classes_(classes), alpha_(alpha), focal_{gamma} {}

  double run(const Maps& maps, const Maps::Level& level, int64_t image, int64_t cell, int64_t cells,
             const int64_t* matched, const int64_t* labels, int64_t most, A weight) {
    const int64_t of_cell = level.channels / classes_, count = cells * level.channels;
    matched += image * maps.anchors + level.first_anchor + cell * of_cell;
    // Samples are few among all anchors.
    if (std::all_of(matched, matched + cells * of_cell, [](int64_t m) { return m < -1; })) return 0;
    u_.resize(count + kSpare);
    factor_.resize(count + kSpare);
    read_cells(level, image, cell, cells, u_.data());
    std::fill_n(factor_.begin(), count, alpha_ < 0 ? 1 : 1 - alpha_);
    for (int64_t a = 0; a < cells * of_cell; ++a) prepare(a, matched[a], labels + image * most, most);
    std::fill_n(u_.begin() + count, kSpare, A(0));
    std::fill_n(factor_.begin() + count, kSpare, A(0));
    const double loss = focal_.run(u_.data(), factor_.data(), count);
    if (maps.needed) {
      for (int64_t i = 0; i < count; ++i) factor_[i] *= weight;
      write_cells(level, image, cell, cells, factor_.data());
    }
    return loss;
  }

 private:
  int64_t classes_;
  A alpha_;
  Focal<A> focal_;
  std::vector<A> u_, factor_;

  void prepare(int64_t anchor, int64_t match, const int64_t* labels, int64_t most) {
    A *u = u_.data() + anchor * classes_, *factor = factor_.data() + anchor * classes_;
    if (match < -1) {
      std::fill_n(u, classes_, A(0));
      std::fill_n(factor, classes_, A(0));
    }
    const int64_t label = match >= 0 && match < most ? labels[match] : -1;
    if (label < 0 || label >= classes_) return;
    u[label] = -u[label];
    factor[label] = alpha_ < 0 ? -1 : -alpha_;
  }
};

std::tuple<Tensor, std::vector<Tensor>> finish(const Maps& maps, double loss) {
  const bool is_double = maps.levels[0].map->scalar_type() == ScalarType::Double;
  Tensor result = new_tensor(*maps.levels[0].map, {}, is_double ? ScalarType::Double : ScalarType::Float);
  if (is_double)
    *data<double>(result) = loss;
  else
    *data<float>(result) = static_cast<float>(loss);
  return {result, maps.gradients()};
}

std::tuple<Tensor, std::vector<Tensor>> sigmoid_focal_loss(std::vector<Tensor> logits, const Tensor& matched,
                                                           const Tensor& labels, const Tensor& weight, int64_t classes,
                                                           double alpha, double gamma,
                                                           std::vector<int64_t> channels_last, bool needed) {
  const Tensor dense[3] = {torch::stable::contiguous(matched), torch::stable::contiguous(labels),
                           torch::stable::contiguous(weight)};
  const Maps maps(logits, classes, channels_last, needed);
  const float* weights = data<float>(dense[2]);
  const auto run = [&](auto tag) {
    using A = decltype(tag);
    return maps.sum(weights, [&](const Maps::Level& level, int64_t image, int64_t cell, int64_t cells) {
      FocalTask<A> task(classes, static_cast<A>(alpha), static_cast<A>(gamma));
      return task.run(maps, level, image, cell, cells, data<int64_t>(dense[0]), data<int64_t>(dense[1]), labels.size(1),
                      static_cast<A>(weights[image]));
    });
  };
  return finish(maps, logits[0].scalar_type() == ScalarType::Double ? run(double{}) : run(float{}));
}

// Loss of one anchor; offsets become their gradients.
template <class A>
A smooth_l1(A* offsets, const float* target, A beta, A weight) {
  A loss = 0;
  for (int k = 0; k < 4; ++k) {
    const A difference = offsets[k] - target[k], distance = std::abs(difference);
    const bool parabola = distance < beta;
    loss += parabola ? A(0.5) * distance * distance / beta : distance - A(0.5) * beta;
    const A sign = difference > 0 ? A(1) : difference < 0 ? A(-1) : difference;  // 0, or not a number
    offsets[k] = weight * (parabola ? difference / beta : sign);
  }
  return loss;
}

std::tuple<Tensor, std::vector<Tensor>> smooth_l1_loss(std::vector<Tensor> offsets, const Tensor& matched,
                                                       const Tensor& targets, const Tensor& weight, double beta,
                                                       std::vector<int64_t> channels_last, bool needed) {
  const Tensor dense[3] = {torch::stable::contiguous(matched), torch::stable::contiguous(targets),
                           torch::stable::contiguous(weight)};
  const Maps maps(offsets, 4, channels_last, needed);
  const int64_t* match = data<int64_t>(dense[0]);
  const float *target = data<float>(dense[1]), *weights = data<float>(dense[2]);
  const auto run = [&](auto tag) {
    using A = decltype(tag);
    return maps.sum(weights, [&](const Maps::Level& level, int64_t image, int64_t cell, int64_t cells) {
      const int64_t of_cell = level.channels / 4, first = image * maps.anchors + level.first_anchor + cell * of_cell;
      double loss = 0;
      for (int64_t a = 0; a < cells * of_cell; ++a) {
        if (match[first + a] < 0) continue;
        const int64_t own = cell + a / of_cell, anchor = a % of_cell;
        A values[4];
        for_each_offset(*level.map, image, own, anchor, [&](auto& x, int64_t k) { values[k] = static_cast<A>(x); });
        loss += smooth_l1(values, target + 4 * (first + a), static_cast<A>(beta), static_cast<A>(weights[image]));
        if (maps.needed)
          for_each_offset(level.gradient, image, own, anchor, [&](auto& x, int64_t k) {
            x = static_cast<std::remove_reference_t<decltype(x)>>(values[k]);
          });
      }
      return loss;
    });
  };
  return finish(maps, offsets[0].scalar_type() == ScalarType::Double ? run(double{}) : run(float{}));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CPU, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss));
  m.impl("smooth_l1_loss", TORCH_BOX(&smooth_l1_loss));
}

}  // namespace gkd::cpu

// Batch normalisation of maps whose channels are adjacent: rows of C numbers, however few. Whole vectors are taken across the
// ends of rows, and sums are made block by block, so that they do not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "load_vector.h"

namespace gkd::cpu {
namespace {

constexpr int kVectors = 4;
constexpr int64_t kWidth = Simd<float>::width, kStrip = kVectors * kWidth;
constexpr int64_t kPeriod = 512;   // numbers at least from one term of a sum to the next, so that chains are short
constexpr int64_t kBlock = 16384;  // numbers that are still in cache when they are read again

using Strip = Vec<float>[kVectors];

template <class T>
__attribute__((always_inline)) inline void load_strip(const T* p, Strip& strip) {
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) strip[v] = load_vector(p + v * kWidth);
}

struct Rows {
  int64_t rows, channels, period, of_block;

  explicit Rows(const Tensor& map) : rows(map.size(0) * map.size(2) * map.size(3)), channels(map.size(1)) {
    const int64_t whole = channels * (kStrip / std::gcd(channels, kStrip));  // rows that end with a strip
    period = whole * ((kPeriod + whole - 1) / whole);
    of_block = period / channels * std::max<int64_t>(1, kBlock / period);
  }

  int64_t blocks() const { return (rows + of_block - 1) / of_block; }

  // body(block, first number, count of numbers) for every block.
  template <class Body>
  void for_each_block(const Body& body) const {
    torch::stable::parallel_for(0, blocks(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const int64_t first = b * of_block;
        body(b, first * channels, std::min(of_block, rows - first) * channels);
      }
    });
  }

  // strip(place in the period, how many periods have it), and one(number, place) for what is left at the end.
  template <class OfStrip, class One>
  void walk(int64_t count, const OfStrip& strip, const One& one) const {
    const int64_t whole = count / period, rest = count % period;
    for (int64_t j = 0; j < period; j += kStrip)
      if (const int64_t times = whole + (j + kStrip <= rest); times > 0) strip(j, times);
    for (int64_t j = rest / kStrip * kStrip; j < rest; ++j) one(whole * period + j, j);
  }

  // The sums of a period as those of the channels.
  void fold(const std::vector<float>& sums, float* of_channel) const {
    std::copy_n(sums.begin(), channels, of_channel);
    for (int64_t start = channels; start < period; start += channels)
      for (int64_t c = 0; c < channels; ++c) of_channel[c] += sums[start + c];
  }

  std::vector<float> repeated(const float* of_channel) const {
    std::vector<float> values(period);
    for (int64_t start = 0; start < period; start += channels) std::copy_n(of_channel, channels, values.begin() + start);
    return values;
  }
};

// Of blocks, put together from the means: sums of squares of the numbers themselves would lose small deviations (Chan, Golub and
// LeVeque 1983).
struct Moments {
  double count = 0, mean = 0, squares = 0;

  void add(double n, double other_mean, double other_squares) {
    const double total = count + n, difference = other_mean - mean;
    squares += other_squares + difference * difference * count * n / total;
    mean += difference * n / total;
    count = total;
  }
};

template <class T>
void block_moments(const Rows& rows, const T* x, int64_t count, float* mean, float* squares) {
  const int64_t period = rows.period;
  std::vector<float> sums(period);
  rows.walk(
      count,
      [&](int64_t j, int64_t times) {
        Strip sum = {}, own;
        for (const T* p = x + j; times > 0; --times, p += period) {
          load_strip(p, own);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) sum[v] += own[v];
        }
        for (int v = 0; v < kVectors; ++v) store(&sums[j + v * kWidth], sum[v]);
      },
      [&](int64_t i, int64_t j) { sums[j] += static_cast<float>(x[i]); });
  rows.fold(sums, mean);
  for (int64_t c = 0; c < rows.channels; ++c) mean[c] /= static_cast<float>(count / rows.channels);
  const std::vector<float> centres = rows.repeated(mean);
  std::fill(sums.begin(), sums.end(), 0.f);
  rows.walk(
      count,
      [&](int64_t j, int64_t times) {
        Strip sum = {}, own, centre;
        load_strip(&centres[j], centre);
        for (const T* p = x + j; times > 0; --times, p += period) {
          load_strip(p, own);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) sum[v] += (own[v] - centre[v]) * (own[v] - centre[v]);
        }
        for (int v = 0; v < kVectors; ++v) store(&sums[j + v * kWidth], sum[v]);
      },
      [&](int64_t i, int64_t j) {
        const float d = static_cast<float>(x[i]) - centres[j];
        sums[j] += d * d;
      });
  rows.fold(sums, squares);
}

// Where the activation behind the normalisation ends.
struct Range {
  float low, high;

  Vec<float> clamp(Vec<float> y) const {
    y = y < low ? Vec<float>{} + low : y;
    return y > high ? Vec<float>{} + high : y;
  }
  float clamp(float y) const { return y < low ? low : y > high ? high : y; }

  // The gradient g of what was clamped, which ends at the limits.
  Vec<float> slope(Vec<float> y, Vec<float> g) const {
    return (y > low) & (y < high) ? g : Vec<float>{};
  }
  float slope(float y, float g) const { return y > low && y < high ? g : 0.f; }
};

// y = a (x - mean) + b for the numbers of a period.
struct Scaling {
  std::vector<float> mean, a, b;

  float at(int64_t j, float x) const { return (x - mean[j]) * a[j] + b[j]; }
};

struct ScalingStrip {
  Strip mean, a, b;

  ScalingStrip(const Scaling& of, int64_t j) {
    load_strip(&of.mean[j], mean);
    load_strip(&of.a[j], a);
    load_strip(&of.b[j], b);
  }
};

// The clamped result of a block.
template <class T>
void scale_block(const Rows& rows, const Scaling& scaling, Range range, const T* x, int64_t count, T* y) {
  const int64_t period = rows.period;
  rows.walk(
      count,
      [&](int64_t j, int64_t times) {
        const ScalingStrip s(scaling, j);
        Strip own;
        T* q = y + j;
        for (const T* p = x + j; times > 0; --times, p += period, q += period) {
          load_strip(p, own);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v)
            store_vector(q + v * kWidth, range.clamp((own[v] - s.mean[v]) * s.a[v] + s.b[v]));
        }
      },
      [&](int64_t i, int64_t j) { y[i] = static_cast<T>(range.clamp(scaling.at(j, static_cast<float>(x[i])))); });
}

// Sums over a block of g and of g (x - mean), g being the gradient of what was clamped.
template <class T>
void block_sums(const Rows& rows, const Scaling& scaling, Range range, const T* g, const T* x, int64_t count,
                float* plain, float* centred) {
  const int64_t period = rows.period;
  std::vector<float> sums(period), products(period);
  rows.walk(
      count,
      [&](int64_t j, int64_t times) {
        const ScalingStrip s(scaling, j);
        Strip sum = {}, product = {}, own, gradient;
        const T* q = g + j;
        for (const T* p = x + j; times > 0; --times, p += period, q += period) {
          load_strip(p, own);
          load_strip(q, gradient);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) {
            const Vec<float> distance = own[v] - s.mean[v];
            const Vec<float> slope = range.slope(distance * s.a[v] + s.b[v], gradient[v]);
            sum[v] += slope;
            product[v] += slope * distance;
          }
        }
        for (int v = 0; v < kVectors; ++v) {
          store(&sums[j + v * kWidth], sum[v]);
          store(&products[j + v * kWidth], product[v]);
        }
      },
      [&](int64_t i, int64_t j) {
        const float own = static_cast<float>(x[i]), slope = range.slope(scaling.at(j, own), static_cast<float>(g[i]));
        sums[j] += slope;
        products[j] += slope * (own - scaling.mean[j]);
      });
  rows.fold(sums, plain);
  rows.fold(products, centred);
}

// y = a g + c (x - mean) + d of a block; c and d for a period.
template <class T>
void combine_block(const Rows& rows, const Scaling& scaling, Range range, const T* g, const T* x, int64_t count,
                   const float* c, const float* d, T* y) {
  const int64_t period = rows.period;
  rows.walk(
      count,
      [&](int64_t j, int64_t times) {
        const ScalingStrip s(scaling, j);
        Strip of_map, constant, own, gradient;
        load_strip(c + j, of_map);
        load_strip(d + j, constant);
        const T *p = x + j, *q = g + j;
        for (T* r = y + j; times > 0; --times, p += period, q += period, r += period) {
          load_strip(p, own);
          load_strip(q, gradient);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) {
            const Vec<float> distance = own[v] - s.mean[v];
            const Vec<float> slope = range.slope(distance * s.a[v] + s.b[v], gradient[v]);
            store_vector(r + v * kWidth, s.a[v] * slope + (of_map[v] * distance + constant[v]));
          }
        }
      },
      [&](int64_t i, int64_t j) {
        const float own = static_cast<float>(x[i]), slope = range.slope(scaling.at(j, own), static_cast<float>(g[i]));
        y[i] = static_cast<T>(scaling.a[j] * slope + (c[j] * (own - scaling.mean[j]) + d[j]));
      });
}

template <class Body>
void with_narrow_type(const Tensor& map, const Body& body) {
  with_floating_type(map.scalar_type(), [&](auto tag) {
    if constexpr (!std::is_same_v<decltype(tag), double>)
      return body(tag);
    else
      STD_TORCH_CHECK(false, "expected float32, bfloat16 or float16");
  });
}

Scaling scaling_of(const Rows& rows, const Tensor& weight, const Tensor& bias, const Tensor& mean, const Tensor& inverse) {
  const Tensor dense[2] = {torch::stable::contiguous(weight), torch::stable::contiguous(bias)};
  std::vector<float> a(rows.channels);
  for (int64_t c = 0; c < rows.channels; ++c) a[c] = data<float>(dense[0])[c] * data<float>(inverse)[c];
  return {rows.repeated(data<float>(mean)), rows.repeated(a.data()), rows.repeated(data<float>(dense[1]))};
}

// Mean, 1 / deviation, and the running statistics' step towards mean and unbiased variance.
template <class T>
void measure(const Rows& rows, const T* x, double eps, double momentum, float* mean, float* inverse, float* running_mean,
             float* running_variance) {
  const int64_t channels = rows.channels;
  std::vector<float> means(rows.blocks() * channels), squares(means.size());
  rows.for_each_block([&](int64_t b, int64_t first, int64_t count) {
    block_moments(rows, x + first, count, &means[b * channels], &squares[b * channels]);
  });
  for (int64_t c = 0; c < channels; ++c) {
    Moments all;
    for (int64_t b = 0; b < rows.blocks(); ++b)
      all.add(static_cast<double>(std::min(rows.of_block, rows.rows - b * rows.of_block)), means[b * channels + c],
              squares[b * channels + c]);
    mean[c] = static_cast<float>(all.mean);
    inverse[c] = static_cast<float>(1 / std::sqrt(all.squares / all.count + eps));
    if (running_mean != nullptr) running_mean[c] += static_cast<float>(momentum * (all.mean - running_mean[c]));
    if (running_variance != nullptr)
      running_variance[c] += static_cast<float>(momentum * (all.squares / (all.count - 1) - running_variance[c]));
  }
}

std::tuple<Tensor, Tensor, Tensor> batch_norm(const Tensor& map, const Tensor& weight, const Tensor& bias,
                                              std::optional<Tensor> running_mean, std::optional<Tensor> running_variance,
                                              double momentum, double eps, double low, double high) {
  const Rows rows(map);
  const int64_t channels = rows.channels;
  Tensor out = torch::stable::empty_like(map), mean = new_tensor(weight, {channels}, ScalarType::Float),
         inverse = new_tensor(weight, {channels}, ScalarType::Float);
  with_narrow_type(map, [&](auto tag) {
    using T = decltype(tag);
    const T* x = data<T>(map);
    measure(rows, x, eps, momentum, data<float>(mean), data<float>(inverse),
            running_mean ? data<float>(*running_mean) : nullptr,
            running_variance ? data<float>(*running_variance) : nullptr);
    const Scaling scaling = scaling_of(rows, weight, bias, mean, inverse);
    const Range range{static_cast<float>(low), static_cast<float>(high)};
    T* y = data<T>(out);
    rows.for_each_block([&](int64_t, int64_t first, int64_t count) {
      scale_block(rows, scaling, range, x + first, count, y + first);
    });
  });
  return {out, mean, inverse};
}

// With d = x - mean, s = 1 / deviation and g the gradient where it is not clamped: the gradient by x is
// w s (g - mean(g) - d s^2 mean(g d)).
std::tuple<Tensor, Tensor, Tensor> batch_norm_backward(const Tensor& gradient, const Tensor& map, const Tensor& weight,
                                                       const Tensor& bias, const Tensor& mean, const Tensor& inverse,
                                                       double low, double high) {
  const Rows rows(map);
  const int64_t channels = rows.channels;
  Tensor out = torch::stable::empty_like(map), of_weight = new_tensor(weight, {channels}, ScalarType::Float),
         of_bias = new_tensor(weight, {channels}, ScalarType::Float);
  with_narrow_type(map, [&](auto tag) {
    using T = decltype(tag);
    const T *x = data<T>(map), *g = data<T>(gradient);
    const Range range{static_cast<float>(low), static_cast<float>(high)};
    const Scaling scaling = scaling_of(rows, weight, bias, mean, inverse);
    std::vector<float> plain(rows.blocks() * channels), centred(plain.size());
    rows.for_each_block([&](int64_t block, int64_t first, int64_t count) {
      block_sums(rows, scaling, range, g + first, x + first, count, &plain[block * channels],
                 &centred[block * channels]);
    });
    std::vector<float> of_map(channels), constant(channels);
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0, product = 0;
      for (int64_t block = 0; block < rows.blocks(); ++block)
        sum += plain[block * channels + c], product += centred[block * channels + c];
      const double s = data<float>(inverse)[c], n = static_cast<double>(rows.rows);
      const double scale = scaling.a[c];
      data<float>(of_weight)[c] = static_cast<float>(product * s);
      data<float>(of_bias)[c] = static_cast<float>(sum);
      of_map[c] = static_cast<float>(-scale * s * s * product / n);
      constant[c] = static_cast<float>(-scale * sum / n);
    }
    const std::vector<float> c = rows.repeated(of_map.data()), d = rows.repeated(constant.data());
    T* y = data<T>(out);
    rows.for_each_block([&](int64_t, int64_t first, int64_t count) {
      combine_block(rows, scaling, range, g + first, x + first, count, c.data(), d.data(), y + first);
    });
  });
  return {out, of_weight, of_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CPU, m) {
  m.impl("batch_norm", TORCH_BOX(&batch_norm));
  m.impl("batch_norm_backward", TORCH_BOX(&batch_norm_backward));
}

}  // namespace gkd::cpu

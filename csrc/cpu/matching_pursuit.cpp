// Joint matching pursuit without residuals. In one space let G = A A^T be the Gram matrix of the samples, u_k the products
// of candidate k with all residuals (at first row k of G), and p_j the picks with coefficients w_j. Then
//
//     u_k = G_k - sum_j G[k,p_j] w_j,
//
// and a round changes |u_k|^2 by -2 G[k,p] u_k.w + G[k,p]^2 |w|^2: it reads G once and writes nothing of its size. The
// small differences that this leaves of large numbers are taken in double.
#include <algorithm>
#include <atomic>

#include "convert.h"
#include "gemm.h"

namespace gkd::cpu {
namespace {

// Gram matrices that all threads may hold together; a problem that needs more gets it, alone.
constexpr int64_t kBudgetBytes = int64_t(1) << 30;

constexpr int kLanes = Simd<double>::width;

inline Vec<double> load_double(const double* p) { return load(p); }
inline Vec<double> load_double(const float* p) {
#if defined(__AVX512F__)
  return (Vec<double>)_mm512_cvtps_pd(_mm256_loadu_ps(p));
#else
  typedef float Half __attribute__((vector_size(kVectorBytes / 2), aligned(4), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Half*>(p), Vec<double>);
#endif
}

inline double total(Vec<double> v) {
  double sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}

double dot_double(const double* x, const double* y, int64_t n) {
  Vec<double> sum = {};
  for (int64_t i = 0; i < n; i += kLanes) sum += load(x + i) * load(y + i);
  return total(sum);
}

// The symmetric matrix of all products of the rows of one problem, with zeros up to whole vectors. Every entry is summed
// in the same order, so that equal rows have equal entries and tie exactly.
template <class T>
class Gram {
 public:
  static constexpr int kPanel = 3 * kTileColumns<T>;  // serves as left and as right operand
  static_assert(kPanel % kTileRows == 0);

  Gram(int64_t samples, int64_t channels)
      : channels_(channels),
        row_stride_(channels + Simd<T>::width),
        rows_(kPanel * row_stride_),
        panels_(round_up(samples, kPanel) * channels),
        matrix_(round_up(samples, kPanel) * round_up(samples, kPanel)) {}

  static int64_t bytes(int64_t samples) { return round_up(samples, kPanel) * round_up(samples, kPanel) * sizeof(T); }

  // From rows [first, first + samples) of a contiguous [*, channels] tensor.
  void compute(const Tensor& rows, int64_t first, int64_t samples) {
    stride_ = round_up(samples, kPanel);
    for (int64_t i = 0; i < samples; i += kPanel) pack(rows, first + i, std::min<int64_t>(kPanel, samples - i), i);
    for (int64_t panel = 0; panel < samples; panel += kPanel) {
      const int64_t past = std::min(panel + kPanel, samples);
      for (int64_t j = panel; j < samples; j += kTileColumns<T>)
        for (int64_t i = panel; i < std::min(past, j + kTileColumns<T>); i += kTileRows)
          tile_product<1, kPanel, false>(channels_, operand(i), operand(j), kPanel, matrix_.data() + i * stride_ + j,
                                         stride_);
      mirror(panel, past, samples);
    }
  }

  const T* operator[](int64_t k) const { return matrix_.data() + k * stride_; }

 private:
  int64_t channels_, row_stride_, stride_ = 0;
  std::vector<T> rows_, panels_, matrix_;

  const T* operand(int64_t row) const { return panels_.data() + row / kPanel * kPanel * channels_ + row % kPanel; }

  void pack(const Tensor& rows, int64_t first, int64_t count, int64_t row) {
    with_floating_type(rows.scalar_type(), [&](auto tag) {
      for (int64_t i = 0; i < count; ++i)
        widen(data<decltype(tag)>(rows) + (first + i) * channels_, channels_, rows_.data() + i * row_stride_);
    });
    interleave(rows_.data(), row_stride_, static_cast<int>(count), channels_, panels_.data() + row * channels_,
               kPanel);
  }

  // Completes the columns [first, past) below the diagonal from the rows that are above it.
  void mirror(int64_t first, int64_t past, int64_t samples) {
    constexpr int64_t kBlock = 16;
    for (int64_t j = first; j < samples; j += kBlock)
      for (int64_t i = first; i < std::min(past, j + kBlock); i += kBlock)
        for (int64_t x = j; x < std::min(j + kBlock, samples); ++x)
          for (int64_t y = i; y < std::min({i + kBlock, past, x}); ++y)
            matrix_[x * stride_ + y] = matrix_[y * stride_ + x];
  }
};

// One problem after the other, in the same memory.
template <class T>
class Pursuit {
 public:
  Pursuit(int64_t samples, int64_t student_channels, int64_t teacher_channels, int64_t picks, double alpha)
      : student_(samples, student_channels),
        teacher_(samples, teacher_channels),
        alpha_(alpha),
        length_(round_up(samples, kLanes)),
        student_weights_(picks * length_),
        teacher_weights_(picks * length_) {}

  void run(const Tensor& student, const Tensor& teacher, int64_t problem, int64_t samples, const bool* candidates,
           bool repeat, int64_t picks, int64_t* chosen) {
    std::fill_n(chosen, picks, -1);
    candidates_.clear();
    for (int64_t k = 0; k < samples; ++k)
      if (candidates[k]) candidates_.push_back({k});
    if (candidates_.empty()) return;

    samples_ = samples;
    student_.compute(student, problem * student.size(1), samples);
    teacher_.compute(teacher, problem * teacher.size(1), samples);
    for (Candidate& c : candidates_) start(c);
    for (int64_t round = 0; round < picks && !candidates_.empty(); ++round) {
      const auto best = std::max_element(candidates_.begin(), candidates_.end(), [&](const auto& x, const auto& y) {
        return gain(x) < gain(y);
      });
      chosen[round] = best->row;
      if (!repeat) candidates_.erase(best);
      if (round + 1 < picks) subtract(round, chosen);
    }
  }

 private:
  // |u|^2, |v|^2 and u.v of a row that may be picked, u and v its products with the residuals of either space.
  struct Candidate {
    int64_t row;
    double uu = 0, vv = 0, uv = 0;
  };

  Gram<T> student_, teacher_;
  double alpha_;
  int64_t length_, samples_ = 0;
  std::vector<Candidate> candidates_;
  std::vector<double> student_weights_, teacher_weights_;  // w of every pick so far, zeros beyond the samples

  // sum_n (u w_a + v w_b) without its common factor 1 / (1 + 2 alpha).
  double gain(const Candidate& c) const { return (1 + alpha_) * (c.uu + c.vv) + 2 * alpha_ * c.uv; }

  void start(Candidate& c) const {
    const T *a = student_[c.row], *b = teacher_[c.row];
    Vec<double> uu = {}, vv = {}, uv = {};
    for (int64_t n = 0; n < samples_; n += kLanes) {
      const Vec<double> u = load_double(a + n), v = load_double(b + n);
      uu += u * u;
      vv += v * v;
      uv += u * v;
    }
    c.uu = total(uu);
    c.vv = total(vv);
    c.uv = total(uv);
  }

  // w_a = ((1 + alpha) u + alpha v) / (1 + 2 alpha) of the last pick, w_b likewise, from its row of products.
  void weigh(int64_t round, const int64_t* chosen) {
    double *wa = &student_weights_[round * length_], *wb = &teacher_weights_[round * length_];
    const T *a = student_[chosen[round]], *b = teacher_[chosen[round]];
    for (int64_t n = 0; n < samples_; ++n) {
      double u = a[n], v = b[n];
      for (int64_t j = 0; j < round; ++j) {
        u -= a[chosen[j]] * student_weights_[j * length_ + n];
        v -= b[chosen[j]] * teacher_weights_[j * length_ + n];
      }
      wa[n] = ((1 + alpha_) * u + alpha_ * v) / (1 + 2 * alpha_);
      wb[n] = ((1 + alpha_) * v + alpha_ * u) / (1 + 2 * alpha_);
    }
    std::fill(wa + samples_, wa + round_up(samples_, kLanes), 0.0);
    std::fill(wb + samples_, wb + round_up(samples_, kLanes), 0.0);
  }

  // Takes the last pick's share out of all residuals.
  void subtract(int64_t round, const int64_t* chosen) {
    weigh(round, chosen);
    const double *wa = &student_weights_[round * length_], *wb = &teacher_weights_[round * length_];
    std::vector<Products> earlier(round);
    for (int64_t j = 0; j < round; ++j) {
      const double *ea = &student_weights_[j * length_], *eb = &teacher_weights_[j * length_];
      earlier[j] = {dot_double(ea, wa, samples_), dot_double(ea, wb, samples_), dot_double(eb, wa, samples_),
                    dot_double(eb, wb, samples_)};
    }
    const double aa = dot_double(wa, wa, samples_), ab = dot_double(wa, wb, samples_),
                 bb = dot_double(wb, wb, samples_);
    for (Candidate& candidate : candidates_) {
      const T *a = student_[candidate.row], *b = teacher_[candidate.row];
      Products p = products(a, b, wa, wb);
      for (int64_t j = 0; j < round; ++j) {
        p.u_wa -= a[chosen[j]] * earlier[j].u_wa;
        p.u_wb -= a[chosen[j]] * earlier[j].u_wb;
        p.v_wa -= b[chosen[j]] * earlier[j].v_wa;
        p.v_wb -= b[chosen[j]] * earlier[j].v_wb;
      }
      const double c = a[chosen[round]], d = b[chosen[round]];
      candidate.uu += c * (c * aa - 2 * p.u_wa);
      candidate.vv += d * (d * bb - 2 * p.v_wb);
      candidate.uv += c * d * ab - c * p.v_wa - d * p.u_wb;
    }
  }

  struct Products {
    double u_wa, u_wb, v_wa, v_wb;
  };

  Products products(const T* a, const T* b, const double* wa, const double* wb) const {
    Vec<double> u_wa = {}, u_wb = {}, v_wa = {}, v_wb = {};
    for (int64_t n = 0; n < samples_; n += kLanes) {
      const Vec<double> u = load_double(a + n), v = load_double(b + n), x = load(wa + n), y = load(wb + n);
      u_wa += u * x;
      u_wb += u * y;
      v_wa += v * x;
      v_wb += v * y;
    }
    return {total(u_wa), total(u_wb), total(v_wa), total(v_wb)};
  }
};

template <class T>
void pursue(const Tensor& student, const Tensor& teacher, const Tensor& count, const Tensor& candidates, int64_t picks,
            double alpha, bool repeat, Tensor& chosen) {
  const int64_t problems = student.size(0), padded = student.size(1);
  std::vector<int64_t> counts(problems);
  for (int64_t g = 0; g < problems; ++g) counts[g] = std::clamp<int64_t>(data<int64_t>(count)[g], 0, padded);
  const int64_t samples = problems ? *std::max_element(counts.begin(), counts.end()) : 0;
  if (samples == 0 || picks == 0) {
    std::fill_n(data<int64_t>(chosen), problems * picks, -1);
    return;
  }
  const int64_t affordable = std::max<int64_t>(1, kBudgetBytes / (2 * Gram<T>::bytes(samples)));
  const int64_t workers = std::min<int64_t>({problems, affordable, torch::stable::get_num_threads()});
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    Pursuit<T> pursuit(samples, student.size(2), teacher.size(2), picks, alpha);
    for (int64_t g; (g = next++) < problems;)
      pursuit.run(student, teacher, g, counts[g], data<bool>(candidates) + g * padded, repeat, picks,
                  data<int64_t>(chosen) + g * picks);
  });
}

Tensor matching_pursuit(const Tensor& student, const Tensor& teacher, const Tensor& count, const Tensor& candidates,
                        int64_t picks, double alpha, bool repeat) {
  Tensor chosen = new_tensor(count, {student.size(0), picks}, ScalarType::Long);
  const auto run = is_double({&student, &teacher}) ? &pursue<double> : &pursue<float>;
  const auto dense = [](const Tensor& t) { return torch::stable::contiguous(t); };
  run(dense(student), dense(teacher), dense(count), dense(candidates), picks, alpha, repeat, chosen);
  return chosen;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CPU, m) { m.impl("matching_pursuit", TORCH_BOX(&matching_pursuit)); }

}  // namespace gkd::cpu

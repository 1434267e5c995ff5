// Robust weights and the discrepancy of both networks' cosines. A tile of cosines lives only until its terms are added to the
// loss and to the gradient: the gradient with respect to the embeddings is made in the forward pass, up to the
// factor of its level, because the loss is a scalar for each level and omega carries no gradient.
#include <cmath>
#include <tuple>

#include "unit_rows.h"

namespace gkd::cpu {
namespace {

constexpr int kBlockTiles = 4;  // register tiles that share a panel of prototypes while it is in the first-level cache
constexpr int kBlockRows = kBlockTiles * kTileRows;
constexpr int kGroupPanels = 4;  // panels of prototypes between two visits of the gradient: the depth of its product

struct Classes {
  const int64_t *labels, *offsets;
  int64_t count, prototypes;

  // Prototypes [first, past) of an instance's class; empty for a label outside [0, count).
  std::pair<int64_t, int64_t> range(int64_t instance) const {
    const int64_t label = labels[instance];
    if (label < 0 || label >= count) return {0, 0};
    return {std::max<int64_t>(offsets[label], 0), std::min(offsets[label + 1], prototypes)};
  }
};

// One network: unit embeddings and unit prototypes, the latter also in panels.
template <class T>
struct Space {
  UnitRows<T> embeddings, prototypes;
  Panels<T> panels;

  Space(const Tensor& e, const Tensor& p) : embeddings(e), prototypes(p), panels(prototypes) {}

  T best(int64_t level, int64_t instance, std::pair<int64_t, int64_t> range) const {
    T largest = -2;  // below every cosine
    for (int64_t m = range.first; m < range.second; ++m)
      largest = std::max(largest, dot(embeddings.row(level, instance), prototypes.row(level, m), embeddings.channels));
    return largest;
  }
};

template <class T>
Tensor robust_weights(const Space<T>& student, const Space<T>& teacher, const Classes& classes) {
  const int64_t levels = student.embeddings.levels, instances = student.embeddings.rows;
  Tensor omega = new_tensor(student.embeddings.unit, {levels, instances}, dtype_of<T>());
  torch::stable::parallel_for(0, levels * instances, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t level = i / instances, instance = i % instances;
      const auto range = classes.range(instance);
      T weight = classes.labels[instance] < 0 ? T(0) : T(1);
      if (range.first < range.second)
        weight = T(1) - std::abs(student.best(level, instance, range) - teacher.best(level, instance, range));
      data<T>(omega)[i] = weight;
    }
  });
  return omega;
}

// Works through one block of instances: cosines of both networks, loss terms, gradients of the unit embeddings.
template <class T>
struct Block {
  static constexpr int N = kTileColumns<T>, kGroup = kGroupPanels * N;
  const Space<T>&student, &teacher;
  bool need_student, need_teacher;
  std::vector<T> student_left, teacher_left, student_gradient, teacher_gradient;
  T coefficient[kBlockRows * kGroup];  // d loss / d student cosine; the teacher's is its negative
  T omega[kBlockRows];

  Block(const Space<T>& s, const Space<T>& t, bool need_s, bool need_t)
      : student(s),
        teacher(t),
        need_student(need_s),
        need_teacher(need_t),
        student_left(kBlockRows * s.embeddings.channels),
        teacher_left(kBlockRows * t.embeddings.channels),
        student_gradient(need_s ? kBlockRows * s.embeddings.padded : 0),
        teacher_gradient(need_t ? kBlockRows * t.embeddings.padded : 0) {}

  // Sum of the loss terms of `count` instances against all prototypes; fills the gradients.
  double run(int64_t level, const int64_t* instances, int64_t count, const T* level_omega) {
    const int64_t tiles = ceil_div(count, kTileRows);
    gather(student.embeddings, level, instances, count, student_left);
    gather(teacher.embeddings, level, instances, count, teacher_left);
    for (int64_t i = 0; i < tiles * kTileRows; ++i) omega[i] = i < count ? level_omega[instances[i]] : T(0);
    std::fill(student_gradient.begin(), student_gradient.end(), T(0));
    std::fill(teacher_gradient.begin(), teacher_gradient.end(), T(0));

    double loss = 0;
    for (int64_t first = 0; first < student.panels.count; first += kGroupPanels) {
      const int64_t panels = std::min<int64_t>(kGroupPanels, student.panels.count - first);
      for (int64_t p = 0; p < panels; ++p)
        for (int64_t t = 0; t < tiles; ++t) loss += compare(level, first + p, t, p);
      const int64_t depth = std::min<int64_t>(panels * N, student.prototypes.rows - first * N);
      if (need_student) add_gradient(student, level, first * N, depth, tiles, student_gradient);
      if (need_teacher) add_gradient(teacher, level, first * N, depth, tiles, teacher_gradient);
    }
    return loss;
  }

 private:
  static void gather(const UnitRows<T>& rows, int64_t level, const int64_t* instances, int64_t count,
                     std::vector<T>& left) {
    std::fill(left.begin(), left.end(), T(0));
    for (int64_t i = 0; i < count; ++i) {
      const T* row = rows.row(level, instances[i]);
      T* out = left.data() + i / kTileRows * kTileRows * rows.channels + i % kTileRows;
      for (int64_t c = 0; c < rows.channels; ++c) out[c * kTileRows] = row[c];
    }
  }

  // smooth L1 of d = omega (cos_student - cos_teacher) over one tile, and its derivative omega clamp(d, -1, 1).
  double compare(int64_t level, int64_t panel, int64_t tile, int64_t slot) {
    alignas(64) T s[kTileRows * N], t[kTileRows * N];
    const int64_t cs = student.embeddings.channels, ct = teacher.embeddings.channels;
    tile_product<1, kTileRows, false>(cs, student_left.data() + tile * kTileRows * cs,
                                      student.panels.panel(level, panel), N, s, N);
    tile_product<1, kTileRows, false>(ct, teacher_left.data() + tile * kTileRows * ct,
                                      teacher.panels.panel(level, panel), N, t, N);
    double loss = 0;
    for (int i = 0; i < kTileRows; ++i) {
      const T weight = omega[tile * kTileRows + i];
      T* out = coefficient + (tile * kTileRows + i) * kGroup + slot * N;
      T sum = 0;
      for (int j = 0; j < N; ++j) {
        const T d = weight * s[i * N + j] - weight * t[i * N + j];
        const T slope = d > T(1) ? T(1) : d < T(-1) ? T(-1) : d;
        sum += slope * (d - T(0.5) * slope);
        out[j] = weight * slope;
      }
      loss += sum;
    }
    return loss;
  }

  void add_gradient(const Space<T>& space, int64_t level, int64_t first, int64_t depth, int64_t tiles,
                    std::vector<T>& gradient) const {
    const UnitRows<T>& p = space.prototypes;
    for (int64_t c = 0; c < p.padded; c += N)
      for (int64_t t = 0; t < tiles; ++t)
        tile_product<kGroup, 1, true>(depth, coefficient + t * kTileRows * kGroup, p.row(level, first) + c, p.padded,
                                      gradient.data() + t * kTileRows * p.padded + c, p.padded);
  }
};

// Carries a block's gradient through the normalisation into the rows of its instances.
template <class T>
void finish_gradient(const UnitRows<T>& rows, int64_t level, const int64_t* instances, int64_t count, T scale,
                     std::vector<T>& gradient, Tensor& result) {
  for (int64_t i = 0; i < count; ++i) {
    T* d = gradient.data() + i * rows.padded;
    const T* unit = rows.row(level, instances[i]);
    normalise_backward(d, unit, dot(d, unit, rows.channels), scale * rows.length_inverse(level, instances[i]),
                       rows.channels);
    std::copy_n(d, rows.channels, data<T>(result) + (level * rows.rows + instances[i]) * rows.channels);
  }
}

// Loss [L], omega [L,B], and the gradients of both embeddings per unit of their level's loss (empty if not needed).
using Result = std::tuple<Tensor, Tensor, std::vector<Tensor>>;

template <class T>
Result forward(const Tensor& student_rows, const Tensor& teacher_rows, const Tensor& student_prototypes,
                  const Tensor& teacher_prototypes, const Tensor& labels, const Tensor& offsets, bool need_student,
                  bool need_teacher) {
  const Space<T> student(student_rows, student_prototypes), teacher(teacher_rows, teacher_prototypes);
  const Classes classes{data<int64_t>(labels), data<int64_t>(offsets), offsets.size(0) - 1, student_prototypes.size(1)};
  Tensor omega = robust_weights(student, teacher, classes);

  const int64_t levels = student_rows.size(0), count = student_rows.size(1);
  std::vector<int64_t> taking_part;
  for (int64_t i = 0; i < count; ++i) {
    const auto range = classes.range(i);
    if (range.first < range.second) taking_part.push_back(i);
  }
  const auto gradient_like = [&](const Tensor& rows, bool need) {
    return need ? new_zeros(rows, {levels, count, rows.size(2)}, dtype_of<T>()) : new_tensor(rows, {0}, dtype_of<T>());
  };
  Tensor student_gradient = gradient_like(student_rows, need_student);
  Tensor teacher_gradient = gradient_like(teacher_rows, need_teacher);
  Tensor loss = new_zeros(student_rows, {levels}, dtype_of<T>());

  const int64_t participants = static_cast<int64_t>(taking_part.size());
  const int64_t blocks = ceil_div(participants, kBlockRows);
  const T scale = participants ? T(1) / static_cast<T>(participants * classes.prototypes) : T(0);
  std::vector<double> sums(levels * blocks);
  torch::stable::parallel_for(0, levels * blocks, 1, [&](int64_t begin, int64_t end) {
    Block<T> block(student, teacher, need_student, need_teacher);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t level = task / blocks, first = task % blocks * kBlockRows;
      const int64_t rows = std::min<int64_t>(kBlockRows, participants - first);
      const int64_t* instances = taking_part.data() + first;
      sums[task] = block.run(level, instances, rows, data<T>(omega) + level * count);
      if (need_student)
        finish_gradient(student.embeddings, level, instances, rows, scale, block.student_gradient, student_gradient);
      if (need_teacher)
        finish_gradient(teacher.embeddings, level, instances, rows, -scale, block.teacher_gradient, teacher_gradient);
    }
  });
  for (int64_t level = 0; level < levels; ++level) {
    double sum = 0;
    for (int64_t b = 0; b < blocks; ++b) sum += sums[level * blocks + b];
    data<T>(loss)[level] = static_cast<T>(sum * scale);
  }
  return {loss, omega, {student_gradient, teacher_gradient}};
}

Result pairwise_discrepancy(const Tensor& student, const Tensor& teacher, const Tensor& student_prototypes,
                            const Tensor& teacher_prototypes, const Tensor& labels, const Tensor& class_offsets,
                            bool need_student, bool need_teacher) {
  const Tensor l = torch::stable::contiguous(labels), o = torch::stable::contiguous(class_offsets);
  const auto run = is_double({&student, &teacher, &student_prototypes, &teacher_prototypes}) ? &forward<double>
                                                                                            : &forward<float>;
  return run(student, teacher, student_prototypes, teacher_prototypes, l, o, need_student, need_teacher);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gkd_fast, CPU, m) { m.impl("pairwise_discrepancy", TORCH_BOX(&pairwise_discrepancy)); }

}  // namespace gkd::cpu

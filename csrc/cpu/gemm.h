// A register-blocked matrix product on packed panels. Written here, because tiles are consumed while they are in registers
// and cache: a library's product would have to store the whole matrix first.
//
// The order of every sum is fixed by the shapes alone, so that results do not depend on the number of threads.
#pragma once

#include "../common.h"

namespace gkd::cpu {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#else
constexpr int kVectorBytes = 16, kRegisters = 32;
#endif

template <class T>
struct Simd {
  static constexpr int width = kVectorBytes / sizeof(T);
  typedef T type __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
};
template <class T>
using Vec = typename Simd<T>::type;

template <class T>
Vec<T> load(const T* p) {
  return *reinterpret_cast<const Vec<T>*>(p);
}
template <class T>
void store(T* p, Vec<T> v) {
  *reinterpret_cast<Vec<T>*>(p) = v;
}

// Rows x columns of the tile held in registers: rows * 2 accumulators, 2 vectors of B, 1 broadcast of A.
constexpr int kTileRows = kRegisters == 32 ? 12 : 6;
template <class T>
constexpr int kTileColumns = 2 * Simd<T>::width;

// Steps of k that one accumulator sums up before it is added to the total: rounding errors grow with the length of a chain.
constexpr int64_t kChain = 64;

// c[i][j] (+)= sum_k a[i * row_stride + k * k_stride] * b[k * ldb + j] over one register tile, for one chain.
template <int row_stride, int k_stride, class T>
__attribute__((always_inline)) inline void tile_chain(int64_t depth, const T* a, const T* b, int64_t ldb, T* c,
                                                      int64_t ldc, bool accumulate) {
  constexpr int W = Simd<T>::width;
  Vec<T> sum[kTileRows][2] = {};
  for (int64_t k = 0; k < depth; ++k, a += k_stride, b += ldb) {
    const Vec<T> left = load(b), right = load(b + W);
#pragma GCC unroll 12
    for (int i = 0; i < kTileRows; ++i) {
      const T factor = a[i * row_stride];
      sum[i][0] += factor * left;
      sum[i][1] += factor * right;
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kTileRows; ++i) {
    T* out = c + i * ldc;
    store(out, accumulate ? load(out) + sum[i][0] : sum[i][0]);
    store(out + W, accumulate ? load(out + W) + sum[i][1] : sum[i][1]);
  }
}

// The same for any depth.
template <int row_stride, int k_stride, bool accumulate, class T>
inline void tile_product(int64_t depth, const T* a, const T* b, int64_t ldb, T* c, int64_t ldc) {
  int64_t k = 0;
  do {
    tile_chain<row_stride, k_stride>(depth - k < kChain ? depth - k : kChain, a + k * k_stride, b + k * ldb, ldb, c,
                                     ldc, accumulate || k > 0);
    k += kChain;
  } while (k < depth);
}

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
inline int64_t round_up(int64_t a, int64_t b) {
  return ceil_div(a, b) * b;
}

template <class T>
T dot(const T* a, const T* b, int64_t n) {
  constexpr int W = Simd<T>::width;
  Vec<T> sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W)
    for (int j = 0; j < 4; ++j) sum[j] += load(a + i + j * W) * load(b + i + j * W);
  const Vec<T> all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  T total = 0;
  for (int j = 0; j < W; ++j) total += all[j];
  for (; i < n; ++i) total += a[i] * b[i];
  return total;
}

// panel[k * stride + r] = rows[r][k]: the layout in which a tile walks along k.
template <class T>
void interleave(const T* rows, int64_t ld, int count, int64_t depth, T* panel, int stride) {
  for (int64_t k = 0; k < depth; ++k) {
    for (int r = 0; r < count; ++r) panel[k * stride + r] = rows[r * ld + k];
    for (int r = count; r < stride; ++r) panel[k * stride + r] = T(0);
  }
}

}  // namespace gkd::cpu

// Arithmetic that rounds after every operation, as torch's own elementwise operators do: the compiler may else contract a
// product and a sum into one operation, and equal IoUs would no longer be equal. To be included after all other headers.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "gemm.h"

#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif

namespace gkd::cpu {

constexpr int kLanes = Simd<float>::width;
using Lanes = Vec<float>;

inline Lanes all(float value) { return Lanes{} + value; }

// The first on equality or where one is not a number.
inline Lanes larger(Lanes a, Lanes b) { return b > a ? b : a; }
inline Lanes smaller(Lanes a, Lanes b) { return b < a ? b : a; }

typedef int32_t Mask __attribute__((vector_size(kVectorBytes)));

inline bool any(Mask mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  for (int k = 0; k < kLanes; ++k)
    if (mask[k]) return true;
  return false;
#endif
}

struct Box {
  float x1, y1, x2, y2;

  float area() const { return (x2 - x1) * (y2 - y1); }
};

// Boxes column by column.
struct BoxColumns {
  const float *x1, *y1, *x2, *y2, *area;
};

// Whether any of the boxes from place i on meets the other box; if so, the intersections.
inline bool intersect(const BoxColumns& boxes, int64_t i, const Box& other, Lanes& common) {
  const Lanes width = smaller(load(boxes.x2 + i), all(other.x2)) - larger(load(boxes.x1 + i), all(other.x1));
  const Lanes height = smaller(load(boxes.y2 + i), all(other.y2)) - larger(load(boxes.y1 + i), all(other.y1));
  common = larger(width, Lanes{}) * larger(height, Lanes{});
  return any((width > 0) & (height > 0));
}

}  // namespace gkd::cpu

// One vector of the type in which sums are made, from storage in any floating dtype.
#pragma once

#include "convert.h"
#include "gemm.h"

namespace gkd::cpu {

// The type in which sums are made.
template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline Vec<float> load_vector(const float* p) { return load(p); }
inline Vec<double> load_vector(const double* p) { return load(p); }

inline Vec<float> load_vector(const BFloat16* p) {
  typedef uint16_t Half16 __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
  typedef uint32_t Word32 __attribute__((vector_size(kVectorBytes)));
  return (Vec<float>)(__builtin_convertvector(*reinterpret_cast<const Half16*>(p), Word32) << 16);
}

inline Vec<float> load_vector(const Half* p) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__) && defined(__F16C__)
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vec<float> v;
  for (int i = 0; i < Simd<float>::width; ++i) v[i] = static_cast<float>(p[i]);
  return v;
#endif
}

}  // namespace gkd::cpu

// One vector of the type in which sums are made, from and to storage in any floating dtype.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "convert.h"
#include "gemm.h"

namespace gkd::cpu {

// The type in which sums are made.
template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline Vec<float> load_vector(const float* p) { return load(p); }
inline Vec<double> load_vector(const double* p) { return load(p); }

inline Vec<float> load_vector(const BFloat16* p) {
#if defined(__AVX512F__)
  // The compiler would widen in halves.
  return (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16);
#else
  typedef uint16_t Half16 __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
  typedef uint32_t Word32 __attribute__((vector_size(kVectorBytes)));
  return (Vec<float>)(__builtin_convertvector(*reinterpret_cast<const Half16*>(p), Word32) << 16);
#endif
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

inline void store_vector(float* p, Vec<float> v) { store(p, v); }
inline void store_vector(double* p, Vec<double> v) { store(p, v); }
inline void store_vector(Half* p, Vec<float> v) { narrow(reinterpret_cast<const float*>(&v), Simd<float>::width, p); }

inline void store_vector(BFloat16* p, Vec<float> v) {
#if defined(__AVX512F__)
  const __m512i bits = (__m512i)v, last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i even = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), last), 16);
  const __mmask16 no_number = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
  const __m512i rounded = _mm512_mask_mov_epi32(even, no_number, _mm512_set1_epi32(0x7fc0));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
#else
  narrow(reinterpret_cast<const float*>(&v), Simd<float>::width, p);
#endif
}

}  // namespace gkd::cpu

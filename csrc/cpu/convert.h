// Runs of numbers of any floating dtype, to and from the type in which sums are made.
#pragma once

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "../common.h"

namespace gkd::cpu {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <class In, class T>
void widen(const In* in, int64_t n, T* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(in[i]);
}

template <class T, class Out>
void narrow(const T* in, int64_t n, Out* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<Out>(in[i]);
}

// The compiler makes vectors of the loop above, but not of its branch for NaN.
inline void narrow(const float* in, int64_t n, BFloat16* out) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, in + i, sizeof bits);
    const uint32_t to_nearest_even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    out[i].x = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : to_nearest_even);
  }
}

#if defined(__F16C__)
// Nor does it know the conversions of half precision.
inline void widen(const Half* in, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
  for (; i < n; ++i) out[i] = static_cast<float>(in[i]);
}

inline void narrow(const float* in, int64_t n, Half* out) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  for (; i < n; ++i) out[i] = static_cast<Half>(in[i]);
}
#endif

}  // namespace gkd::cpu

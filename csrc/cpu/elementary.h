// exp and log(1 + x) of vectors, to the rounding of float32.
#pragma once

#include <cmath>

#include "gemm.h"

namespace gkd::cpu {

// exp(x) for x at most 0; not a number for one that is none.
inline Vec<float> exp_of_negative(Vec<float> x) {
  typedef int32_t Words __attribute__((vector_size(kVectorBytes)));
  x = x < -87.0f ? Vec<float>{} - 87.0f : x;
  // x = n ln 2 + r. Adding 1.5 2^23 rounds to an integer, which is then in the last bits.
  const Vec<float> shifted = x * 1.44269504088896341f + 12582912.0f;
  const Vec<float> n = shifted - 12582912.0f;
  const Vec<float> r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vec<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const Vec<float> fraction = p * r * r + r + 1.0f;
  const Words exponent = ((Words)shifted - 0x4B400000 + 127) << 23;
  return fraction * (Vec<float>)exponent;
}

// log(1 + x) for x from 0 to 1: 2 artanh z with z = x / (2 + x), of which z^2 is at most 1/9.
inline Vec<float> log_one_plus(Vec<float> x) {
  const Vec<float> z = x / (x + 2.0f), square = z * z;
  Vec<float> p = square * (1.0f / 15) + 1.0f / 13;
  p = p * square + 1.0f / 11;
  p = p * square + 1.0f / 9;
  p = p * square + 1.0f / 7;
  p = p * square + 1.0f / 5;
  p = p * square + 1.0f / 3;
  return 2.0f * z * (p * square + 1.0f);
}

inline Vec<double> exp_of_negative(Vec<double> x) {
  for (int i = 0; i < Simd<double>::width; ++i) x[i] = std::exp(x[i]);
  return x;
}

inline Vec<double> log_one_plus(Vec<double> x) {
  for (int i = 0; i < Simd<double>::width; ++i) x[i] = std::log1p(x[i]);
  return x;
}

}  // namespace gkd::cpu

// Elements of maps, computed with as float: one by one, or 16 bytes at once.
#pragma once

#include "device_pyramid.h"
#include "launch.cuh"

namespace gkd::cuda {

// Calls body with a value of the C++ type of an element.
template <class Body>
void with_element(Element element, const Body& body) {
  switch (element) {
    case Element::kFloat:
      return body(float{});
    case Element::kHalf:
      return body(__half{});
    case Element::kBFloat16:
      return body(__nv_bfloat16{});
  }
}

template <class T>
constexpr int kVector = 16 / sizeof(T);

template <class T>
__device__ inline T smaller(T a, T b) {
  return b < a ? b : a;
}

template <class T>
__device__ inline T larger(T a, T b) {
  return a < b ? b : a;
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ inline void assign(float& to, float x) { to = x; }
__device__ inline void assign(__half& to, float x) { to = __float2half_rn(x); }
__device__ inline void assign(__nv_bfloat16& to, float x) { to = __float2bfloat16_rn(x); }

// N elements from an address aligned to 16 bytes, N a multiple of kVector<T>.
template <class T, int N>
__device__ inline void load_vectors(const T* from, float (&out)[N]) {
  static_assert(N % kVector<T> == 0, "whole vectors");
#pragma unroll
  for (int v = 0; v < N; v += kVector<T>) {
    const uint4 bits = *reinterpret_cast<const uint4*>(from + v);
    const T* lanes = reinterpret_cast<const T*>(&bits);
#pragma unroll
    for (int k = 0; k < kVector<T>; ++k) out[v + k] = to_float(lanes[k]);
  }
}

template <class T>
__device__ inline void store_vector(const float (&values)[kVector<T>], T* to) {
  uint4 bits;
  T* lanes = reinterpret_cast<T*>(&bits);
#pragma unroll
  for (int k = 0; k < kVector<T>; ++k) assign(lanes[k], values[k]);
  *reinterpret_cast<uint4*>(to) = bits;
}

// N neighbouring elements of which the first `count` exist; the others count as 0.
template <class T, int N>
__device__ inline void load_lanes(const T* from, int count, bool vectors, float (&out)[N]) {
  if (vectors && count >= N) return load_vectors(from, out);
#pragma unroll
  for (int k = 0; k < N; ++k) out[k] = k < count ? to_float(from[k]) : 0.0f;
}

template <class T>
__device__ inline void store_lanes(const float (&values)[kVector<T>], int count, bool vectors, T* to) {
  if (vectors && count >= kVector<T>) return store_vector(values, to);
#pragma unroll
  for (int k = 0; k < kVector<T>; ++k)
    if (k < count) assign(to[k], values[k]);
}

}  // namespace gkd::cuda

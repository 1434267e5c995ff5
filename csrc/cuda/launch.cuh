// Kernels compile unchanged with nvcc and, for tests, with a C++ compiler that runs them on the CPU; this is all that differs.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#if defined(GKD_EMULATED)
#include "cuda_on_cpu.h"
#else
#include <cuda_runtime.h>

#define GKD_SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define GKD_LAUNCH(kernel, grid, block, stream, ...) \
  kernel<<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)

namespace gkd::cuda {

// What went wrong with the launches so far, or null.
inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace gkd::cuda
#endif

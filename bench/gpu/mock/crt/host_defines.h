// Stands for the CUDA toolkit's header of this name, which Python packages of the CUDA headers leave out: a host's compiler.
#pragma once

#define CUDARTAPI
#define __host__
#define __device__
#define __global__
#define __managed__
#define __cudart_builtin__
#define __device_builtin__
#define __device_builtin_surface_type__
#define __device_builtin_texture_type__
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __align__(n) __attribute__((aligned(n)))

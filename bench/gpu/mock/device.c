// A CUDA driver, runtime and cuBLAS without a GPU. Memory is the host's and copies are real; kernels are counted and do
// nothing, so that values mean nothing. What a device refuses is refused: a launch of impossible size, on a stream of
// another device, or beside the stream that is captured; a wait while a stream is captured.
#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

// The headers give some functions the names of later versions; torch asks for the plain ones as well.
#undef cudaGetDeviceProperties
#undef cuCtxGetDevice
#undef cuStreamGetCaptureInfo

#define API __attribute__((visibility("default")))
#define MOST_DEVICES 8
#define DEVICE_BYTES (64ull << 30)
#define PINNED_BYTES (8ull << 30)
#define PAGE (2ull << 20)

struct Counts {
  uint64_t launches, copies, transfers, waits, captured, launches_of[MOST_DEVICES];
};
static struct Counts counts;
API struct Counts* mock_counts(void) { return &counts; }

// Memory: one range of addresses a device, and one of pinned memory, handed out from the front and never taken back.

struct Range {
  char *begin, *next;
  uint64_t size;
};
static struct Range devices[MOST_DEVICES], pinned;
static __thread int current;

static char* take(struct Range* range, uint64_t size, size_t wanted) {
  if (!range->begin) {
    range->begin = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    range->next = range->begin, range->size = size;
  }
  char* found = range->next;
  range->next += (wanted + PAGE - 1) & ~(PAGE - 1);
  return range->next <= range->begin + size ? found : 0;
}

static int within(const struct Range* range, const void* pointer) {
  return range->begin && (char*)pointer >= range->begin && (char*)pointer < range->begin + range->size;
}

static int device_of(const void* pointer) {
  for (int device = 0; device < MOST_DEVICES; device++)
    if (within(&devices[device], pointer)) return device;
  return -1;
}

API cudaError_t cudaMalloc(void** pointer, size_t size) {
  *pointer = take(&devices[current], DEVICE_BYTES, size);
  return *pointer ? cudaSuccess : cudaErrorMemoryAllocation;
}
API cudaError_t cudaMallocAsync(void** pointer, size_t size, cudaStream_t stream) { return cudaMalloc(pointer, size); }
API cudaError_t cudaFree(void* pointer) { return cudaSuccess; }
API cudaError_t cudaHostAlloc(void** pointer, size_t size, unsigned flags) {
  *pointer = take(&pinned, PINNED_BYTES, size);
  return *pointer ? cudaSuccess : cudaErrorMemoryAllocation;
}
API cudaError_t cudaFreeHost(void* pointer) { return cudaSuccess; }
API cudaError_t cudaMemGetInfo(size_t* unused, size_t* total) {
  *unused = *total = DEVICE_BYTES;
  return cudaSuccess;
}
API cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes* attributes, const void* pointer) {
  int device = device_of(pointer);
  memset(attributes, 0, sizeof *attributes);
  attributes->type = device >= 0                ? cudaMemoryTypeDevice
                     : within(&pinned, pointer) ? cudaMemoryTypeHost
                                                : cudaMemoryTypeUnregistered;
  attributes->device = device >= 0 ? device : current;
  attributes->devicePointer = attributes->hostPointer = (void*)pointer;
  return cudaSuccess;
}
API CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  *(CUdeviceptr*)value = pointer;
  return device_of((void*)pointer) >= 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// Streams, events and the capture of one graph.

struct Stream {
  int device;
};
static cudaStream_t capturing;
static __thread enum cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

static int is_captured(cudaStream_t stream) { return capturing && stream == capturing; }

// A thread in relaxed mode may use other streams meanwhile; so torch seeds the random numbers of a graph.
static int is_beside(cudaStream_t stream) {
  return capturing && stream != capturing && thread_mode != cudaStreamCaptureModeRelaxed;
}
API cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode* exchanged) {
  enum cudaStreamCaptureMode before = thread_mode;
  thread_mode = *exchanged;
  *exchanged = before;
  return cudaSuccess;
}

static cudaError_t new_stream(cudaStream_t* stream) {
  struct Stream* made = malloc(sizeof *made);
  made->device = current;
  *stream = (cudaStream_t)made;
  return cudaSuccess;
}
API cudaError_t cudaStreamCreate(cudaStream_t* stream) { return new_stream(stream); }
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) { return new_stream(stream); }
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  return new_stream(stream);
}
API cudaError_t cudaStreamDestroy(cudaStream_t stream) { return cudaSuccess; }
API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0, *greatest = -5;
  return cudaSuccess;
}
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  *event = malloc(1);
  return cudaSuccess;
}
API cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
API cudaError_t cudaEventDestroy(cudaEvent_t event) { return cudaSuccess; }
API cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  *milliseconds = 1.0f;
  return cudaSuccess;
}

static cudaError_t wait_for_device(void) {
  counts.waits++;
  return capturing ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
API cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  cudaError_t error = wait_for_device();
  return is_captured(stream) || is_beside(stream) ? error : cudaSuccess;
}
API cudaError_t cudaEventSynchronize(cudaEvent_t event) { return wait_for_device(); }
API cudaError_t cudaDeviceSynchronize(void) { return wait_for_device(); }
API cudaError_t cudaEventQuery(cudaEvent_t event) {
  return capturing ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

API cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  capturing = stream;
  return cudaSuccess;
}
API cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  capturing = 0;
  *graph = (cudaGraph_t)&counts;
  return cudaSuccess;
}
API cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus* status) {
  *status = is_captured(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
static cudaError_t capture_info(cudaStream_t stream, enum cudaStreamCaptureStatus* status, unsigned long long* id,
                                cudaGraph_t* graph, size_t* dependencies) {
  if (id) *id = 1;
  if (graph) *graph = (cudaGraph_t)&counts;
  if (dependencies) *dependencies = 0;
  return cudaStreamIsCapturing(stream, status);
}
// By symbol, for the headers declare only one of them, with the arguments of its version.
API cudaError_t capture_info_6(cudaStream_t stream, enum cudaStreamCaptureStatus* status, unsigned long long* id,
                               cudaGraph_t* graph, void* nodes, size_t* count) __asm__("cudaStreamGetCaptureInfo_v2");
cudaError_t capture_info_6(cudaStream_t stream, enum cudaStreamCaptureStatus* status, unsigned long long* id,
                           cudaGraph_t* graph, void* nodes, size_t* count) {
  return capture_info(stream, status, id, graph, count);
}
#define WITH_EDGES(name, symbol)                                                                                  \
  API cudaError_t name(cudaStream_t, enum cudaStreamCaptureStatus*, unsigned long long*, cudaGraph_t*, void*, void*, \
                       size_t*) __asm__(symbol);                                                                  \
  cudaError_t name(cudaStream_t stream, enum cudaStreamCaptureStatus* status, unsigned long long* id,             \
                   cudaGraph_t* graph, void* nodes, void* edges, size_t* count) {                                 \
    return capture_info(stream, status, id, graph, count);                                                        \
  }
WITH_EDGES(capture_info_7, "cudaStreamGetCaptureInfo")
WITH_EDGES(capture_info_7_v3, "cudaStreamGetCaptureInfo_v3")
API CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
  *status = is_captured(stream) ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}
API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long flags) {
  *made = (cudaGraphExec_t)&counts;
  return cudaSuccess;
}
API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  *count = 1;
  return cudaSuccess;
}

// Copies and launches.

static cudaError_t refused(cudaStream_t stream) {
  if (is_beside(stream)) return cudaErrorStreamCaptureImplicit;
  // The handles 1 and 2 are the legacy and the per-thread default stream.
  if ((uintptr_t)stream > 2 && ((struct Stream*)stream)->device != current) return cudaErrorInvalidResourceHandle;
  return cudaSuccess;
}

// A number that the host reads is 0, but for one of 4 bytes, in which torch counts what a mask chooses: that is 1 (next to
// 0 as a float). No kernel's leftover would do as a size, and of nothing there would be nothing to compute.
static cudaError_t copy(void* to, const void* from, size_t size) {
  int within_devices = device_of(to) >= 0 && device_of(from) >= 0;
  if (within_devices)
    counts.copies++;
  else
    counts.transfers++;
  if (!within_devices && device_of(from) >= 0 && size <= sizeof(uint64_t)) {
    memset(to, 0, size);
    if (size == sizeof(int32_t)) *(uint8_t*)to = 1;
  } else {
    memmove(to, from, size);
  }
  return cudaSuccess;
}
API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, enum cudaMemcpyKind kind,
                                cudaStream_t stream) {
  if (is_beside(stream)) return cudaErrorStreamCaptureImplicit;
  return copy(to, from, size);
}
API cudaError_t cudaMemcpyPeerAsync(void* to, int to_device, const void* from, int from_device, size_t size,
                                    cudaStream_t stream) {
  return copy(to, from, size);
}
API cudaError_t cudaMemcpy(void* to, const void* from, size_t size, enum cudaMemcpyKind kind) {
  copy(to, from, size);
  return wait_for_device();
}

// What <<<>>> cannot return is asked for afterwards.
static __thread cudaError_t last;
API cudaError_t cudaPeekAtLastError(void) { return last; }
API cudaError_t cudaGetLastError(void) {
  cudaError_t error = last;
  last = cudaSuccess;
  return error;
}

static cudaError_t launch(cudaStream_t stream) {
  cudaError_t error = refused(stream);
  if (error) return last = error;
  counts.launches++;
  counts.launches_of[current]++;
  counts.captured += is_captured(stream);
  return cudaSuccess;
}
// A matrix product of cuBLAS, whose stream its handle keeps.
API void mock_product(void) {
  counts.launches++;
  counts.launches_of[current]++;
  counts.captured += capturing != 0;
}
static cudaError_t launch_sized(dim3 grid, dim3 block, cudaStream_t stream) {
  uint64_t threads = (uint64_t)block.x * block.y * block.z;
  if (!grid.x || !grid.y || !grid.z || grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535 || !threads ||
      threads > 1024)
    return last = cudaErrorInvalidConfiguration;
  return launch(stream);
}
API cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                                 cudaStream_t stream) {
  return launch_sized(grid, block, stream);
}
API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                                   cudaStream_t stream) {
  return launch_sized(grid, block, stream);
}
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
  return launch_sized(config->gridDim, config->blockDim, config->stream);
}
// The driver's own errors are not the runtime's last one.
static CUresult launch_by_driver(dim3 grid, dim3 block, cudaStream_t stream) {
  cudaError_t before = last, error = launch_sized(grid, block, stream);
  last = before;
  return (CUresult)error;
}
API CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** arguments, void** extra) {
  dim3 grid = {config->gridDimX, config->gridDimY, config->gridDimZ};
  dim3 block = {config->blockDimX, config->blockDimY, config->blockDimZ};
  return launch_by_driver(grid, block, config->hStream);
}
API CUresult cuLaunchKernel(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by,
                            unsigned bz, unsigned shared, CUstream stream, void** arguments, void** extra) {
  dim3 grid = {x, y, z}, block = {bx, by, bz};
  return launch_by_driver(grid, block, stream);
}
API cudaError_t cudaMemsetAsync(void* pointer, int value, size_t size, cudaStream_t stream) {
  memset(pointer, value, size);
  return launch(stream);
}
API cudaError_t cudaMemset(void* pointer, int value, size_t size) { return cudaMemsetAsync(pointer, value, size, 0); }

// The device: the figures of an H100.

API cudaError_t cudaGetDeviceCount(int* count) {
  const char* wanted = getenv("MOCK_DEVICES");
  *count = wanted ? atoi(wanted) : 1;
  return cudaSuccess;
}
API cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return cudaSuccess;
}
API cudaError_t cudaSetDevice(int device) {
  int count;
  cudaGetDeviceCount(&count);
  if (device < 0 || device >= count) return cudaErrorInvalidDevice;
  current = device;
  return cudaSuccess;
}
static cudaError_t describe(struct cudaDeviceProp* p) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "NVIDIA H100 (mock)");
  p->totalGlobalMem = DEVICE_BYTES, p->major = 9, p->minor = 0, p->multiProcessorCount = 132, p->warpSize = 32;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = INT32_MAX, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->maxThreadsPerMultiProcessor = 2048, p->maxBlocksPerMultiProcessor = 32;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536, p->l2CacheSize = 50 << 20;
  p->sharedMemPerBlock = 49152, p->sharedMemPerBlockOptin = 232448, p->sharedMemPerMultiprocessor = 233472;
  p->textureAlignment = 512, p->memoryBusWidth = 5120;
  return cudaSuccess;
}
API cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp* properties, int device) { return describe(properties); }
API cudaError_t cudaGetDeviceProperties_v2(struct cudaDeviceProp* properties, int device) {
  return describe(properties);
}
API cudaError_t cudaDeviceGetAttribute(int* value, enum cudaDeviceAttr attribute, int device) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
    case cudaDevAttrMaxGridDimX: *value = INT32_MAX; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    default: *value = 1;
  }
  return cudaSuccess;
}
API cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes* attributes, const void* function) {
  memset(attributes, 0, sizeof *attributes);
  attributes->ptxVersion = attributes->binaryVersion = 90;
  attributes->maxThreadsPerBlock = 1024, attributes->numRegs = 32;
  return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int threads,
                                                              size_t shared) {
  *blocks = 2;
  return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* function, int threads,
                                                                       size_t shared, unsigned flags) {
  *blocks = 2;
  return cudaSuccess;
}
API cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
API cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
API cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  *can = 0;
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetPCIBusId(char* text, int size, int device) {
  strncpy(text, "0000:00:00.0", size);
  return cudaSuccess;
}
API const char* cudaGetErrorName(cudaError_t error) { return error ? "cudaErrorUnknown" : "cudaSuccess"; }
API const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidResourceHandle: return "stream of another device";
    case cudaErrorStreamCaptureUnsupported: return "wait while a stream is captured";
    case cudaErrorStreamCaptureImplicit: return "work beside the stream that is captured";
    default: return "error of the mock";
  }
}

// The driver, as Triton and torch ask for it.

static int nothing(void) { return 0; }
API cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** found, unsigned version,
                                                 unsigned long long flags, enum cudaDriverEntryPointQueryResult* how) {
  void* own = dlsym(RTLD_DEFAULT, name);
  *found = own ? own : (void*)nothing;
  if (how) *how = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
API cudaError_t cudaGetDriverEntryPoint(const char* name, void** found, unsigned long long flags,
                                        enum cudaDriverEntryPointQueryResult* how) {
  return cudaGetDriverEntryPointByVersion(name, found, CUDART_VERSION, flags, how);
}
API CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }
API CUresult cuDriverGetVersion(int* version) { return (CUresult)cudaDriverGetVersion(version); }
API CUresult cuDeviceGet(CUdevice* device, int number) {
  *device = number;
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGetCount(int* count) { return (CUresult)cudaGetDeviceCount(count); }
API CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  return (CUresult)cudaDeviceGetAttribute(value, (enum cudaDeviceAttr)attribute, device);
}
API CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = (CUcontext)&devices[current];
  return CUDA_SUCCESS;
}
API CUresult cuCtxGetDevice(CUdevice* device) { return (CUresult)cudaGetDevice(device); }
API CUresult cuCtxGetLimit(size_t* value, CUlimit limit) {
  *value = 0;
  return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  *context = (CUcontext)&devices[device];
  return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
  *flags = 0, *active = 1;
  return CUDA_SUCCESS;
}
API CUresult cuModuleLoad(CUmodule* module, const char* file) {
  *module = (CUmodule)&counts;
  return CUDA_SUCCESS;
}
API CUresult cuModuleLoadData(CUmodule* module, const void* image) { return cuModuleLoad(module, 0); }
API CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned count, CUjit_option* options,
                                void** values) {
  return cuModuleLoad(module, 0);
}
API CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  *function = (CUfunction)&counts;
  return CUDA_SUCCESS;
}
API CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : attribute == CU_FUNC_ATTRIBUTE_NUM_REGS ? 64 : 0;
  return CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxActiveClusters(int* count, CUfunction function, const CUlaunchConfig* config) {
  *count = 1;
  return CUDA_SUCCESS;
}
API CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = cudaGetErrorString((cudaError_t)error);
  return CUDA_SUCCESS;
}

// cuBLAS, by its interface: an opaque handle, sizes and modes of 0.

API int cublasCreate_v2(void** handle) {
  *handle = malloc(1);
  return 0;
}
API int cublasGetMathMode(void* handle, int* mode) { return *mode = 0; }
API int cublasGetPointerMode_v2(void* handle, int* mode) { return *mode = 0; }
API size_t cublasLtGetVersion(void) { return 130000; }
API int cublasLtMatmulAlgoGetHeuristic(void* handle, void* product, void* a, void* b, void* c, void* d,
                                       void* preference, int wanted, void* results, int* found) {
  enum { BYTES_OF_A_RESULT = 96 };
  memset(results, 0, BYTES_OF_A_RESULT);
  return !(*found = 1);
}

// Kernels with one mistake each, and the launch of the one that is asked for: planted KERNEL ORDER. Exit status 3 with a
// message for an error of the emulation, 4 for a wrong result.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../../../csrc/cuda/block.cuh"

namespace gkd::cuda {

// Sums of 256 numbers, the mistakes chosen by the template.
template <bool first_barrier, bool last_barrier>
__global__ void sum_rows(const float* rows, int count, float* sums) {
  GKD_SHARED(float, values, kThreads);
  for (int row = 0; row < count; ++row) {
    values[thread()] = rows[row * kThreads + thread()];
    if (first_barrier) __syncthreads();
    float sum = 0;
    for (int i = 0; i < kThreads; ++i) sum += values[(thread() + i) % kThreads];
    sums[row * kThreads + thread()] = sum;
    if (last_barrier) __syncthreads();
  }
}

// Lanes hand numbers to their neighbours through memory: what orders that is __syncwarp, never a shuffle.
template <bool sync>
__global__ void exchange(float* out) {
  GKD_SHARED(float, values, kThreads);
  values[thread()] = 1;
  if (sync)
    __syncwarp();
  else
    __shfl_xor_sync(kFullWarp, 0, 1);
  out[thread()] = values[thread() ^ 1];
}

__global__ void count_blocks(float* sum) {
  if (thread() == 0) *sum += 1;
}

// 0 * rows[length] is 0 in any case but a NaN.
__global__ void weigh(const float* rows, int length, float* out, bool tail) {
  for (int i = thread(); i < length; i += kThreads) out[i] = rows[i] + (tail ? 0.0f * rows[i + 1] : 0.0f);
}

__global__ void write_past(float* out, int length) {
  for (int i = thread(); i <= length; i += kThreads) out[i] = 1;
}

__global__ void write_past_shared(float* out) {
  GKD_SHARED(float, values, kThreads - 1);
  values[thread()] = 1;
  out[thread()] = 1;
}

__global__ void load_unaligned(const float* from, float* out) {
  float values[4];
  load_vectors(from + 1, values);
  if (thread() == 0) *out = values[0];
}

__global__ void shuffle_some(float* out) {
  float value = 1;
  if (lane() < 16) value = __shfl_xor_sync(kFullWarp, value, 1);
  out[thread()] = value;
}

__global__ void shuffle_apart(float* out) {
  float value = 1;
  if (lane() < 16)
    value = __shfl_xor_sync(kFullWarp, value, 1);
  else
    value = __shfl_xor_sync(kFullWarp, value, 2);
  out[thread()] = value;
}

__global__ void leave_early(float* out) {
  if (thread() >= 200) return;
  __syncthreads();
  out[thread()] = 1;
}

__global__ void read_unwritten(float* out) {
  GKD_SHARED(float, values, kThreads);
  if (thread() > 0) values[thread()] = 1;
  __syncthreads();
  out[thread()] = values[thread()];
}

__global__ void index_rows(float* out, int rows, int pitch) {
  if (thread() == 0) *out = static_cast<float>(rows * pitch);
}

}  // namespace gkd::cuda

using namespace gkd::cuda;

int main(int, char** arguments) {
  const char* name = arguments[1];
  gkd::emulation::set_order(atoi(arguments[2]));
  const auto is = [&](const char* kernel) { return strcmp(name, kernel) == 0; };
  constexpr int kRows = 3;
  const int length = is("non_atomic_sum") || is("int_overflow") || is("unaligned_vector") ? 1 : kRows * kThreads;
  float* in = static_cast<float*>(malloc(sizeof(float) * kRows * kThreads));
  float* out = static_cast<float*>(malloc(sizeof(float) * length));
  for (int i = 0; i < kRows * kThreads; ++i) in[i] = 1 + i / kThreads;
  for (int i = 0; i < length; ++i) out[i] = 0;

  float expected = 1;
  if (is("none")) GKD_LAUNCH((sum_rows<true, true>), 1, kThreads, nullptr, in, kRows, out);
  else if (is("missing_barrier")) GKD_LAUNCH((sum_rows<false, true>), 1, kThreads, nullptr, in, kRows, out);
  else if (is("write_after_read")) GKD_LAUNCH((sum_rows<true, false>), 1, kThreads, nullptr, in, kRows, out);
  else if (is("warp_exchange")) GKD_LAUNCH(exchange<true>, 1, kThreads, nullptr, out);
  else if (is("shuffle_as_fence")) GKD_LAUNCH(exchange<false>, 1, kThreads, nullptr, out);
  else if (is("non_atomic_sum")) GKD_LAUNCH(count_blocks, 3, kThreads, nullptr, out);
  else if (is("tail_read")) GKD_LAUNCH(weigh, 1, kThreads, nullptr, in, length, out, true);
  else if (is("out_of_bounds")) GKD_LAUNCH(write_past, 1, kThreads, nullptr, out, length);
  else if (is("out_of_shared")) GKD_LAUNCH(write_past_shared, 1, kThreads, nullptr, out);
  else if (is("unaligned_vector")) GKD_LAUNCH(load_unaligned, 1, kThreads, nullptr, in, out);
  else if (is("divergent_shuffle")) GKD_LAUNCH(shuffle_some, 1, kThreads, nullptr, out);
  else if (is("different_shuffles")) GKD_LAUNCH(shuffle_apart, 1, kThreads, nullptr, out);
  else if (is("return_before_barrier")) GKD_LAUNCH(leave_early, 1, kThreads, nullptr, out);
  else if (is("unwritten_shared")) GKD_LAUNCH(read_unwritten, 1, kThreads, nullptr, out);
  else if (is("int_overflow")) GKD_LAUNCH(index_rows, 1, kThreads, nullptr, out, 1 << 20, 1 << 12);
  else return 2;

  if (launch_error()) {
    fprintf(stderr, "%s\n", launch_error());
    return 3;
  }
  const bool sums = is("none") || is("missing_barrier") || is("write_after_read");
  if (is("non_atomic_sum")) expected = 3;
  for (int i = 0; i < (sums ? length : 1); ++i)
    if (out[i] != (sums ? kThreads * in[i] : expected)) return 4;
  free(in);
  free(out);
}

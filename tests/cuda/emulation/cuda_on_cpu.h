// Runs CUDA kernels on the CPU, to test them where no GPU is.
//
// Blocks run one after another. The threads of a block are fibers on one thread of the CPU, which run until they meet the
// others: barriers, shuffles and ballots are rendezvous that check who comes, with which mask and from which line. In which
// order ready threads run is chosen by number: 0 ascending, 1 descending, 2 and 3 the same in turns, others seed a random
// order. Shared memory starts as NaN. Errors end the launch and are told by launch_error().
//
// So a kernel must be launched by GKD_LAUNCH and declare shared memory by GKD_SHARED; no thread may return before a barrier,
// and no two barriers share a line.
//
// AddressSanitizer sees the ends of shared arrays. To ThreadSanitizer every CUDA thread of every block is a thread of its own:
// barriers order their memory accesses, shuffles do not, and blocks are not ordered at all.
#pragma once

#if !defined(__x86_64__)
#error "the stack switch is written for x86-64"
#endif

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <vector_types.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#undef __launch_bounds__
#undef __grid_constant__
#define __launch_bounds__(...)
#define __grid_constant__

#define GKD_SCHEDULER __attribute__((no_sanitize("thread"), no_sanitize("address"), noinline))

extern "C" void gkd_switch_stack(void** save, void* load);
asm(R"(
.text
.type gkd_switch_stack, @function
gkd_switch_stack:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");

namespace gkd::emulation {

#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif
constexpr int kMostThreads = 1024, kStackBytes = 1 << 18, kSharedBytes = 48 << 10, kMostArrays = 32;
// ThreadSanitizer must not take the memory of one block for that of the next: each has its own, so grids have to be small.
constexpr int kMostBlocks = kThreadSanitizer ? 64 : 1;
constexpr int kRedZone = 64;

enum class Meets { kNobody, kBlock, kWarp, kShuffle, kBallot };
inline const char* name_of(Meets meets) {
  constexpr const char* names[] = {"", "__syncthreads", "__syncwarp", "__shfl_sync", "__ballot_sync"};
  return names[static_cast<int>(meets)];
}

struct Fiber {
  void* stack_pointer;
  char* stack;
  void* sanitizer;  // its identity (ThreadSanitizer), or its fake stack (AddressSanitizer)
  uint3 index;
  int id;
  bool done;
  // The rendezvous it waits at.
  Meets meets;
  int line, source;
  unsigned mask;
  uint64_t value, result;
  bool block_turn, warp_turn;
};

struct SharedArray {
  const void* site;
  char* memory;
};

struct Machine {
  int order = 0;
  uint64_t random = 0;
  char error[400] = "";
  Fiber fibers[kMostThreads];
  Fiber* current;
  Fiber host;
  const void* host_stack;
  size_t host_stack_size;
  uint64_t ready[kMostThreads / 64];
  int threads, alive, at_barrier, last;
  dim3 grid, block;
  uint3 block_index;
  int64_t block_number;
  SharedArray arrays[kMostArrays];
  int array_count, shared_bytes;
  void (*call)(const void*);
  const void* kernel;
  // What ThreadSanitizer orders accesses by. Two in turns for a barrier: a thread may be at the next one before another has
  // left.
  char barrier_tokens[2], warp_tokens[kMostThreads / 32][2], begin_token, end_token;
};
inline Machine machine;
inline char shared_memory[kMostBlocks][kSharedBytes + kMostArrays * kRedZone] __attribute__((aligned(64)));

GKD_SCHEDULER inline void release(void* token) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(token);
#endif
  (void)token;
}

GKD_SCHEDULER inline void acquire(void* token) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(token);
#endif
  (void)token;
}

GKD_SCHEDULER inline void switch_to(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  const bool home = &to == &machine.host;
  __sanitizer_start_switch_fiber(from.done ? nullptr : &from.sanitizer, home ? machine.host_stack : to.stack,
                                 home ? machine.host_stack_size : kStackBytes);
#elif defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
  gkd_switch_stack(&from.stack_pointer, to.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.sanitizer, nullptr, nullptr);
#endif
}

GKD_SCHEDULER inline void set_ready(int id) { machine.ready[id / 64] |= uint64_t(1) << id % 64; }

GKD_SCHEDULER inline void set_free(int id) {
  machine.fibers[id].meets = Meets::kNobody;
  set_ready(id);
}

// A ready thread, counted from `from` on in turns; -1 if there is none.
GKD_SCHEDULER inline int ready_from(int from, int direction) {
  for (int i = 0, id = from; i < machine.threads; ++i) {
    if (direction > 0 && id % 64 == 0 && machine.ready[id / 64] == 0 && id + 64 <= machine.threads) {
      i += 63;
      id = (id + 64) % machine.threads;
      continue;
    }
    if (machine.ready[id / 64] >> id % 64 & 1) return id;
    id = (id + direction + machine.threads) % machine.threads;
  }
  return -1;
}

GKD_SCHEDULER inline int next_thread() {
  Machine& m = machine;
  switch (m.order) {
    case 0:
      return ready_from(0, 1);
    case 1:
      return ready_from(m.threads - 1, -1);
    case 2:
      return ready_from((m.last + 1) % m.threads, 1);
    case 3:
      return ready_from((m.last + m.threads - 1) % m.threads, -1);
    default:
      m.random ^= m.random << 13;
      m.random ^= m.random >> 7;
      m.random ^= m.random << 17;
      return ready_from(m.random % m.threads, 1);
  }
}

// Ends the launch with a message; whoever calls it never goes on.
GKD_SCHEDULER inline void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(machine.error, sizeof machine.error, format, arguments);
  va_end(arguments);
  if (machine.current != &machine.host) switch_to(*machine.current, machine.host);
}

GKD_SCHEDULER inline void describe(const Fiber& f, char* text, size_t size) {
  if (f.done)
    snprintf(text, size, "thread %d has returned", f.id);
  else
    snprintf(text, size, "thread %d waits at %s, line %d, mask %08x", f.id, name_of(f.meets), f.line, f.mask);
}

GKD_SCHEDULER inline void fail_between(const char* what, const Fiber& a, const Fiber& b) {
  char first[120], second[120];
  describe(a, first, sizeof first);
  describe(b, second, sizeof second);
  fail("%s: %s; %s", what, first, second);
}

GKD_SCHEDULER inline void wait() { switch_to(*machine.current, machine.host); }

GKD_SCHEDULER inline void meet_block(int line) {
  Machine& m = machine;
  Fiber& self = *m.current;
  self.meets = Meets::kBlock;
  self.line = line;
  self.mask = ~0u;
  char* token = &m.barrier_tokens[self.block_turn];
  self.block_turn = !self.block_turn;
  release(token);
  if (++m.at_barrier == m.threads) {
    m.at_barrier = 0;
    for (int id = 0; id < m.threads; ++id) {
      if (m.fibers[id].line != line) fail_between("different barriers", self, m.fibers[id]);
      set_free(id);
    }
  }
  wait();
  acquire(token);
}

// The last lane of a mask to come finds the results of all.
GKD_SCHEDULER inline uint64_t meet_warp(Meets meets, unsigned mask, uint64_t value, int source, int line) {
  Machine& m = machine;
  Fiber& self = *m.current;
  Fiber* warp = m.fibers + self.id / 32 * 32;
  self.meets = meets;
  self.line = line;
  self.mask = mask;
  self.value = value;
  self.source = source;
  if (!(mask >> self.id % 32 & 1))
    fail("%s, line %d: thread %d is not in its mask %08x", name_of(meets), line, self.id, mask);
  char* token = &m.warp_tokens[self.id / 32][self.warp_turn];
  if (meets == Meets::kWarp) {
    self.warp_turn = !self.warp_turn;
    release(token);
  }
  uint64_t votes = 0;
  bool complete = true;
  for (int i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    const bool came = warp[i].id < m.threads && !warp[i].done && warp[i].meets >= Meets::kWarp;
    complete = complete && came;
    if (came && (warp[i].meets != meets || warp[i].line != line || warp[i].mask != mask))
      fail_between("lanes diverge", self, warp[i]);
    votes |= uint64_t(came && warp[i].value) << i;
  }
  if (complete)
    for (int i = 0; i < 32; ++i) {
      if (!(mask >> i & 1)) continue;
      if (meets == Meets::kShuffle && !(mask >> warp[i].source & 1))
        fail("__shfl_sync, line %d: thread %d reads lane %d, which is not in mask %08x", line, warp[i].id, warp[i].source, mask);
      warp[i].result = meets == Meets::kBallot ? votes : warp[warp[i].source].value;
      set_free(warp[i].id);
    }
  wait();
  if (meets == Meets::kWarp) acquire(token);
  return self.result;
}

template <class T>
GKD_SCHEDULER inline T shuffle_xor(unsigned mask, T value, int distance, int line) {
  static_assert(sizeof(T) <= 8, "shuffles move up to 8 bytes");
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof value);
  bits = meet_warp(Meets::kShuffle, mask, bits, machine.current->id % 32 ^ distance, line);
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// The block's array of this declaration, filled with NaN by whoever asks first.
template <class T>
GKD_SCHEDULER inline T* shared(const void* site, int count) {
  Machine& m = machine;
  for (int i = 0; i < m.array_count; ++i)
    if (m.arrays[i].site == site) return reinterpret_cast<T*>(m.arrays[i].memory);
  const int bytes = count * static_cast<int>(sizeof(T)), room = (bytes + 15) / 16 * 16 + kRedZone;
  if (m.array_count == kMostArrays || m.shared_bytes + bytes > kSharedBytes + m.array_count * kRedZone)
    fail("more than %d bytes of shared memory", kSharedBytes);
  char* memory = shared_memory[m.block_number % kMostBlocks] + m.shared_bytes;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(memory, bytes);
#endif
  for (int i = 0; i < bytes; ++i) reinterpret_cast<volatile char*>(memory)[i] = static_cast<char>(0xff);
  m.shared_bytes += room;
  m.arrays[m.array_count++] = {site, memory};
  return reinterpret_cast<T*>(memory);
}

GKD_SCHEDULER inline void run_thread() {
  Machine& m = machine;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &m.host_stack, &m.host_stack_size);
#endif
  acquire(&m.begin_token);
  m.call(m.kernel);
  release(&m.end_token);
  m.current->done = true;
  --m.alive;
  switch_to(*m.current, m.host);
}

// A fresh stack whose first return address is run_thread.
GKD_SCHEDULER inline void start_thread(int id) {
  Machine& m = machine;
  Fiber& f = m.fibers[id];
  char* stack = f.stack;
  f = Fiber{};
  f.id = id;
  f.index = {id % m.block.x, id / m.block.x % m.block.y, id / m.block.x / m.block.y};
  f.stack = stack;
  if (!stack || kThreadSanitizer)
    f.stack = static_cast<char*>(
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(f.stack, kStackBytes);
#elif defined(__SANITIZE_THREAD__)
  f.sanitizer = __tsan_create_fiber(0);
#endif
  void** top = reinterpret_cast<void**>(f.stack + kStackBytes);
  top[-1] = nullptr;  // where run_thread would return to
  top[-2] = reinterpret_cast<void*>(&run_thread);
  f.stack_pointer = top - 8;
  set_ready(id);
}

GKD_SCHEDULER inline void run_block() {
  Machine& m = machine;
  m.threads = m.alive = m.block.x * m.block.y * m.block.z;
  m.at_barrier = m.array_count = m.shared_bytes = 0;
  m.last = m.order == 3 ? 0 : m.threads - 1;
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(shared_memory, sizeof shared_memory);
#endif
  for (int id = 0; id < m.threads; ++id) start_thread(id);
  while (m.alive > 0 && !m.error[0]) {
    const int id = next_thread();
    if (id < 0) break;
    m.ready[id / 64] &= ~(uint64_t(1) << id % 64);
    m.last = id;
    m.current = &m.fibers[id];
    switch_to(m.host, *m.current);
    m.current = &m.host;
  }
#if defined(__SANITIZE_THREAD__)
  for (int id = 0; id < m.threads; ++id) __tsan_destroy_fiber(m.fibers[id].sanitizer);
#endif
  if (m.alive == 0 || m.error[0]) return;
  const Fiber *waiting = nullptr, *absent = nullptr;
  for (int id = 0; id < m.threads; ++id) {
    const Fiber& f = m.fibers[id];
    if (!f.done && (!waiting || f.meets > waiting->meets)) waiting = &f;
  }
  for (int id = 0; id < m.threads; ++id)
    if (m.fibers[id].done || m.fibers[id].meets != waiting->meets) absent = &m.fibers[id];
  fail_between("threads wait for each other", *waiting, *absent);
}

GKD_SCHEDULER inline void launch(dim3 grid, dim3 block, void (*call)(const void*), const void* kernel) {
  Machine& m = machine;
  if (m.error[0]) return;
  const int64_t blocks = int64_t(grid.x) * grid.y * grid.z, threads = int64_t(block.x) * block.y * block.z;
  if (blocks == 0 || grid.y > 65535 || grid.z > 65535 || threads == 0 || threads > kMostThreads)
    return fail("launch of %u x %u x %u blocks of %lld threads", grid.x, grid.y, grid.z, static_cast<long long>(threads));
  if (kThreadSanitizer && blocks > kMostBlocks) return fail("more than %d blocks under ThreadSanitizer", kMostBlocks);
  m.grid = grid;
  m.block = block;
  m.call = call;
  m.kernel = kernel;
#if defined(__SANITIZE_THREAD__)
  m.host.sanitizer = __tsan_get_current_fiber();
#endif
  release(&m.begin_token);
  for (m.block_number = 0; m.block_number < blocks && !m.error[0]; ++m.block_number) {
    const int64_t b = m.block_number;
    m.block_index = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                     static_cast<unsigned>(b / grid.x / grid.y)};
    run_block();
  }
  acquire(&m.end_token);
}

template <class Body>
void launch_body(dim3 grid, dim3 block, const Body& body) {
  launch(grid, block, [](const void* b) { (*static_cast<const Body*>(b))(); }, &body);
}

inline void set_order(int order) {
  machine.current = &machine.host;
  machine.order = order;
  machine.random = 0x9e3779b97f4a7c15u * static_cast<uint64_t>(order + 1);
}

}  // namespace gkd::emulation

namespace gkd::cuda {

inline const char* launch_error() { return emulation::machine.error[0] ? emulation::machine.error : nullptr; }

}  // namespace gkd::cuda

#define threadIdx (gkd::emulation::machine.current->index)
#define blockIdx (gkd::emulation::machine.block_index)
#define blockDim (gkd::emulation::machine.block)
#define gridDim (gkd::emulation::machine.grid)

#define GKD_SHARED(type, name, count)  \
  static const char name##_site = 0;   \
  type* const name = gkd::emulation::shared<type>(&name##_site, count)
#define GKD_LAUNCH(kernel, grid, block, stream, ...) \
  ((void)(stream), gkd::emulation::launch_body(grid, block, [&] { kernel(__VA_ARGS__); }))

#define __syncthreads() gkd::emulation::meet_block(__LINE__)
#define __syncwarp() gkd::emulation::meet_warp(gkd::emulation::Meets::kWarp, ~0u, 0, 0, __LINE__)
#define __shfl_xor_sync(mask, value, distance) gkd::emulation::shuffle_xor(mask, value, distance, __LINE__)
#define __ballot_sync(mask, vote) \
  static_cast<unsigned>(gkd::emulation::meet_warp(gkd::emulation::Meets::kBallot, mask, (vote) ? 1 : 0, 0, __LINE__))

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }

// What the harnesses share: arguments and results are 8-byte integers, doubles and arrays, one after another.
//
// Every array lies in memory of its own of exactly its size, so that AddressSanitizer sees its ends.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace harness {

inline void check(bool holds, const char* what) {
  if (holds) return;
  fprintf(stderr, "%s\n", what);
  exit(3);
}

template <class T>
T read() {
  T value;
  check(fread(&value, sizeof value, 1, stdin) == 1, "arguments end too early");
  return value;
}

inline int read_int() { return static_cast<int>(read<int64_t>()); }

struct Free {
  void operator()(void* memory) const { free(memory); }
};

class Array {
 public:
  explicit Array(int64_t bytes) : bytes_(bytes), memory_(malloc(bytes)) { memset(memory_.get(), 0xff, bytes); }

  static Array read(int64_t bytes) {
    Array array(bytes);
    check(fread(array.memory_.get(), 1, bytes, stdin) == static_cast<size_t>(bytes), "arguments end too early");
    return array;
  }

  template <class T>
  T* data() const {
    return static_cast<T*>(memory_.get());
  }
  void write() const { fwrite(memory_.get(), 1, bytes_, stdout); }

 private:
  int64_t bytes_;
  std::unique_ptr<void, Free> memory_;
};

inline void finish(const char* error, const std::vector<const Array*>& results) {
  check(!error, error);
  for (const Array* array : results) array->write();
}

}  // namespace harness

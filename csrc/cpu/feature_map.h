// Feature maps of any floating dtype and memory layout, read and written in runs of neighbouring elements.
#pragma once

#include "convert.h"

namespace gkd::cpu {

// Elements of a map [N,C,H,W] along its cells (row by row), or along its channels.
struct Run {
  int64_t image, channel, cell, count;
  bool along_cells;
};

class FeatureMap {
 public:
  ScalarType dtype;
  int64_t images, channels, height, width;

  explicit FeatureMap(const Tensor& map)
      : dtype(map.scalar_type()),
        images(map.size(0)),
        channels(map.size(1)),
        height(map.size(2)),
        width(map.size(3)),
        data_(const_cast<void*>(map.const_data_ptr())) {
    for (int i = 0; i < 4; ++i) stride_[i] = map.stride(i);
    // The stride of a dimension of one element means nothing.
    if (height == 1) stride_[2] = width * stride_[3];
    if (width == 1) stride_[3] = stride_[2];
  }

  int64_t cells() const { return height * width; }
  bool cells_adjoin() const { return stride_[3] == 1 && stride_[2] == width; }
  bool channels_adjoin() const { return stride_[1] == 1; }
  // Whether runs along the channels lie in order, and no longer ones along the cells do.
  bool runs_along_channels() const { return channels_adjoin() && !(cells_adjoin() && cells() >= channels); }
  int64_t stride(int axis) const { return stride_[axis]; }

  template <class T>
  T* row(int64_t image, int64_t channel, int64_t y) const {
    return static_cast<T*>(data_) + image * stride_[0] + channel * stride_[1] + y * stride_[2];
  }

  // The elements of a run: in place where they lie in order as T, otherwise copied into the buffer.
  template <class T>
  const T* read(const Run& run, T* buffer) const {
    if (lies_in_order<T>(run)) return prefetch_next(at<T>(run), run.count);
    with_floating_type(dtype, [&](auto tag) {
      using Element = decltype(tag);
      if (adjoin(run)) return widen(prefetch_next(at<Element>(run), run.count), run.count, buffer);
      for_each_offset(run, [&](int64_t i, int64_t offset) { buffer[i] = static_cast<T>(at<Element>(run)[offset]); });
    });
    return buffer;
  }

  // Where to put the elements of a run before `write`.
  template <class T>
  T* target(const Run& run, T* buffer) const {
    return lies_in_order<T>(run) ? at<T>(run) : buffer;
  }

  template <class T>
  void write(const Run& run, const T* elements) const {
    if (lies_in_order<T>(run)) return;
    with_floating_type(dtype, [&](auto tag) {
      using Element = decltype(tag);
      if (adjoin(run)) return narrow(elements, run.count, at<Element>(run));
      for_each_offset(run, [&](int64_t i, int64_t o) { at<Element>(run)[o] = static_cast<Element>(elements[i]); });
    });
  }

 private:
  void* data_;
  int64_t stride_[4];

  // Begins to fetch the next run while this one is worked on: the processor's own prefetcher stops at the end of a page.
  template <class Element>
  static const Element* prefetch_next(const Element* run, int64_t count) {
    const char* next = reinterpret_cast<const char*>(run + count);
    for (int line = 0; line < 16; ++line) __builtin_prefetch(next + 64 * line);
    return run;
  }

  bool adjoin(const Run& run) const { return run.along_cells ? cells_adjoin() : channels_adjoin(); }

  template <class T>
  bool lies_in_order(const Run& run) const {
    return dtype == dtype_of<T>() && adjoin(run);
  }

  template <class T>
  T* at(const Run& run) const {
    const int64_t row = run.cell / width, column = run.cell % width;
    return static_cast<T*>(data_) + run.image * stride_[0] + run.channel * stride_[1] + row * stride_[2] +
           column * stride_[3];
  }

  // body(i, offset of element i from the first) for a run that is scattered over memory.
  template <class Body>
  void for_each_offset(const Run& run, const Body& body) const {
    if (!run.along_cells) {
      for (int64_t i = 0; i < run.count; ++i) body(i, i * stride_[1]);
      return;
    }
    int64_t column = run.cell % width, offset = 0;
    for (int64_t i = 0; i < run.count; ++i) {
      body(i, offset);
      offset += stride_[3];
      if (++column == width) {
        column = 0;
        offset += stride_[2] - width * stride_[3];
      }
    }
  }
};

}  // namespace gkd::cpu

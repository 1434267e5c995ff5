// Feature pyramids as kernels see them: raw pointers, strides in elements.
#pragma once

#include <cstdint>

namespace gkd::cuda {

enum class Element { kFloat, kHalf, kBFloat16 };

constexpr int kMaxLevels = 16;  // a pyramid travels by value: 4 KB of kernel parameters hold two of them

// A map [N,C,H,W]. Planar (NCHW): the cells of a row are adjacent; otherwise interleaved (channels_last): the channels of a
// cell are. `vectors`: 16 bytes along the adjacent dimension, counted from its start, are aligned and never reach past its end.
struct FeatureMap {
  void* data;
  int64_t image_stride, channel_stride, row_stride, cell_stride;
  int height, width;
  bool planar, vectors;
};

struct Pyramid {
  FeatureMap maps[kMaxLevels];
  int levels, images, channels;
};

// Strides in the order of the dimensions; of a map that is neither planar nor interleaved no kernel can make use.
inline FeatureMap make_map(void* data, const int64_t (&strides)[4], int channels, int height, int width, int element_size) {
  FeatureMap map{data, strides[0], strides[1], strides[2], strides[3], height, width, strides[3] == 1, false};
  const int64_t lanes = 16 / element_size;
  const int64_t adjacent = map.planar ? width : channels, across = map.planar ? map.channel_stride : map.cell_stride;
  const auto whole = [&](int64_t count) { return count % lanes == 0; };
  map.vectors = reinterpret_cast<uintptr_t>(data) % 16 == 0 && whole(adjacent) && whole(across) &&
                whole(map.image_stride) && whole(map.row_stride);
  return map;
}

// Strides of a map [N,C,H,W] without gaps.
inline FeatureMap dense_map(void* data, bool planar, int channels, int height, int width, int element_size) {
  const int64_t c = channels, h = height, w = width;
  if (planar) return make_map(data, {c * h * w, h * w, w, 1}, channels, height, width, element_size);
  return make_map(data, {c * h * w, 1, w * c, c}, channels, height, width, element_size);
}

// What one block works on: this part of a map, of one image.
constexpr int kTileRows = 8, kTileColumns = 32, kTileChannels = 32;
constexpr int kThreads = 256, kWarps = kThreads / 32;

#if defined(__CUDACC__)
#define GKD_HOST_DEVICE __host__ __device__
#else
#define GKD_HOST_DEVICE
#endif

GKD_HOST_DEVICE constexpr int ceil_div(int a, int b) { return a / b + (a % b != 0); }

GKD_HOST_DEVICE inline int64_t tiles_of_image(const FeatureMap& map) {
  return static_cast<int64_t>(ceil_div(map.height, kTileRows)) * ceil_div(map.width, kTileColumns);
}

// A map of one float for each tile of `map`, in its layout.
inline FeatureMap tile_map(const FeatureMap& map, float* sums, int channels) {
  return dense_map(sums, map.planar, channels, ceil_div(map.height, kTileRows), ceil_div(map.width, kTileColumns),
                   sizeof(float));
}

// Tiles of all levels and images.
inline int64_t count_tiles(const Pyramid& maps) {
  int64_t count = 0;
  for (int l = 0; l < maps.levels; ++l) count += maps.images * tiles_of_image(maps.maps[l]);
  return count;
}

}  // namespace gkd::cuda

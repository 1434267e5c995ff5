// Tiles of maps, and the gradient of one: who owns a cell sums it up in registers and writes it once, so no sum is atomic and
// none depends on the order in which blocks run.
#pragma once

#include "block.cuh"

namespace gkd::cuda {

struct Tile {
  int level, image, top, left;
  int bottom, right;  // ends excluded, inside the map
};

__device__ inline Tile find_tile(const Pyramid& maps, int64_t index) {
  int level = 0;
  for (; index >= maps.images * tiles_of_image(maps.maps[level]); ++level)
    index -= maps.images * tiles_of_image(maps.maps[level]);
  const FeatureMap& map = maps.maps[level];
  const int of_image = static_cast<int>(index % tiles_of_image(map)), per_row = ceil_div(map.width, kTileColumns);
  const int top = of_image / per_row * kTileRows, left = of_image % per_row * kTileColumns;
  return {level,
          static_cast<int>(index / tiles_of_image(map)),
          top,
          left,
          smaller(top + kTileRows, map.height),
          smaller(left + kTileColumns, map.width)};
}

// A thread's share of a tile: kVector<T> neighbours along the adjacent dimension, in kRows rows. Of the other dimension (the
// channels of a planar map, the columns of an interleaved one) it has one, `across`.
template <class T>
struct GradientTile {
  static constexpr int kLanes = kVector<T>, kRows = 32 / kLanes, kGroups = kTileColumns / kLanes;
  static_assert(kTileColumns == kTileChannels && kGroups * kTileChannels * (kTileRows / kRows) == kThreads, "one share each");

  int along, across, row;  // first lane, and first row, from the tile's own first
  float sum[kRows][kLanes];

  __device__ GradientTile()
      : along(thread() % kGroups * kLanes),
        across(thread() / kGroups % kTileChannels),
        row(thread() / (kGroups * kTileChannels) * kRows),
        sum{} {}

  // First channel and column of the share.
  __device__ int channel(bool planar) const { return planar ? across : along; }
  __device__ int column(bool planar) const { return planar ? along : across; }

  __device__ void store(const FeatureMap& map, const Tile& tile, int first_channel, int channels) const {
    const int c = first_channel + channel(map.planar), x = tile.left + column(map.planar);
    if (c >= channels || x >= tile.right) return;
    const int count = map.planar ? tile.right - x : channels - c;
    T* out = static_cast<T*>(map.data) + tile.image * map.image_stride + c * map.channel_stride + x * map.cell_stride;
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int y = tile.top + row + j;
      if (y < tile.bottom) store_lanes(sum[j], count, map.vectors, out + y * map.row_stride);
    }
  }
};

}  // namespace gkd::cuda

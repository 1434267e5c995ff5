// The gradient of a pyramid, summed up tile by tile.
//
// A tile is a part of the gradient that one task owns: some channels and rows of one image and level. It is summed up in a
// scratch of the accumulation type that fits the second-level cache, then converted and written once. Who owns a cell, and the
// order in which it is added to, do not depend on the number of threads.
#pragma once

#include <algorithm>

#include "load_vector.h"
#include "pyramid.h"

namespace gkd::cpu {

// The scratch is planar [channels][rows][width] or interleaved [rows][width][channels], as its map. Interleaved channels are
// padded to whole vectors; planar rows have room for a vector that begins at any of their cells.
template <class A>
struct GradientTile {
  int64_t level, image, first_channel, channels, first_row, rows;
  int64_t channel_stride, row_stride, cell_stride, size;  // of the scratch
  A* scratch = nullptr;

  bool owns_row(int64_t y) const { return y >= first_row && y < past_row(); }
  int64_t past_row() const { return first_row + rows; }
  A* row(int64_t channel, int64_t y) const {
    return scratch + (channel - first_channel) * channel_stride + (y - first_row) * row_stride;
  }
};

constexpr int64_t kTileBytes = 512 * 1024;  // half of a usual second-level cache
constexpr int64_t kPlanarChannels = 8, kInterleavedChannels = 32;
constexpr int64_t kTaskChannels = 64;  // worked through on all levels and images before the next: all threads get some of each

// Tiles of one map for channels [first, past).
template <class A>
void append_tiles(const FeatureMap& map, int64_t level, int64_t first, int64_t past,
                  std::vector<GradientTile<A>>& tiles) {
  constexpr int64_t W = Simd<A>::width;
  const bool planar = is_planar(map);
  for (int64_t image = 0; image < map.images; ++image)
    for (int64_t c = first; c < past; c += planar ? kPlanarChannels : kInterleavedChannels) {
      const int64_t channels = std::min(planar ? kPlanarChannels : kInterleavedChannels, past - c);
      const int64_t cell = planar ? 1 : round_up(channels, W), planes = planar ? channels : 1;
      const int64_t row = planar ? round_up(map.width, W) + W : map.width * cell;
      const int64_t most = std::max<int64_t>(1, kTileBytes / (row * planes * static_cast<int64_t>(sizeof(A))));
      const int64_t even = ceil_div(map.height, ceil_div(map.height, most));
      for (int64_t y = 0; y < map.height; y += even) {
        const int64_t rows = std::min(even, map.height - y);
        tiles.push_back({level, image, c, channels, y, rows, planar ? rows * row : 1, row, cell, planes * rows * row});
      }
    }
}

// Converts a tile into its place; zeros where it has no scratch.
template <class T, class A>
void write_tile(const GradientTile<A>& tile, const FeatureMap& map) {
  const bool planar = is_planar(map);
  const int64_t lines = planar ? tile.channels : map.width, length = planar ? map.width : tile.channels;
  const int64_t from = planar ? tile.channel_stride : tile.cell_stride, to = map.stride(planar ? 1 : 3);
  for (int64_t y = tile.first_row; y < tile.past_row(); ++y)
    for (int64_t i = 0; i < lines; ++i) {
      T* out = map.row<T>(tile.image, tile.first_channel, y) + i * to;
      if (tile.scratch)
        narrow(tile.row(tile.first_channel, y) + i * from, length, out);
      else
        std::fill_n(out, length, T(0));
    }
}

// Fills the gradient of a pyramid: add(tile) adds what belongs to a tile to its zeroed scratch, if it touches(tile) at all.
template <class T, class Touches, class Add>
void fill_gradients(const Pyramid& gradients, const Touches& touches, const Add& add) {
  using A = Accumulator<T>;
  std::vector<GradientTile<A>> tiles;
  for (int64_t c = 0; c < gradients.channels(); c += kTaskChannels)
    for (int64_t level = 0; level < gradients.levels(); ++level)
      append_tiles(gradients[level], level, c, std::min(c + kTaskChannels, gradients.channels()), tiles);
  torch::stable::parallel_for(0, static_cast<int64_t>(tiles.size()), 1, [&](int64_t begin, int64_t end) {
    std::vector<A> scratch;
    for (int64_t i = begin; i < end; ++i) {
      GradientTile<A> tile = tiles[i];
      if (touches(tile)) {
        scratch.assign(tile.size, A(0));
        tile.scratch = scratch.data();
        add(tile);
      }
      write_tile<T>(tile, gradients[tile.level]);
    }
  });
}

}  // namespace gkd::cpu

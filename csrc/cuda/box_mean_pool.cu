// Mean of the feature cells under each box.
//
// Forward, a box is summed directly: its cells are read once, in float32, and no large sums are subtracted from each other.
// Where the boxes of an image hold at least half as many cells as the map, the map is summed in tiles of 8x32 first. A box then
// reads the tiles inside of it and the cells between them and its border: at most 2 * (32 * height + 8 * width) instead of
// height * width. Reading all of the map once costs less than reading half of it through boxes, which a large one does at the
// speed of a single block.
//
// Backward, each tile of the gradient gathers from the boxes that touch it; a box that covers it whole costs one addition a
// thread. The only memory traffic that grows with the number of boxes is that of their own gradients.
#include "box_mean_pool.h"

#include "tiles.cuh"

namespace gkd::cuda {
namespace {

struct Rectangle {
  int left, top, right, bottom;
};

__device__ inline int cell_of(float coordinate, float stride, bool mirror, int size) {
  const float position = floorf((mirror ? fabsf(coordinate) : coordinate) / stride);
  return smaller(static_cast<int>(fminf(fmaxf(position, 0.0f), static_cast<float>(size - 1))), size - 1);
}

// The image of a box; `images`, one past the last, for a box that is not pooled.
__device__ inline int image_of(const BoxMeanPool& call, int box) {
  const float* corner = call.corners + 4 * static_cast<int64_t>(box);
  const int64_t image = call.image_index[box];
  const bool defined = !(isnan(corner[0]) || isnan(corner[1]) || isnan(corner[2]) || isnan(corner[3]));
  return defined && image >= 0 && image < call.maps.images ? static_cast<int>(image) : call.maps.images;
}

__device__ inline BoxCells cells_of(const BoxMeanPool& call, int level, int box, int image) {
  if (image == call.maps.images) return {0, 0, 0, 0, box, 0, NAN, 0};
  const FeatureMap& map = call.maps.maps[level];
  const float* corner = call.corners + 4 * static_cast<int64_t>(box);
  const float stride = call.strides[level];
  const int left = cell_of(corner[0], stride, call.mirror, map.width);
  const int top = cell_of(corner[1], stride, call.mirror, map.height);
  const int right = larger(left, cell_of(corner[2], stride, call.mirror, map.width)) + 1;
  const int bottom = larger(top, cell_of(corner[3], stride, call.mirror, map.height)) + 1;
  const float area = static_cast<float>(right - left) * static_cast<float>(bottom - top);
  return {left, top, right, bottom, box, image, area, 0};
}

// One block an image and level; the last image is that of boxes without one.
__global__ void __launch_bounds__(kThreads) place_boxes(const __grid_constant__ BoxMeanPool call, int* crowded) {
  const int image = static_cast<int>(blockIdx.x), level = static_cast<int>(blockIdx.y);
  float area = 0;
  sort_group(
      call.boxes, image, [&](int box) { return image_of(call, box); },
      [&](int box, int position) {
        const BoxCells cells = cells_of(call, level, box, image);
        call.cells[static_cast<int64_t>(level) * call.boxes + position] = cells;
        area += cells.area;
      });
  area = block_sum(area);
  if (thread() > 0 || image == call.maps.images) return;
  const FeatureMap& map = call.maps.maps[level];
  crowded[level * call.maps.images + image] = 2 * area >= static_cast<float>(map.height) * static_cast<float>(map.width);
}

// Sums of the channels of a block over rectangles, spread over its threads: in a planar map a warp has kLanes channels, its
// lanes the cells; in an interleaved one a thread has kLanes channels, groups of threads the cells.
template <int kLanes>
struct ChannelSums {
  static constexpr int kGroups = kTileChannels / kLanes;
  static constexpr int kWarpChannels = kTileChannels / kWarps;
  float sum[kLanes] = {};

  template <class E>
  __device__ void add(const FeatureMap& map, int image, int first_channel, int channels, const Rectangle& r) {
    const E* data = static_cast<const E*>(map.data) + image * map.image_stride;
    if (map.planar)
      add_planar(data, map, first_channel + warp() * kWarpChannels, channels, r);
    else
      add_interleaved(data, map, first_channel + thread() % kGroups * kLanes, channels, r);
  }

  template <class E>
  __device__ void add_planar(const E* data, const FeatureMap& map, int channel, int channels, const Rectangle& r) {
    constexpr int V = kVector<E>;
    // Vectors begin at multiples of their length: those over the ends of a row are masked.
    const int step = map.vectors ? V : 1, first = r.left / step, per_row = ceil_div(r.right, step) - first;
    for (int i = lane(); i < per_row * (r.bottom - r.top); i += 32) {
      const int x = (first + i % per_row) * step;
      const E* at = data + channel * map.channel_stride + (r.top + i / per_row) * map.row_stride + x;
#pragma unroll
      for (int j = 0; j < kWarpChannels; ++j) {
        if (channel + j >= channels) break;
        const E* cells = at + j * map.channel_stride;
        float values[V];
        load_lanes(cells, map.vectors ? V : 1, map.vectors, values);
#pragma unroll
        for (int k = 0; k < V; ++k)
          if (x + k >= r.left && x + k < r.right) sum[j] += values[k];
      }
    }
  }

  template <class E>
  __device__ void add_interleaved(const E* data, const FeatureMap& map, int channel, int channels, const Rectangle& r) {
    const int width = r.right - r.left, count = channels - channel;
    if (count <= 0) return;
    for (int i = thread() / kGroups; i < width * (r.bottom - r.top); i += kThreads / kGroups) {
      float values[kLanes];
      load_lanes(data + channel + (r.top + i / width) * map.row_stride + (r.left + i % width) * map.cell_stride, count,
                 map.vectors, values);
#pragma unroll
      for (int k = 0; k < kLanes; ++k) sum[k] += values[k];
    }
  }

  // write(channel of the block, total) once for every channel.
  template <class Write>
  __device__ void finish(bool planar, const Write& write) {
    GKD_SHARED(float, of_warp, kWarps * kTileChannels);
    if (planar) {
#pragma unroll
      for (int j = 0; j < kWarpChannels; ++j) {
        const float total = warp_sum(sum[j]);
        if (lane() == 0) write(warp() * kWarpChannels + j, total);
      }
      return;
    }
#pragma unroll
    for (int k = 0; k < kLanes; ++k) {
#pragma unroll
      for (int distance = 16; distance >= kGroups; distance /= 2)
        sum[k] += __shfl_xor_sync(kFullWarp, sum[k], distance);
      if (lane() < kGroups) of_warp[warp() * kTileChannels + lane() * kLanes + k] = sum[k];
    }
    __syncthreads();
    if (thread() >= kTileChannels) return;
    float total = 0;
    for (int w = 0; w < kWarps; ++w) total += of_warp[w * kTileChannels + thread()];
    write(thread(), total);
  }
};

// One block a tile and kTileChannels channels.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    sum_tiles(const __grid_constant__ Pyramid maps, const __grid_constant__ Pyramid sums, const int* crowded) {
  const Tile tile = find_tile(maps, blockIdx.x);
  if (!crowded[tile.level * maps.images + tile.image]) return;
  const int first_channel = static_cast<int>(blockIdx.y) * kTileChannels;
  const FeatureMap &map = maps.maps[tile.level], &to = sums.maps[tile.level];
  ChannelSums<kVector<T>> cells;
  cells.template add<T>(map, tile.image, first_channel, maps.channels, {tile.left, tile.top, tile.right, tile.bottom});
  float* out = static_cast<float*>(to.data) + tile.image * to.image_stride + tile.top / kTileRows * to.row_stride +
               tile.left / kTileColumns * to.cell_stride;
  cells.finish(map.planar, [&](int channel, float total) {
    if (first_channel + channel < maps.channels) out[(first_channel + channel) * to.channel_stride] = total;
  });
}

// The tiles inside a box; a tile that the border of the map cuts short is inside where its cells are.
__device__ inline Rectangle whole_tiles(const BoxCells& box, const FeatureMap& map) {
  return {ceil_div(box.left, kTileColumns), ceil_div(box.top, kTileRows),
          box.right == map.width ? ceil_div(box.right, kTileColumns) : box.right / kTileColumns,
          box.bottom == map.height ? ceil_div(box.bottom, kTileRows) : box.bottom / kTileRows};
}

// One block a box and level, in the order of `call.cells`, and kTileChannels channels.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    pool_boxes(const __grid_constant__ BoxMeanPool call, const __grid_constant__ Pyramid sums, const int* crowded,
               float* means) {
  const int level = static_cast<int>(blockIdx.x) / call.boxes, channels = call.maps.channels;
  const int first_channel = static_cast<int>(blockIdx.y) * kTileChannels;
  const BoxCells box = call.cells[blockIdx.x];
  const FeatureMap& map = call.maps.maps[level];
  const Rectangle tiles = whole_tiles(box, map);
  ChannelSums<kVector<T>> cells;
  const auto add = [&](const Rectangle& r) { cells.template add<T>(map, box.image, first_channel, channels, r); };
  if (tiles.left < tiles.right && tiles.top < tiles.bottom && crowded[level * call.maps.images + box.image]) {
    const int left = tiles.left * kTileColumns, right = smaller(tiles.right * kTileColumns, map.width);
    const int top = tiles.top * kTileRows, bottom = smaller(tiles.bottom * kTileRows, map.height);
    cells.template add<float>(sums.maps[level], box.image, first_channel, channels, tiles);
#pragma unroll 1
    for (int side = 0; side < 4; ++side)
      add({side == 3 ? right : box.left, side == 1 ? bottom : side == 0 ? box.top : top, side == 2 ? left : box.right,
           side == 0 ? top : side == 1 ? box.bottom : bottom});
  } else {
    add({box.left, box.top, box.right, box.bottom});
  }
  float* out = means + (static_cast<int64_t>(level) * call.boxes + box.box) * channels;
  cells.finish(map.planar, [&](int channel, float total) {
    if (first_channel + channel < channels) out[first_channel + channel] = total / box.area;
  });
}

// The boxes that touch a tile, of up to kThreads boxes from `first` on, in order. Each block works out what it needs of them,
// which costs less than a launch that would sort them.
__device__ inline int find_touching(const BoxMeanPool& call, int first, const Tile& tile, BoxCells* touching) {
  const int i = first + thread();
  BoxCells box{};
  bool touches = i < call.boxes && image_of(call, i) == tile.image;
  if (touches) {
    box = cells_of(call, tile.level, i, tile.image);
    touches = box.left < tile.right && box.right > tile.left && box.top < tile.bottom && box.bottom > tile.top;
  }
  const Rank rank = block_rank(touches);
  if (touches) touching[rank.before] = box;
  __syncthreads();
  return rank.total;
}

constexpr int kBatch = 32;  // boxes whose gradients are fetched together

// shares[i][channel]: what box i gives to each of its cells.
__device__ inline void fetch_shares(const BoxCells* boxes, int count, const float* gradient, int first_channel, int channels,
                                    float* shares) {
  const int channel = thread() % kTileChannels;
#pragma unroll 1
  for (int i = thread() / kTileChannels; i < count; i += kThreads / kTileChannels) {
    const BoxCells box = boxes[i];
    const bool exists = first_channel + channel < channels;
    shares[i * kTileChannels + channel] =
        exists ? gradient[static_cast<int64_t>(box.box) * channels + first_channel + channel] / box.area : 0.0f;
  }
}

template <class T>
__device__ inline void add_box(GradientTile<T>& own, const BoxCells& box, const Tile& tile, bool planar, const float* shares,
                               float (&everywhere)[kVector<T>]) {
  constexpr int V = kVector<T>;
  const int x = tile.left + own.column(planar), y = tile.top + own.row;
  const float* share = shares + own.channel(planar);
  float values[V];
#pragma unroll
  for (int k = 0; k < V; ++k) {
    const int column = planar ? x + k : x;
    values[k] = column >= box.left && column < box.right ? share[planar ? 0 : k] : 0.0f;
  }
  const bool covered = box.top <= tile.top && box.bottom >= tile.bottom;
  if (covered) {
#pragma unroll
    for (int k = 0; k < V; ++k) everywhere[k] += values[k];
    return;
  }
#pragma unroll
  for (int j = 0; j < GradientTile<T>::kRows; ++j)
    if (y + j >= box.top && y + j < box.bottom)
#pragma unroll
      for (int k = 0; k < V; ++k) own.sum[j][k] += values[k];
}

// One block a tile of the gradient and kTileChannels channels.
template <class T>
__global__ void __launch_bounds__(kThreads, 3) gather_boxes(const __grid_constant__ BoxMeanPool call, const float* gradient) {
  GKD_SHARED(BoxCells, touching, kThreads);
  GKD_SHARED(float, shares, kBatch * kTileChannels);
  const Tile tile = find_tile(call.maps, blockIdx.x);
  const FeatureMap& map = call.maps.maps[tile.level];
  const int first_channel = static_cast<int>(blockIdx.y) * kTileChannels, channels = call.maps.channels;
  const float* of_level = gradient + static_cast<int64_t>(tile.level) * call.boxes * channels;
  GradientTile<T> own;
  float everywhere[kVector<T>] = {};
  for (int first = 0; first < call.boxes; first += kThreads) {
    const int count = find_touching(call, first, tile, touching);
    for (int batch = 0; batch < count; batch += kBatch) {
      const int boxes = smaller(count - batch, kBatch);
      fetch_shares(touching + batch, boxes, of_level, first_channel, channels, shares);
      __syncthreads();
#pragma unroll 1
      for (int i = 0; i < boxes; ++i)
        add_box(own, touching[batch + i], tile, map.planar, shares + i * kTileChannels, everywhere);
      __syncthreads();
    }
  }
#pragma unroll
  for (int j = 0; j < GradientTile<T>::kRows; ++j)
#pragma unroll
    for (int k = 0; k < kVector<T>; ++k) own.sum[j][k] += everywhere[k];
  own.store(map, tile, first_channel, channels);
}

template <class T>
void forward(const BoxMeanPool& call, const Pyramid& tile_sums, int* crowded, float* means, void* stream) {
  const unsigned chunks = ceil_div(call.maps.channels, kTileChannels);
  const unsigned tiles = static_cast<unsigned>(count_tiles(call.maps)), boxes = call.maps.levels * call.boxes;
  if (chunks == 0 || boxes == 0) return;
  GKD_LAUNCH(place_boxes, dim3(call.maps.images + 1, call.maps.levels), kThreads, stream, call, crowded);
  if (tiles > 0) GKD_LAUNCH(sum_tiles<T>, dim3(tiles, chunks), kThreads, stream, call.maps, tile_sums, crowded);
  GKD_LAUNCH(pool_boxes<T>, dim3(boxes, chunks), kThreads, stream, call, tile_sums, crowded, means);
}

template <class T>
void backward(const BoxMeanPool& call, const float* gradient, void* stream) {
  const unsigned chunks = ceil_div(call.maps.channels, kTileChannels);
  const unsigned tiles = static_cast<unsigned>(count_tiles(call.maps));
  if (chunks == 0 || tiles == 0) return;
  GKD_LAUNCH(gather_boxes<T>, dim3(tiles, chunks), kThreads, stream, call, gradient);
}

}  // namespace

const char* box_mean_pool(const BoxMeanPool& call, Element element, const Pyramid& tile_sums, int* crowded, float* means,
                          void* stream) {
  with_element(element, [&](auto tag) { forward<decltype(tag)>(call, tile_sums, crowded, means, stream); });
  return launch_error();
}

const char* box_mean_pool_backward(const BoxMeanPool& call, Element element, const float* gradient, void* stream) {
  with_element(element, [&](auto tag) { backward<decltype(tag)>(call, gradient, stream); });
  return launch_error();
}

}  // namespace gkd::cuda

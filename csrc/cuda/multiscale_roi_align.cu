// RoIAlign over a pyramid.
//
// Forward, a block pools one box. The rows of a planar map that a box lies on are copied to shared memory, 16 bytes at a time,
// since the samples of neighbouring bins take the same cells again and again, at addresses that do not adjoin; of an
// interleaved map, neighbouring threads read neighbouring channels.
//
// Backward, each tile of the gradient gathers from the boxes that touch it. The weights of rows and columns are independent:
// gradient[y][x] = sum_r rows[r][y] sum_c columns[c][x] g[r][c], so that a thread keeps the inner sum of a bin row for all of
// its rows. Most bins take nothing of a warp's cells and are passed over. No addition is atomic, where scattering would need one
// for each of the 16 cells under the samples of a bin.
#include "multiscale_roi_align.h"

#include "roi_sampling.cuh"
#include "tiles.cuh"

namespace gkd::cuda {
namespace {

// One block a group; the last one is that of boxes that pool to zeros.
__global__ void __launch_bounds__(kThreads) place_rois(const __grid_constant__ RoiAlign call) {
  const int group = static_cast<int>(blockIdx.x);
  const int start = sort_group(
      call.boxes, group, [&](int box) { return group_of(call, box); },
      [&](int box, int position) { call.rois[position] = place_roi(call, box, group); });
  if (thread() == 0) call.starts[group] = start;
}

// Means of bin (r, c) of N channels; fetch(y, x, values) reads a cell.
template <int N, class Fetch>
__device__ inline void pool_bin(const Axis& rows, const Axis& columns, int r, int c, int sampling_ratio, const Fetch& fetch,
                                float (&mean)[N]) {
  const SampleRange over_rows = rows.between(r, -1.0f, static_cast<float>(rows.size), sampling_ratio);
  const SampleRange over_columns = columns.between(c, -1.0f, static_cast<float>(columns.size), sampling_ratio);
  float sum[N] = {};
  const auto add = [&](int y, int x, float weight) {
    float values[N];
    fetch(y, x, values);
#pragma unroll
    for (int k = 0; k < N; ++k) sum[k] += weight * values[k];
  };
#pragma unroll 1
  for (int i = over_rows.first; i < over_rows.past; ++i) {
    const float at_row = rows.position(r, i);
    if (!rows.inside(at_row)) continue;
    const Sample y = rows.sample(at_row);
#pragma unroll 1
    for (int j = over_columns.first; j < over_columns.past; ++j) {
      const float at_column = columns.position(c, j);
      if (!columns.inside(at_column)) continue;
      const Sample x = columns.sample(at_column);
      add(y.low, x.low, y.weight_low * x.weight_low);
      add(y.low, x.high, y.weight_low * x.weight_high);
      add(y.high, x.low, y.weight_high * x.weight_low);
      add(y.high, x.high, y.weight_high * x.weight_high);
    }
  }
  const float count = static_cast<float>(rows.samples) * static_cast<float>(columns.samples);
#pragma unroll
  for (int k = 0; k < N; ++k) mean[k] = count > 0 ? sum[k] / count : 0.0f;
}

// All that the channels of a box on its map share.
template <class T>
struct RoiOnMap {
  const RoiAlign& call;
  const Roi& roi;
  const FeatureMap& map;
  Axis rows, columns;
  int first_channel, channels;  // of the block
  const T* data;                // first channel of the block
  T* pooled;

  __device__ RoiOnMap(const RoiAlign& call, const Roi& roi, int first_channel, T* all)
      : call(call),
        roi(roi),
        map(call.maps.maps[roi.group / call.maps.images]),
        rows(call, roi, map.height, 0),
        columns(call, roi, map.width, 1),
        first_channel(first_channel),
        channels(smaller(call.maps.channels - first_channel, kTileChannels)),
        data(static_cast<const T*>(map.data) + roi.group % call.maps.images * map.image_stride +
             first_channel * map.channel_stride),
        pooled(all + (static_cast<int64_t>(roi.box) * call.maps.channels + first_channel) * call.bins[0] * call.bins[1]) {}

  // Pools N channels of every bin: fetch(channel, y, x, values) reads N channels of a cell, of `count` channels from `first` on.
  template <int N, class Fetch>
  __device__ void pool(int first, int count, const Fetch& fetch) const {
    const int bins = call.bins[0] * call.bins[1], groups = ceil_div(count, N);
#pragma unroll 1
    for (int i = thread(); i < bins * groups; i += kThreads) {
      // Threads that read neighbouring addresses: those of the channels in an interleaved map, of the bins in a planar one.
      const int bin = map.planar ? i % bins : i / groups, channel = (map.planar ? i / bins : i % groups) * N;
      float mean[N];
      pool_bin(
          rows, columns, bin / call.bins[1], bin % call.bins[1], call.sampling_ratio,
          [&](int y, int x, float(&values)[N]) { fetch(channel, y, x, values); }, mean);
#pragma unroll
      for (int k = 0; k < N; ++k)
        if (channel + k < count) assign(pooled[static_cast<int64_t>(first + channel + k) * bins + bin], mean[k]);
    }
  }
};

template <class T>
__device__ inline void pool_interleaved(const RoiOnMap<T>& on) {
  on.template pool<kVector<T>>(0, on.channels, [&](int channel, int y, int x, float(&values)[kVector<T>]) {
    load_lanes(on.data + channel + y * on.map.row_stride + x * on.map.cell_stride, on.channels - channel, on.map.vectors,
               values);
  });
}

constexpr int kPlanarChannels = 4;     // pooled by one thread: the weights of a sample serve them all
constexpr int kStagedCells = 8192;     // floats of shared memory, 32 KB; blocks of 96 registers a thread leave room for it
constexpr int kCellsOfChannel = 2048;  // a box on more cells takes few of them: 784 with 7x7 bins of 4 samples

template <class T>
__device__ inline void pool_from_memory(const RoiOnMap<T>& on) {
  on.template pool<kPlanarChannels>(0, on.channels, [&](int channel, int y, int x, float(&values)[kPlanarChannels]) {
    const T* cell = on.data + channel * on.map.channel_stride + y * on.map.row_stride + x;
#pragma unroll
    for (int k = 0; k < kPlanarChannels; ++k)
      values[k] = channel + k < on.channels ? to_float(cell[k * on.map.channel_stride]) : 0.0f;
  });
}

// Copies the rows of a box, [channel][row][pitch] from column `left`, both multiples of a vector.
template <class T>
__device__ inline void stage(const RoiOnMap<T>& on, int first, int count, int left, int pitch, float* staged) {
  constexpr int V = kVector<T>;
  const int vectors = pitch / V, rows = on.roi.bottom - on.roi.top;
  for (int i = thread(); i < count * rows * vectors; i += kThreads) {
    const int line = i / vectors, x = left + i % vectors * V;
    const T* row = on.data + (first + line / rows) * on.map.channel_stride + (on.roi.top + line % rows) * on.map.row_stride;
    float values[V];
    load_lanes(row + x, on.map.width - x, on.map.vectors, values);
#pragma unroll
    for (int k = 0; k < V; ++k) staged[i * V + k] = values[k];
  }
}

template <class T>
__device__ inline void pool_planar(const RoiOnMap<T>& on, float* staged) {
  constexpr int V = kVector<T>;
  const int left = on.roi.left / V * V, pitch = ceil_div(on.roi.right - left, V) * V;
  const int rows = on.roi.bottom - on.roi.top, cells = rows * pitch;
  if (rows > kCellsOfChannel / pitch) return pool_from_memory(on);
  const int fitting = smaller(kStagedCells / cells, kTileChannels);
  const int step = fitting / kPlanarChannels * kPlanarChannels;
  for (int first = 0; first < on.channels; first += step) {
    const int count = smaller(on.channels - first, step);
    __syncthreads();
    stage(on, first, count, left, pitch, staged);
    __syncthreads();
    on.template pool<kPlanarChannels>(first, count, [&](int channel, int y, int x, float(&values)[kPlanarChannels]) {
      const float* cell = staged + channel * cells + (y - on.roi.top) * pitch + x - left;
#pragma unroll
      for (int k = 0; k < kPlanarChannels; ++k)
        values[k] = channel + k < count ? cell[k * cells] : 0.0f;
    });
  }
}

// One block a box, in the order of `call.rois`, and kTileChannels channels.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) pool_rois(const __grid_constant__ RoiAlign call, T* pooled) {
  GKD_SHARED(float, staged, kStagedCells);
  const Roi roi = call.rois[blockIdx.x];
  const int first_channel = static_cast<int>(blockIdx.y) * kTileChannels, channels = call.maps.channels;
  if (roi.top == roi.bottom || roi.left == roi.right) {
    const int bins = call.bins[0] * call.bins[1];
    T* out = pooled + (static_cast<int64_t>(roi.box) * channels + first_channel) * bins;
    for (int i = thread(); i < smaller(channels - first_channel, kTileChannels) * bins; i += kThreads) assign(out[i], 0.0f);
    return;
  }
  const RoiOnMap<T> on(call, roi, first_channel, pooled);
  if (on.map.planar)
    pool_planar(on, staged);
  else
    pool_interleaved(on);
}

// Bins whose gradients are fetched together, a row of them to each warp.
constexpr int kPatch = 8;
// What a box is to a tile is worked out once for the channels of a block: as many as the sums of fit into registers.
template <class T>
constexpr int kChunks = sizeof(T) == 2 ? 2 : 1;
template <class T>
constexpr int kBlockChannels = kChunks<T>* kTileChannels;
template <class T>
constexpr int kPatchPitch = kBlockChannels<T> + 4;  // vectors of channels stay aligned, bins a bank apart
static_assert(kPatch == kWarps && kTileColumns == 32 && kTileRows * 4 == 32, "a ballot tells what a bin takes of a tile");

struct Patch {
  float* gradient;          // [kPatch * kPatch][kPatchPitch]: a channel of a bin
  float* rows;              // [kPatch][kTileRows]: what a bin takes of a row
  float* columns;           // [kPatch][kTileColumns]
  unsigned* taken_rows;     // [kPatch]: a bit for each row that a bin takes of
  unsigned* taken_columns;  // [kPatch]
};

__device__ inline void find_weights(const RoiAlign& call, const Axis& along_rows, const Axis& along_columns, const Tile& tile,
                                    int r, int rows, int c, int columns, const Patch& patch) {
  const int of_rows = thread() / kTileRows;
  if (warp() < kPatch * kTileRows / 32) {
    const float weight =
        of_rows < rows ? along_rows.weight(r + of_rows, tile.top + thread() % kTileRows, call.sampling_ratio) : 0.0f;
    patch.rows[thread()] = weight;
    const unsigned taken = __ballot_sync(kFullWarp, weight != 0.0f);
    if (thread() % kTileRows == 0) patch.taken_rows[of_rows] = taken >> lane() & ((1u << kTileRows) - 1);
  }
  const float weight = warp() < columns ? along_columns.weight(c + warp(), tile.left + lane(), call.sampling_ratio) : 0.0f;
  patch.columns[thread()] = weight;
  const unsigned taken = __ballot_sync(kFullWarp, weight != 0.0f);
  if (lane() == 0) patch.taken_columns[warp()] = taken;
}

template <class T>
__device__ inline void fetch_patch(const RoiAlign& call, const Roi& roi, const Tile& tile, const T* gradient,
                                   int first_channel, int r, int rows, int c, int columns, const Patch& patch) {
  const FeatureMap& map = call.maps.maps[tile.level];
  const Axis along_rows(call, roi, map.height, 0), along_columns(call, roi, map.width, 1);
  const int channels = smaller(call.maps.channels - first_channel, kBlockChannels<T>), bins = call.bins[0] * call.bins[1];
  const int64_t channel_of_box = static_cast<int64_t>(roi.box) * call.maps.channels + first_channel;
  const T* of_patch = gradient + channel_of_box * bins + r * call.bins[1] + c;
  const float share = 1.0f / (static_cast<float>(along_rows.samples) * static_cast<float>(along_columns.samples));
  // A lane has the same bins of all channels of its warp, so that no index is divided. A channel that there is not repeats the
  // last one, and is not stored.
  for (int bin = lane(); bin < rows * kPatch; bin += 32) {
    const int row = bin / kPatch, column = bin % kPatch;
    if (column >= columns) continue;
    const T* of_bin = of_patch + row * call.bins[1] + column;
    float* to = patch.gradient + bin * kPatchPitch<T> + warp();
#pragma unroll 4
    for (int k = 0; k < kBlockChannels<T> / kWarps; ++k)
      to[k * kWarps] = to_float(of_bin[smaller(warp() + k * kWarps, channels - 1) * bins]) * share;
  }
  find_weights(call, along_rows, along_columns, tile, r, rows, c, columns, patch);
}

template <bool planar, class T>
__device__ inline void add_patch(GradientTile<T> (&own)[kChunks<T>], int rows, int columns, const Patch& patch) {
  constexpr int V = kVector<T>, kRows = GradientTile<T>::kRows, kWarpColumns = 32 / GradientTile<T>::kGroups;
  const int along = own[0].along, across = own[0].across;
  const float* vectors = planar ? patch.columns + along : patch.gradient + along;
  const float* factors = planar ? patch.gradient + across : patch.columns + across;
  constexpr int vector_pitch = planar ? kTileColumns : kPatchPitch<T>;
  constexpr int factor_pitch = planar ? kPatchPitch<T> : kTileColumns;
  constexpr int vector_chunk = planar ? 0 : kTileChannels, factor_chunk = planar ? kTileChannels : 0;
  const unsigned own_rows = ((1u << kRows) - 1) << own[0].row;
  const unsigned own_columns = planar ? ~0u : ((1u << kWarpColumns) - 1) << across / kWarpColumns * kWarpColumns;
#pragma unroll 1
  for (int r = 0; r < rows; ++r) {
    if (!(patch.taken_rows[r] & own_rows)) continue;
    const int bin = r * kPatch;  // of the gradient, whose rows differ; those of the columns' weights do not
    float inner[kChunks<T>][V] = {};
#pragma unroll 1
    for (int c = 0; c < columns; ++c) {
      if (!(patch.taken_columns[c] & own_columns)) continue;
      const float* vector = vectors + (planar ? c : bin + c) * vector_pitch;
      const float* factor = factors + (planar ? bin + c : c) * factor_pitch;
#pragma unroll
      for (int chunk = 0; chunk < kChunks<T>; ++chunk) {
        float lanes[V];
        load_vectors(vector + chunk * vector_chunk, lanes);
#pragma unroll
        for (int k = 0; k < V; ++k) inner[chunk][k] += factor[chunk * factor_chunk] * lanes[k];
      }
    }
    float weights[kRows];
    load_vectors(patch.rows + r * kTileRows + own[0].row, weights);
#pragma unroll
    for (int chunk = 0; chunk < kChunks<T>; ++chunk)
#pragma unroll
      for (int j = 0; j < kRows; ++j)
#pragma unroll
        for (int k = 0; k < V; ++k) own[chunk].sum[j][k] += weights[j] * inner[chunk][k];
  }
}

// The boxes that touch a tile, of up to kThreads boxes from `first` on, in order.
__device__ inline int find_touching(const Roi* rois, int first, int past, const Tile& tile, Roi* touching) {
  const int i = first + thread();
  Roi roi{};
  if (i < past) roi = rois[i];
  const bool touches =
      roi.left < tile.right && roi.right > tile.left && roi.top < tile.bottom && roi.bottom > tile.top;
  const Rank rank = block_rank(touches);
  if (touches) touching[rank.before] = roi;
  __syncthreads();
  return rank.total;
}

// One block a tile of the gradient and kBlockChannels channels.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) gather_rois(const __grid_constant__ RoiAlign call, const T* gradient) {
  GKD_SHARED(Roi, touching, kThreads);
  GKD_SHARED(float, patch_gradient, kPatch* kPatch* kPatchPitch<T>);
  GKD_SHARED(float, patch_rows, kPatch* kTileRows);
  GKD_SHARED(float, patch_columns, kPatch* kTileColumns);
  GKD_SHARED(unsigned, taken_rows, kPatch);
  GKD_SHARED(unsigned, taken_columns, kPatch);
  const Patch patch{patch_gradient, patch_rows, patch_columns, taken_rows, taken_columns};
  GKD_SHARED(Tile, of_block, 1);  // in registers it would have others spilled
  if (thread() == 0) of_block[0] = find_tile(call.maps, blockIdx.x);
  __syncthreads();
  const Tile& tile = of_block[0];
  const FeatureMap& map = call.maps.maps[tile.level];
  const int first_channel = static_cast<int>(blockIdx.y) * kBlockChannels<T>;
  const int group = tile.level * call.maps.images + tile.image, past = call.starts[group + 1];
  GradientTile<T> own[kChunks<T>];
  for (int first = call.starts[group]; first < past; first += kThreads) {
    const int count = find_touching(call.rois, first, past, tile, touching);
    for (int i = 0; i < count; ++i) {
      const Roi& roi = touching[i];
      const SampleRange r = Axis(call, roi, map.height, 0).bins_over(tile.top, tile.bottom, call.bins[0]);
      const SampleRange c = Axis(call, roi, map.width, 1).bins_over(tile.left, tile.right, call.bins[1]);
      for (int row = r.first; row < r.past; row += kPatch)
        for (int column = c.first; column < c.past; column += kPatch) {
          const int rows = smaller(r.past - row, kPatch), columns = smaller(c.past - column, kPatch);
          fetch_patch(call, roi, tile, gradient, first_channel, row, rows, column, columns, patch);
          __syncthreads();
          if (map.planar)
            add_patch<true, T>(own, rows, columns, patch);
          else
            add_patch<false, T>(own, rows, columns, patch);
          __syncthreads();
        }
    }
  }
#pragma unroll
  for (int chunk = 0; chunk < kChunks<T>; ++chunk)
    own[chunk].store(map, tile, first_channel + chunk * kTileChannels, call.maps.channels);
}

void place(const RoiAlign& call, void* stream) {
  const unsigned groups = call.maps.levels * call.maps.images + 1;
  GKD_LAUNCH(place_rois, dim3(groups), kThreads, stream, call);
}

template <class T>
void forward(const RoiAlign& call, T* pooled, void* stream) {
  const unsigned chunks = ceil_div(call.maps.channels, kTileChannels), boxes = call.boxes;
  if (chunks == 0 || boxes == 0) return;
  place(call, stream);
  GKD_LAUNCH(pool_rois<T>, dim3(boxes, chunks), kThreads, stream, call, pooled);
}

template <class T>
void backward(const RoiAlign& call, const T* gradient, void* stream) {
  const unsigned chunks = ceil_div(call.maps.channels, kBlockChannels<T>);
  const unsigned tiles = static_cast<unsigned>(count_tiles(call.maps));
  if (chunks == 0 || tiles == 0) return;
  place(call, stream);
  GKD_LAUNCH(gather_rois<T>, dim3(tiles, chunks), kThreads, stream, call, gradient);
}

}  // namespace

const char* multiscale_roi_align(const RoiAlign& call, Element element, void* pooled, void* stream) {
  with_element(element, [&](auto tag) { forward(call, static_cast<decltype(tag)*>(pooled), stream); });
  return launch_error();
}

const char* multiscale_roi_align_backward(const RoiAlign& call, Element element, const void* gradient, void* stream) {
  with_element(element, [&](auto tag) { backward(call, static_cast<const decltype(tag)*>(gradient), stream); });
  return launch_error();
}

}  // namespace gkd::cuda

// A 3 x 3 convolution without stride of rows x columns x channels, in fp32, as Winograd's F(4 x 4, 3 x 3) (Lavin & Gray
// 2016, with the points 0, 1, -1, 2, -2): 6 x 6 inputs become 36 values, each has a matrix product over the channels of
// its own, and the 36 results become 4 x 4 outputs. That is 36 products where the definition has 144.
//
// Each sum is in the order of the channels, whatever the number of threads and of images.
#include <algorithm>
#include <cstdint>

#include "vectors.h"

static constexpr int OUT = 4, SIDE = 6, POINTS = SIDE * SIDE;
static constexpr int BLOCK = 16, VECS = BLOCK / LANES;  // output channels that are summed together,
#ifdef __AVX512F__
static constexpr int ROWS = 12;  // for so many tiles: as many sums as there are registers for
#else
static constexpr int ROWS = 6;
#endif

// How the tiles are shared out: `most` of them are in work at a time, by so many threads.
struct Shares {
  int64_t tiles, most, blocks, threads;

  // Few tiles at a time, so that their values stay in the second cache; more where the filters are so large that they come
  // from memory each time; and no more than there are for each thread.
  Shares(int64_t tiles_, int64_t channels, int64_t out, int64_t threads_) : tiles(tiles_) {
    static_assert(12 % ROWS == 0 && 48 % ROWS == 0, "products are of ROWS tiles");
    const int64_t each = (tiles + threads_ - 1) / threads_, whole = (each + ROWS - 1) / ROWS * ROWS;
    most = std::max<int64_t>(ROWS, std::min<int64_t>(whole, channels + out > 256 ? 48 : 12));
    blocks = (tiles + most - 1) / most;
    threads = std::max<int64_t>(1, std::min(blocks, threads_));
  }
};

static inline int64_t tiles_of(int64_t images, int64_t out_height, int64_t out_width) {
  return images * ((out_height + OUT - 1) / OUT) * ((out_width + OUT - 1) / OUT);
}

// From one of the 36 values to the next. A line more than they take: else they would all want the same lines of the cache.
static inline int64_t plane(int64_t tiles, int64_t channels) { return tiles * channels + 16; }

// What the tile to the right takes: short pieces of many rows, which the processor does not foresee.
static inline void fetch(const float* from, int64_t count) {
  for (int64_t c = 0; c < count; c += 16) __builtin_prefetch(from + c);
}

// Which of SIDE places from `at` on are inside.
struct Places {
  int64_t first, end;
  bool all() const { return end - first == SIDE; }
};

static inline Places inside(int64_t at, int64_t size) {
  return {std::max<int64_t>(0, -at), std::min<int64_t>(SIDE, size - at)};
}

// B^T d of six values that are `step` apart, to six that are `every` apart.
static inline void values_of(const vec* d, int step, vec* v, int every) {
  const vec even = d[4 * step] - 4.0f * d[2 * step], odd = d[3 * step] - 4.0f * d[step];
  const vec near = d[4 * step] - d[2 * step], far = 2.0f * (d[3 * step] - d[step]);
  v[0] = 4.0f * d[0] - 5.0f * d[2 * step] + d[4 * step];
  v[every] = even + odd;
  v[2 * every] = even - odd;
  v[3 * every] = near + far;
  v[4 * every] = near - far;
  v[5 * every] = 4.0f * d[step] - 5.0f * d[3 * step] + d[5 * step];
}

// A^T m of six, to four.
static inline void outputs_of(const vec* m, int step, vec* y, int every) {
  const vec a = m[step] + m[2 * step], b = m[step] - m[2 * step];
  const vec c = m[3 * step] + m[4 * step], d = m[3 * step] - m[4 * step];
  y[0] = m[0] + a + c;
  y[every] = b + 2.0f * d;
  y[2 * every] = a + 4.0f * c;
  y[3 * every] = b + 8.0f * d + m[5 * step];
}

// The 36 values of LANES channels of a tile, to places `plane` apart.
static inline void analyse(const float* from, int64_t row, int64_t column, const Places& rows, const Places& columns,
                           float* v, int64_t plane) {
  vec d[POINTS], half[POINTS];
  if (rows.all() && columns.all()) {
    for (int i = 0; i < SIDE; ++i)
      for (int j = 0; j < SIDE; ++j) d[i * SIDE + j] = load(from + i * row + j * column);
  } else {
    for (int p = 0; p < POINTS; ++p) d[p] = vec{};
    for (int64_t i = rows.first; i < rows.end; ++i)
      for (int64_t j = columns.first; j < columns.end; ++j) d[i * SIDE + j] = load(from + i * row + j * column);
  }
  for (int j = 0; j < SIDE; ++j) values_of(d + j, SIDE, half + j, SIDE);
  for (int i = 0; i < SIDE; ++i) values_of(half + i * SIDE, 1, d + i * SIDE, 1);
  for (int p = 0; p < POINTS; ++p) store(v + p * plane, d[p]);
}

// LANES channels of the `rows` x `columns` outputs of a tile.
static inline void synthesise(const float* m, int64_t plane, const float* bias, float* to, int64_t row, int64_t column,
                              int64_t rows, int64_t columns) {
  vec d[POINTS], half[OUT * SIDE], y[OUT * OUT];
  for (int p = 0; p < POINTS; ++p) d[p] = load(m + p * plane);
  for (int j = 0; j < SIDE; ++j) outputs_of(d + j, SIDE, half + j, SIDE);
  for (int i = 0; i < OUT; ++i) outputs_of(half + i * SIDE, 1, y + i * OUT, 1);
  const vec shift = bias ? load(bias) : vec{};
  if (rows == OUT && columns == OUT) {
    for (int i = 0; i < OUT; ++i)
      for (int j = 0; j < OUT; ++j) store(to + i * row + j * column, y[i * OUT + j] + shift);
  } else {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) store(to + i * row + j * column, y[i * OUT + j] + shift);
  }
}

// ROWS tiles by BLOCK output channels: v (ROWS, channels) times u (channels, BLOCK).
static inline void product(const float* v, const float* u, float* m, int64_t channels, int64_t out) {
  vec sum[ROWS][VECS] = {};
  for (int64_t c = 0; c < channels; ++c, u += BLOCK) {
    vec w[VECS];
    for (int k = 0; k < VECS; ++k) w[k] = load(u + k * LANES);
    for (int r = 0; r < ROWS; ++r) {
      const vec value = v[r * channels + c] - vec{};  // minus: plus 0 is an addition, as -0 + 0 is not -0
      for (int k = 0; k < VECS; ++k) sum[r][k] += value * w[k];
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int k = 0; k < VECS; ++k) store(m + r * out + k * LANES, sum[r][k]);
}

static inline int64_t own_scratch(const Shares& shares, int64_t channels, int64_t out) {
  return POINTS * (plane(shares.most, channels) + plane(shares.most, out));
}

// How many floats `winograd` needs beside what it reads and writes.
extern "C" int64_t winograd_scratch(int64_t images, int64_t out_height, int64_t out_width, int64_t channels, int64_t out,
                                    int threads) {
  const Shares shares(tiles_of(images, out_height, out_width), channels, out, threads);
  return shares.threads * own_scratch(shares, channels, out);
}

// Whether this was built with the vectors that it is measured with.
extern "C" int winograd_has_vectors() {
#ifdef __AVX2__
  return 1;
#else
  return 0;
#endif
}

// x (images, height, width, channels) to y (images, out_height, out_width, out), with `before` zeros above and left of x.
// u (36, out / 16, channels, 16): the filters' values. bias (out,) or null. channels and out are multiples of 16.
extern "C" void winograd(const float* x, const float* u, const float* bias, float* y, float* scratch, int64_t images,
                         int64_t height, int64_t width, int64_t out_height, int64_t out_width, int64_t channels,
                         int64_t out, int64_t before, int threads) {
  const int64_t down = (out_height + OUT - 1) / OUT, across = (out_width + OUT - 1) / OUT;
  const Shares shares(tiles_of(images, out_height, out_width), channels, out, threads);
  const int64_t tiles = shares.tiles, most = shares.most;
  const int64_t from_value = plane(most, channels), to_value = plane(most, out);
#pragma omp parallel for num_threads(shares.threads) schedule(static)
  for (int64_t thread = 0; thread < shares.threads; ++thread) {
    float* v = scratch + thread * own_scratch(shares, channels, out);
    float* m = v + POINTS * from_value;
    const int64_t begin = shares.blocks * thread / shares.threads, end = shares.blocks * (thread + 1) / shares.threads;
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * most, count = std::min(most, tiles - first);
      if (count < most) std::fill(v, m, 0.0f);  // numbers also where there are no tiles
      for (int64_t t = 0; t < count; ++t) {
        const int64_t tile = first + t, row = tile / across % down * OUT - before, column = tile % across * OUT - before;
        const Places rows = inside(row, height), columns = inside(column, width);
        const float* from = x + ((tile / (down * across) * height + row) * width + column) * channels;
        for (int i = 0; i < SIDE; ++i) fetch(from + (i * width + SIDE) * channels, OUT * channels);
        for (int64_t c = 0; c < channels; c += LANES)
          analyse(from + c, width * channels, channels, rows, columns, v + t * channels + c, from_value);
      }
      for (int p = 0; p < POINTS; ++p)
        for (int64_t o = 0; o < out; o += BLOCK)
          for (int64_t t = 0; t < count; t += ROWS)
            product(v + p * from_value + t * channels, u + (p * out + o) * channels, m + p * to_value + t * out + o,
                    channels, out);
      for (int64_t t = 0; t < count; ++t) {
        const int64_t tile = first + t, row = tile / across % down * OUT, column = tile % across * OUT;
        const int64_t rows = std::min<int64_t>(OUT, out_height - row);
        const int64_t columns = std::min<int64_t>(OUT, out_width - column);
        float* to = y + ((tile / (down * across) * out_height + row) * out_width + column) * out;
        for (int i = 0; i < OUT; ++i) fetch(to + (i * out_width + OUT) * out, OUT * out);
        for (int64_t o = 0; o < out; o += LANES)
          synthesise(m + t * out + o, to_value, bias ? bias + o : nullptr, to + o, out_width * out, out, rows, columns);
      }
    }
  }
}

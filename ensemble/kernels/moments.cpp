// Three passes over rows x channels values, each reading and writing every value once:
//   moments           per-channel sums of (x - mean) and (x - mean)^2
//   affine + moments  the same, and y = scale x + shift
//   their gradient    dx = scale dy + slope x + offset
//
// Rows are cut into blocks whose size depends on the shape alone. A block accumulates in fp32, blocks are added
// in fp64 in their order, so the result does not depend on the number of threads.
// OpenMP symbols are left to the runtime that torch has loaded: a second thread pool would fight with it.
#include <cstdint>
#include <cstring>
#include <vector>

#define LANES 16
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t wide __attribute__((vector_size(4 * LANES)));
typedef uint16_t half __attribute__((vector_size(2 * LANES)));

static inline vec load(const float* p) {
  vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

static inline vec load(const uint16_t* p) {  // bf16 is the upper half of fp32
  half h;
  std::memcpy(&h, p, sizeof h);
  wide w = __builtin_convertvector(h, wide) << 16;
  vec v;
  std::memcpy(&v, &w, sizeof v);
  return v;
}

static inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }

static inline void store(uint16_t* p, vec v) {  // round to nearest, ties to even; NaN stays NaN
  wide w;
  std::memcpy(&w, &v, sizeof w);
  wide rounded = (w + 0x7fff + ((w >> 16) & 1)) >> 16;
  wide quiet = (w >> 16) | 0x40;
  wide nan = (wide)(v != v);
  half h = __builtin_convertvector((nan & quiet) | (~nan & rounded), half);
  std::memcpy(p, &h, sizeof h);
}

// A row of up to LANES values, for the channels left over: padded with zeros.
template <typename T>
static inline vec load_some(const T* p, int64_t count) {
  T padded[LANES] = {};
  std::memcpy(padded, p, count * sizeof(T));
  return load(padded);
}

template <typename T>
static inline void store_some(T* p, vec v, int64_t count) {
  T padded[LANES];
  store(padded, v);
  std::memcpy(p, padded, count * sizeof(T));
}

// CHUNKS * LANES channels (or `some` < LANES of them) from `x` on, all rows of the block. Writes y where WRITE.
template <int CHUNKS, bool SOME, bool WRITE, typename T>
static inline void chunk(const T* x, T* y, const float* mean, const float* scale, const float* shift, int64_t rows,
                         int64_t channels, int64_t some, float* sum, float* square) {
  vec m[CHUNKS], a[CHUNKS] = {}, b[CHUNKS] = {}, s[2][CHUNKS] = {}, q[2][CHUNKS] = {};
  for (int k = 0; k < CHUNKS; ++k) {
    m[k] = SOME ? load_some(mean, some) : load(mean + k * LANES);
    if (WRITE) a[k] = SOME ? load_some(scale, some) : load(scale + k * LANES);
    if (WRITE) b[k] = SOME ? load_some(shift, some) : load(shift + k * LANES);
  }
  auto row = [&](int64_t r, int u) {  // two interleaved accumulators hide the latency of the additions
    for (int k = 0; k < CHUNKS; ++k) {
      const int64_t at = r * channels + k * LANES;
      vec v = SOME ? load_some(x + at, some) : load(x + at);
      if (WRITE && SOME) store_some(y + at, v * a[k] + b[k], some);
      if (WRITE && !SOME) store(y + at, v * a[k] + b[k]);
      vec d = v - m[k];
      s[u][k] += d;
      q[u][k] += d * d;
    }
  };
  int64_t r = 0;
  for (; r + 2 <= rows; r += 2) {
    row(r, 0);
    row(r + 1, 1);
  }
  if (r < rows) row(r, 0);
  for (int k = 0; k < CHUNKS; ++k) {
    if (SOME) {
      store_some(sum, s[0][k] + s[1][k], some);
      store_some(square, q[0][k] + q[1][k], some);
    } else {
      store(sum + k * LANES, s[0][k] + s[1][k]);
      store(square + k * LANES, q[0][k] + q[1][k]);
    }
  }
}

template <bool WRITE, typename T>
static void block(const T* x, T* y, const float* mean, const float* scale, const float* shift, int64_t rows,
                  int64_t channels, float* sum, float* square) {
  int64_t c = 0;
  for (; c + 4 * LANES <= channels; c += 4 * LANES)
    chunk<4, false, WRITE>(x + c, y + c, mean + c, scale + c, shift + c, rows, channels, 0, sum + c, square + c);
  for (; c + LANES <= channels; c += LANES)
    chunk<1, false, WRITE>(x + c, y + c, mean + c, scale + c, shift + c, rows, channels, 0, sum + c, square + c);
  if (c < channels)
    chunk<1, true, WRITE>(x + c, y + c, mean + c, scale + c, shift + c, rows, channels, channels - c, sum + c, square + c);
}

static inline int64_t rows_per_block(int64_t channels) {
  const int64_t rows = 16384 / channels;  // a block of x stays in the first cache; few rows keep fp32 sums exact
  return rows < 64 ? 64 : rows > 512 ? 512 : rows;
}

template <bool WRITE, typename T>
static void moments(const void* x_, void* y_, const float* mean, const float* scale, const float* shift, int64_t rows,
                    int64_t channels, float* out, int threads) {
  const T* x = static_cast<const T*>(x_);
  T* y = static_cast<T*>(y_);
  const int64_t per_block = rows_per_block(channels);
  const int64_t blocks = (rows + per_block - 1) / per_block;
  std::vector<float> partial(size_t(blocks * 2 * channels));
#pragma omp parallel for num_threads(threads) schedule(static) if (blocks > 1)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = b * per_block;
    const int64_t count = first + per_block < rows ? per_block : rows - first;
    float* p = partial.data() + b * 2 * channels;
    block<WRITE>(x + first * channels, WRITE ? y + first * channels : y, mean, scale, shift, count, channels, p,
                 p + channels);
  }
  std::vector<double> total(size_t(2 * channels), 0.0);
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t c = 0; c < 2 * channels; ++c) total[c] += partial[b * 2 * channels + c];
  for (int64_t c = 0; c < 2 * channels; ++c) out[c] = float(total[c]);
}

template <typename T>
static void gradient(const void* dy_, const void* x_, const float* scale, const float* slope, const float* offset,
                     int64_t rows, int64_t channels, void* dx_, int threads) {
  const T* dy = static_cast<const T*>(dy_);
  const T* x = static_cast<const T*>(x_);
  T* dx = static_cast<T*>(dx_);
  const int64_t per_block = rows_per_block(channels);
  const int64_t blocks = (rows + per_block - 1) / per_block;
#pragma omp parallel for num_threads(threads) schedule(static) if (blocks > 1)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t last = (b + 1) * per_block < rows ? (b + 1) * per_block : rows;
    int64_t c = 0;
    for (; c + LANES <= channels; c += LANES) {
      const vec a = load(scale + c), k = load(slope + c), o = load(offset + c);
      for (int64_t r = b * per_block; r < last; ++r) {
        const int64_t at = r * channels + c;
        store(dx + at, load(dy + at) * a + (load(x + at) * k + o));
      }
    }
    if (const int64_t some = channels - c) {
      const vec a = load_some(scale + c, some), k = load_some(slope + c, some), o = load_some(offset + c, some);
      for (int64_t r = b * per_block; r < last; ++r) {
        const int64_t at = r * channels + c;
        store_some(dx + at, load_some(dy + at, some) * a + (load_some(x + at, some) * k + o), some);
      }
    }
  }
}

extern "C" {
void moments_f32(const void* x, const float* mean, int64_t rows, int64_t channels, float* out, int threads) {
  moments<false, float>(x, nullptr, mean, mean, mean, rows, channels, out, threads);
}
void moments_bf16(const void* x, const float* mean, int64_t rows, int64_t channels, float* out, int threads) {
  moments<false, uint16_t>(x, nullptr, mean, mean, mean, rows, channels, out, threads);
}
void affine_moments_f32(const void* x, void* y, const float* mean, const float* scale, const float* shift, int64_t rows,
                        int64_t channels, float* out, int threads) {
  moments<true, float>(x, y, mean, scale, shift, rows, channels, out, threads);
}
void affine_moments_bf16(const void* x, void* y, const float* mean, const float* scale, const float* shift,
                         int64_t rows, int64_t channels, float* out, int threads) {
  moments<true, uint16_t>(x, y, mean, scale, shift, rows, channels, out, threads);
}
void gradient_f32(const void* dy, const void* x, const float* scale, const float* slope, const float* offset,
                  int64_t rows, int64_t channels, void* dx, int threads) {
  gradient<float>(dy, x, scale, slope, offset, rows, channels, dx, threads);
}
void gradient_bf16(const void* dy, const void* x, const float* scale, const float* slope, const float* offset,
                   int64_t rows, int64_t channels, void* dx, int threads) {
  gradient<uint16_t>(dy, x, scale, slope, offset, rows, channels, dx, threads);
}
}

// Two passes over rows x channels values, each reading and writing every value once:
//   forward   per-channel sums of (x - mean) and (x - mean)^2, and y = scale x + shift, or what the network does next
//             with that: relu(scale x + shift), relu(scale x + shift + z)
//   gradient  dx = scale g + slope x + offset, where g is dy behind the relu's gate; dz = g
//
// Rows are cut into blocks whose size depends on the shape alone. A block accumulates in fp32, blocks are added
// in fp64 in their order, so the result does not depend on the number of threads.
// OpenMP symbols are left to the runtime that torch has loaded: a second thread pool would fight with it.
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

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
#ifdef __AVX512BF16__
  const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &h, sizeof h);
#else
  wide w;
  std::memcpy(&w, &v, sizeof w);
  wide rounded = (w + 0x7fff + ((w >> 16) & 1)) >> 16;
  wide quiet = (w >> 16) | 0x40;
  wide nan = (wide)(v != v);
  half h = __builtin_convertvector((nan & quiet) | (~nan & rounded), half);
  std::memcpy(p, &h, sizeof h);
#endif
}

// `v` where `keep`, else 0.
static inline vec where(wide keep, vec v) {
  wide w;
  std::memcpy(&w, &v, sizeof w);
  w &= keep;
  std::memcpy(&v, &w, sizeof v);
  return v;
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

// What becomes of scale x + shift.
enum Form { AFFINE, RELU, ADD_RELU };

// Per-channel values: whole vectors, or `some` < LANES of them.
template <bool SOME, typename T>
static inline vec get(const T* p, int64_t some) {
  return SOME ? load_some(p, some) : load(p);
}

template <bool SOME, typename T>
static inline void put(T* p, vec v, int64_t some) {
  if (SOME)
    store_some(p, v, some);
  else
    store(p, v);
}

struct Channels {  // (channels,) each
  const float *mean, *scale, *shift, *slope, *offset;
};

// CHUNKS * LANES channels (or `some` < LANES of them) from `c` on, of `rows` rows that begin at x, y and z.
template <int CHUNKS, bool SOME, Form FORM, typename T>
static inline void chunk(const T* x, const T* z, T* y, const Channels& f, int64_t rows, int64_t channels, int64_t c,
                         int64_t some, float* sum, float* square) {
  vec m[CHUNKS], a[CHUNKS], b[CHUNKS], s[2][CHUNKS] = {}, q[2][CHUNKS] = {};
  for (int k = 0; k < CHUNKS; ++k) {
    m[k] = get<SOME>(f.mean + c + k * LANES, some);
    a[k] = get<SOME>(f.scale + c + k * LANES, some);
    b[k] = get<SOME>(f.shift + c + k * LANES, some);
  }
  auto row = [&](int64_t r, int u) {  // two interleaved accumulators hide the latency of the additions
    for (int k = 0; k < CHUNKS; ++k) {
      const int64_t at = r * channels + c + k * LANES;
      const vec v = get<SOME>(x + at, some);
      vec out = v * a[k] + b[k];
      if (FORM == ADD_RELU) out += get<SOME>(z + at, some);
      if (FORM != AFFINE) out = where(~(wide)(out < 0), out);  // NaN stays NaN
      put<SOME>(y + at, out, some);
      const vec d = v - m[k];
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
    put<SOME>(sum + c + k * LANES, s[0][k] + s[1][k], some);
    put<SOME>(square + c + k * LANES, q[0][k] + q[1][k], some);
  }
}

static inline int64_t rows_per_block(int64_t channels) {
  const int64_t rows = 16384 / channels;  // a block of x stays in the first cache; few rows keep fp32 sums exact
  return rows < 64 ? 64 : rows > 512 ? 512 : rows;
}

template <Form FORM, typename T>
static void forward(const void* x_, const void* z_, void* y_, const Channels& f, int64_t rows, int64_t channels,
                    float* out, int threads) {
  const int64_t per_block = rows_per_block(channels);
  const int64_t blocks = (rows + per_block - 1) / per_block;
  std::vector<float> partial(size_t(blocks * 2 * channels));
#pragma omp parallel for num_threads(threads) schedule(static) if (blocks > 1)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = b * per_block;
    const int64_t count = first + per_block < rows ? per_block : rows - first;
    const T* x = static_cast<const T*>(x_) + first * channels;
    const T* z = FORM == ADD_RELU ? static_cast<const T*>(z_) + first * channels : nullptr;
    T* y = static_cast<T*>(y_) + first * channels;
    float *sum = partial.data() + b * 2 * channels, *square = sum + channels;
    int64_t c = 0;
    for (; c + 4 * LANES <= channels; c += 4 * LANES)
      chunk<4, false, FORM>(x, z, y, f, count, channels, c, 0, sum, square);
    for (; c + LANES <= channels; c += LANES) chunk<1, false, FORM>(x, z, y, f, count, channels, c, 0, sum, square);
    if (c < channels) chunk<1, true, FORM>(x, z, y, f, count, channels, c, channels - c, sum, square);
  }
  std::vector<double> total(size_t(2 * channels), 0.0);
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t c = 0; c < 2 * channels; ++c) total[c] += partial[b * 2 * channels + c];
  for (int64_t c = 0; c < 2 * channels; ++c) out[c] = float(total[c]);
}

// dx, and for ADD_RELU dz = g. The gate of RELU is computed again from x, that of ADD_RELU is read off y.
template <int CHUNKS, bool SOME, Form FORM, typename T>
static inline void gradient_chunk(const T* dy, const T* x, const T* y, T* dx, T* dz, const Channels& f, int64_t rows,
                                  int64_t channels, int64_t c, int64_t some) {
  vec a[CHUNKS], b[CHUNKS] = {}, p[CHUNKS], o[CHUNKS];
  for (int k = 0; k < CHUNKS; ++k) {
    a[k] = get<SOME>(f.scale + c + k * LANES, some);
    if (FORM == RELU) b[k] = get<SOME>(f.shift + c + k * LANES, some);
    p[k] = get<SOME>(f.slope + c + k * LANES, some);
    o[k] = get<SOME>(f.offset + c + k * LANES, some);
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int k = 0; k < CHUNKS; ++k) {
      const int64_t at = r * channels + c + k * LANES;
      const vec v = get<SOME>(x + at, some);
      vec g = get<SOME>(dy + at, some);
      if (FORM == RELU) g = where((wide)(v * a[k] + b[k] > 0), g);
      if (FORM == ADD_RELU) {
        g = where((wide)(get<SOME>(y + at, some) > 0), g);
        put<SOME>(dz + at, g, some);
      }
      put<SOME>(dx + at, g * a[k] + (v * p[k] + o[k]), some);
    }
}

template <Form FORM, typename T>
static void gradient(const void* dy_, const void* x_, const void* y_, void* dx_, void* dz_, const Channels& f,
                     int64_t rows, int64_t channels, int threads) {
  const int64_t per_block = rows_per_block(channels);
  const int64_t blocks = (rows + per_block - 1) / per_block;
#pragma omp parallel for num_threads(threads) schedule(static) if (blocks > 1)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = b * per_block;
    const int64_t count = first + per_block < rows ? per_block : rows - first;
    const T* dy = static_cast<const T*>(dy_) + first * channels;
    const T* x = static_cast<const T*>(x_) + first * channels;
    const T* y = FORM == ADD_RELU ? static_cast<const T*>(y_) + first * channels : nullptr;
    T* dx = static_cast<T*>(dx_) + first * channels;
    T* dz = FORM == ADD_RELU ? static_cast<T*>(dz_) + first * channels : nullptr;
    int64_t c = 0;
    for (; c + 4 * LANES <= channels; c += 4 * LANES)
      gradient_chunk<4, false, FORM>(dy, x, y, dx, dz, f, count, channels, c, 0);
    for (; c + LANES <= channels; c += LANES)
      gradient_chunk<1, false, FORM>(dy, x, y, dx, dz, f, count, channels, c, 0);
    if (c < channels) gradient_chunk<1, true, FORM>(dy, x, y, dx, dz, f, count, channels, c, channels - c);
  }
}

// Arrays that a form does not use are null. `half`: bf16, else fp32.
extern "C" void forward(int form, int half, const void* x, const void* z, void* y, const float* mean,
                        const float* scale, const float* shift, float* out, int64_t rows, int64_t channels,
                        int threads) {
  static constexpr decltype(&forward<AFFINE, float>) functions[][2] = {
      {forward<AFFINE, float>, forward<AFFINE, uint16_t>},
      {forward<RELU, float>, forward<RELU, uint16_t>},
      {forward<ADD_RELU, float>, forward<ADD_RELU, uint16_t>}};
  functions[form][half](x, z, y, {mean, scale, shift, nullptr, nullptr}, rows, channels, out, threads);
}

extern "C" void gradient(int form, int half, const void* dy, const void* x, const void* y, void* dx, void* dz,
                         const float* scale, const float* shift, const float* slope, const float* offset,
                         int64_t rows, int64_t channels, int threads) {
  static constexpr decltype(&gradient<AFFINE, float>) functions[][2] = {
      {gradient<AFFINE, float>, gradient<AFFINE, uint16_t>},
      {gradient<RELU, float>, gradient<RELU, uint16_t>},
      {gradient<ADD_RELU, float>, gradient<ADD_RELU, uint16_t>}};
  functions[form][half](dy, x, y, dx, dz, {nullptr, scale, shift, slope, offset}, rows, channels, threads);
}

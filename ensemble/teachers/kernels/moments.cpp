// Two passes over rows x channels values, each reading and writing every value once:
//   forward   per-channel sums of (x - mean) and (x - mean)^2, and y = f(a) with a = scale x + shift, or relu(a + z)
//   gradient  dx = scale g + slope x + offset, where g = f'(a) dy; dz = g
//
// Rows are cut into blocks whose size depends on the shape alone. A block accumulates in fp32, blocks are added
// in fp64 in their order, so the result does not depend on the number of threads.
// OpenMP symbols are left to the runtime that torch has loaded: a second thread pool would fight with it.
#include <cstdint>
#include <cstring>
#include <vector>

#include "vectors.h"

// What becomes of a = scale x + shift.
enum Form { AFFINE, RELU, ADD_RELU, RELU6, LEAKY_RELU, HARDSWISH, SILU, GELU };

static inline vec splat(float v) { return v - vec{}; }

// e^v to 2 units in the last place, for |v| <= 87; beyond it as at 87. NaN stays NaN.
static inline vec exponential(vec v) {
  v = v > 87.0f ? splat(87.0f) : v;
  v = v < -87.0f ? splat(-87.0f) : v;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, which its low bits then hold
  const vec shifted = v * 1.44269504f + magic;
  const vec n = shifted - magic;
  const vec r = (v - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts
  vec p = r * (1.0f / 5040) + 1.0f / 720;  // Taylor's series: |r| <= ln 2 / 2
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  wide bits, power;
  std::memcpy(&power, &shifted, sizeof power);
  std::memcpy(&bits, &p, sizeof bits);
  bits += power << 23;  // times 2^n
  vec out;
  std::memcpy(&out, &bits, sizeof out);
  return v == v ? out : v;
}

static inline vec sigmoid(vec a) { return 1.0f / (1.0f + exponential(-a)); }

// The normal distribution function: 1 - (t polynomial of t) e^(-a^2 / 2) / 2 for a > 0, to 1.5e-7 (Abramowitz & Stegun
// 7.1.26); `density` is e^(-a^2 / 2).
static inline vec normal(vec a, vec density) {
  const vec z = (a < 0 ? -a : a) * 0.70710678f;
  const vec t = 1.0f / (1.0f + 0.3275911f * z);
  vec p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const vec tail = 0.5f * p * t * density;
  return a < 0 ? tail : 1.0f - tail;
}

// f(a); ADD_RELU's a has the residual in it. `parameter` is the slope of LEAKY_RELU for a < 0.
template <Form FORM>
static inline vec value(vec a, float parameter) {
  if (FORM == RELU || FORM == ADD_RELU) return a < 0 ? vec{} : a;  // NaN stays NaN
  if (FORM == RELU6) {
    a = a < 0 ? vec{} : a;
    return a > 6.0f ? splat(6.0f) : a;
  }
  if (FORM == LEAKY_RELU) return a < 0 ? a * parameter : a;
  if (FORM == HARDSWISH) {
    const vec gate = (a + 3.0f) * (1.0f / 6);
    const vec inside = a <= -3.0f ? vec{} : a * gate;
    return a >= 3.0f ? a : inside;
  }
  if (FORM == SILU) return a * sigmoid(a);
  if (FORM == GELU) return a * normal(a, exponential(a * a * -0.5f));
  return a;
}

// f'(a) times dy, for the forms whose gate is computed again from x.
template <Form FORM>
static inline vec through(vec a, vec dy, float parameter) {
  if (FORM == RELU) return where((wide)(a > 0), dy);
  if (FORM == RELU6) return where((wide)(a > 0) & (wide)(a < 6.0f), dy);
  if (FORM == LEAKY_RELU) return a > 0 ? dy : dy * parameter;
  if (FORM == HARDSWISH) {
    const vec inside = dy * (a * (1.0f / 3) + 0.5f);
    const vec some = where((wide)(a > -3.0f), inside);
    return a >= 3.0f ? dy : some;
  }
  if (FORM == SILU) {
    const vec s = sigmoid(a);
    return dy * s * (1.0f + a * (1.0f - s));
  }
  if (FORM == GELU) {
    const vec density = exponential(a * a * -0.5f);
    return dy * (normal(a, density) + a * density * 0.39894228f);
  }
  return dy;
}

struct Frozen {  // (channels,) each, and the form's parameter
  const float *mean, *scale, *shift, *slope, *offset;
  float parameter;
};

// CHUNKS * LANES channels (or `some` < LANES of them) from `c` on, of `rows` rows that begin at x, y and z.
template <int CHUNKS, bool SOME, Form FORM, bool PAST, typename T>
static inline void chunk(const T* x, const T* z, T* y, const Frozen& f, int64_t rows, int64_t channels, int64_t c,
                         int64_t some, float* sum, float* square) {
  constexpr int ROWS = CHUNKS == 1 ? 2 : 1;  // sums side by side hide the latency of additions; more do not fit
  vec m[CHUNKS], a[CHUNKS], b[CHUNKS], s[ROWS][CHUNKS] = {}, q[ROWS][CHUNKS] = {};
  for (int k = 0; k < CHUNKS; ++k) {
    m[k] = get<SOME>(f.mean + c + k * LANES, some);
    a[k] = get<SOME>(f.scale + c + k * LANES, some);
    b[k] = get<SOME>(f.shift + c + k * LANES, some);
  }
  auto row = [&](int64_t r, int u) {
    for (int k = 0; k < CHUNKS; ++k) {
      const int64_t at = r * channels + c + k * LANES;
      const vec v = get<SOME>(x + at, some);
      vec out = v * a[k] + b[k];
      if (FORM == ADD_RELU) out += get<SOME>(z + at, some);
      put<SOME, PAST>(y + at, value<FORM>(out, f.parameter), some);
      const vec d = v - m[k];
      s[u][k] += d;
      q[u][k] += d * d;
    }
  };
  int64_t r = 0;
  for (; r + ROWS <= rows; r += ROWS)
    for (int u = 0; u < ROWS; ++u) row(r + u, u);
  for (; r < rows; ++r) row(r, 0);
  for (int k = 0; k < CHUNKS; ++k) {
    for (int u = 1; u < ROWS; ++u) {
      s[0][k] += s[u][k];
      q[0][k] += q[u][k];
    }
    put<SOME>(sum + c + k * LANES, s[0][k], some);
    put<SOME>(square + c + k * LANES, q[0][k], some);
  }
}

static inline int64_t rows_per_block(int64_t channels) {
  const int64_t rows = 16384 / channels;  // a block of x stays in the first cache; few rows keep fp32 sums exact
  return rows < 64 ? 64 : rows > 512 ? 512 : rows;
}

template <Form FORM, bool PAST, typename T>
static void forward(const void* x_, const void* z_, void* y_, const Frozen& f, int64_t rows, int64_t channels,
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
    for (; c + MANY * LANES <= channels; c += MANY * LANES)
      chunk<MANY, false, FORM, PAST>(x, z, y, f, count, channels, c, 0, sum, square);
    for (; c + LANES <= channels; c += LANES) chunk<1, false, FORM, PAST>(x, z, y, f, count, channels, c, 0, sum, square);
    if (c < channels) chunk<1, true, FORM, PAST>(x, z, y, f, count, channels, c, channels - c, sum, square);
    if (PAST) fence();
  }
  std::vector<double> total(size_t(2 * channels), 0.0);
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t c = 0; c < 2 * channels; ++c) total[c] += partial[b * 2 * channels + c];
  for (int64_t c = 0; c < 2 * channels; ++c) out[c] = float(total[c]);
}

// dx, and for ADD_RELU dz = g, whose gate is read off y; the others' is computed again from x.
template <int CHUNKS, bool SOME, Form FORM, bool PAST, typename T>
static inline void gradient_chunk(const T* dy, const T* x, const T* y, T* dx, T* dz, const Frozen& f, int64_t rows,
                                  int64_t channels, int64_t c, int64_t some) {
  vec a[CHUNKS], b[CHUNKS] = {}, p[CHUNKS], o[CHUNKS];
  for (int k = 0; k < CHUNKS; ++k) {
    a[k] = get<SOME>(f.scale + c + k * LANES, some);
    if (FORM != AFFINE && FORM != ADD_RELU) b[k] = get<SOME>(f.shift + c + k * LANES, some);
    p[k] = get<SOME>(f.slope + c + k * LANES, some);
    o[k] = get<SOME>(f.offset + c + k * LANES, some);
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int k = 0; k < CHUNKS; ++k) {
      const int64_t at = r * channels + c + k * LANES;
      const vec v = get<SOME>(x + at, some);
      vec g = get<SOME>(dy + at, some);
      if (FORM != ADD_RELU) g = through<FORM>(v * a[k] + b[k], g, f.parameter);
      if (FORM == ADD_RELU) {
        g = where((wide)(get<SOME>(y + at, some) > 0), g);
        put<SOME, PAST>(dz + at, g, some);
      }
      put<SOME, PAST>(dx + at, g * a[k] + (v * p[k] + o[k]), some);
    }
}

template <Form FORM, bool PAST, typename T>
static void gradient(const void* dy_, const void* x_, const void* y_, void* dx_, void* dz_, const Frozen& f,
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
    // Row by row where a row is long: it is memory that counts, and several sweeps over few of its lines are slower.
    const int64_t step = channels < 48 ? count : 1;
    for (int64_t r = 0; r < count; r += step) {
      const int64_t at = r * channels;
      const T* gate = FORM == ADD_RELU ? y + at : nullptr;
      T* residual = FORM == ADD_RELU ? dz + at : nullptr;
      int64_t c = 0;
#define CHUNK(chunks, some, channels_left) \
  gradient_chunk<chunks, some, FORM, PAST>(dy + at, x + at, gate, dx + at, residual, f, step, channels, c, channels_left)
      for (; c + MANY * LANES <= channels; c += MANY * LANES) CHUNK(MANY, false, 0);
      for (; c + LANES <= channels; c += LANES) CHUNK(1, false, 0);
      if (c < channels) CHUNK(1, true, channels - c);
#undef CHUNK
    }
    if (PAST) fence();
  }
}

#define BOTH(function, form, past) {function<form, past, float>, function<form, past, uint16_t>}
#define FORMS(function, past)                                                                                          \
  {                                                                                                                    \
    BOTH(function, AFFINE, past), BOTH(function, RELU, past), BOTH(function, ADD_RELU, past),                          \
        BOTH(function, RELU6, past), BOTH(function, LEAKY_RELU, past), BOTH(function, HARDSWISH, past),                \
        BOTH(function, SILU, false), BOTH(function, GELU, false), /* slower than memory is */                          \
  }
#define TABLE(function) {FORMS(function, false), FORMS(function, true)}

// Arrays that a form does not use are null. `half`: bf16, else fp32.
extern "C" void forward(int form, float parameter, int half, const void* x, const void* z, void* y, const float* mean,
                        const float* scale, const float* shift, float* out, int64_t rows, int64_t channels,
                        int threads) {
  static constexpr decltype(&forward<AFFINE, false, float>) functions[][8][2] = TABLE(forward);
  functions[goes_past(half, rows, channels, y)][form][half](
      x, z, y, {mean, scale, shift, nullptr, nullptr, parameter}, rows, channels, out, threads);
}

extern "C" void gradient(int form, float parameter, int half, const void* dy, const void* x, const void* y, void* dx,
                         void* dz, const float* scale, const float* shift, const float* slope, const float* offset,
                         int64_t rows, int64_t channels, int threads) {
  static constexpr decltype(&gradient<AFFINE, false, float>) functions[][8][2] = TABLE(gradient);
  functions[goes_past(half, rows, channels, dx, dz)][form][half](
      dy, x, y, dx, dz, {nullptr, scale, shift, slope, offset, parameter}, rows, channels, threads);
}

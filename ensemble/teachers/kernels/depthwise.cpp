// A depthwise convolution of rows x columns x channels, and its gradient at the image: one filter a channel.
//   forward   y[r, c] = bias + sum over taps of weight[i, j] x[r stride - top + i, c stride - left + j]
//   gradient  dx[r, c] = sum over the taps by which x[r, c] has gone into y
//
// Sums are in fp32, in the order of the taps, whatever the number of threads.
#include <cstdint>
#include <cstring>

#include "vectors.h"

// The taps along one side that make one output: `count` of them, from weight `tap` and input `at` on.
struct Taps {
  int64_t tap, at, count;
};

struct Side {
  int64_t size, stride, before, k;  // of the input; padding before it
  bool gradient;
  int64_t every() const { return gradient ? stride : 1; }  // from tap to tap,
  int64_t step() const { return gradient ? -1 : 1; }       // and from input to input

  Taps of(int64_t out) const {
    Taps t;
    if (gradient) {
      t.tap = (out + before) % stride;
      t.at = (out + before - t.tap) / stride;
      const int64_t beyond = t.at >= size ? t.at - size + 1 : 0;
      t.tap += beyond * stride;
      t.at -= beyond;
      t.count = t.tap < k ? (k - 1 - t.tap) / stride + 1 : 0;
      if (t.count > t.at + 1) t.count = t.at + 1;
    } else {
      t.at = out * stride - before;
      t.tap = t.at < 0 ? -t.at : 0;
      t.at += t.tap;
      t.count = k - t.tap < size - t.at ? k - t.tap : size - t.at;
    }
    if (t.count < 0) t.count = 0;
    return t;
  }
};

// CHUNKS * LANES channels (or `some` < LANES of them) of one output.
template <int CHUNKS, bool SOME, bool PAST, typename T>
static inline void one(const T* x, const float* weight, const float* bias, T* y, const Taps& down, const Taps& across,
                       int64_t row, int64_t column, int64_t weight_row, int64_t weight_column, int64_t some) {
  vec sum[CHUNKS] = {};
  if (bias)
    for (int k = 0; k < CHUNKS; ++k) sum[k] = get<SOME>(bias + k * LANES, some);
  for (int64_t i = 0; i < down.count; ++i) {
    const T* p = x + i * row;
    const float* w = weight + i * weight_row;
    for (int64_t j = 0; j < across.count; ++j, p += column, w += weight_column)
      for (int k = 0; k < CHUNKS; ++k) sum[k] += get<SOME>(p + k * LANES, some) * get<SOME>(w + k * LANES, some);
  }
  for (int k = 0; k < CHUNKS; ++k) put<SOME, PAST>(y + k * LANES, sum[k], some);
}

template <bool PAST, typename T>
static void convolve(const void* x_, const float* weight, const float* bias, void* y_, int64_t images, const Side& rows,
                     const Side& columns, int64_t out_rows, int64_t out_columns, int64_t channels, int threads) {
  const int64_t row = rows.step() * columns.size * channels, column = columns.step() * channels;
  const int64_t weight_row = rows.every() * columns.k * channels, weight_column = columns.every() * channels;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t line = 0; line < images * out_rows; ++line) {
    const Taps down = rows.of(line % out_rows);
    const T* image = static_cast<const T*>(x_) + line / out_rows * rows.size * columns.size * channels;
    for (int64_t o = 0; o < out_columns; ++o) {
      const Taps across = columns.of(o);
      const T* x = image + (down.at * columns.size + across.at) * channels;
      const float* w = weight + (down.tap * columns.k + across.tap) * channels;
      T* y = static_cast<T*>(y_) + (line * out_columns + o) * channels;
      int64_t c = 0;
#define ONE(chunks, some, count)                                                                                  \
  one<chunks, some, PAST>(x + c, w + c, bias ? bias + c : nullptr, y + c, down, across, row, column, weight_row, \
                          weight_column, count)
      for (; c + 4 * LANES <= channels; c += 4 * LANES) ONE(4, false, 0);
      for (; c + 2 * LANES <= channels; c += 2 * LANES) ONE(2, false, 0);
      for (; c + LANES <= channels; c += LANES) ONE(1, false, 0);
      if (c < channels) ONE(1, true, channels - c);
#undef ONE
    }
    if (PAST) fence();
  }
}

// `gradient`: x is dy and y is dx. `half`: bf16, else fp32; weight (k, k, channels) and bias (channels,) or null fp32.
extern "C" void depthwise(int gradient, int half, const void* x, const float* weight, const float* bias, void* y,
                          int64_t images, int64_t height, int64_t width, int64_t out_height, int64_t out_width,
                          int64_t channels, int64_t k, int64_t stride, int64_t top, int64_t left, int threads) {
  const Side rows{height, stride, top, k, gradient != 0}, columns{width, stride, left, k, gradient != 0};
  static constexpr decltype(&convolve<false, float>) functions[2][2] = {
      {convolve<false, float>, convolve<false, uint16_t>}, {convolve<true, float>, convolve<true, uint16_t>}};
  functions[goes_past(half, images * out_height * out_width, channels, y)][half](
      x, weight, bias, y, images, rows, columns, out_height, out_width, channels, threads);
}

// Vectors of LANES floats, loaded from and stored to fp32 or bf16; plain C++ but for what is marked by an instruction set.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __AVX2__
#include <immintrin.h>
#endif

// Vectors as wide as the registers, and as many side by side as there are registers for.
#ifdef __AVX512F__
#define LANES 16
#define MANY 4
#else
#define LANES 8
#define MANY 2
#endif
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

static inline half narrow(vec v) {  // to bf16: round to nearest, ties to even; NaN stays NaN
#ifdef __AVX512BF16__
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);
  half h;
  std::memcpy(&h, &rounded, sizeof h);
  return h;
#else
  wide w;
  std::memcpy(&w, &v, sizeof w);
  wide rounded = (w + 0x7fff + ((w >> 16) & 1)) >> 16;
  wide quiet = (w >> 16) | 0x40;
  wide nan = (wide)(v != v);
  return __builtin_convertvector((nan & quiet) | (~nan & rounded), half);
#endif
}

static inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }

static inline void store(uint16_t* p, vec v) {
  const half h = narrow(v);
  std::memcpy(p, &h, sizeof h);
}

// `v` where `keep`, else 0: one instruction, where `keep ? v : 0` takes two.
static inline vec where(wide keep, vec v) {
  wide w;
  std::memcpy(&w, &v, sizeof w);
  w &= keep;
  std::memcpy(&v, &w, sizeof v);
  return v;
}

// Past the caches, where a whole vector is aligned, and `fence` before anybody else reads it.
#if defined(__AVX512F__)
static inline void stream(float* p, vec v) { _mm512_stream_ps(p, (__m512)v); }
static inline void stream(uint16_t* p, vec v) { _mm256_stream_si256((__m256i*)p, (__m256i)narrow(v)); }
#elif defined(__AVX2__)
static inline void stream(float* p, vec v) { _mm256_stream_ps(p, (__m256)v); }
static inline void stream(uint16_t* p, vec v) { _mm_stream_si128((__m128i*)p, (__m128i)narrow(v)); }
#else
template <typename T>
static inline void stream(T* p, vec v) { store(p, v); }
#endif

static inline void fence() {
#ifdef __AVX2__
  _mm_sfence();
#endif
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

// Per-channel values: whole vectors, or `some` < LANES of them.
template <bool SOME, typename T>
static inline vec get(const T* p, int64_t some) {
  return SOME ? load_some(p, some) : load(p);
}

template <bool SOME, bool PAST = false, typename T>
static inline void put(T* p, vec v, int64_t some) {
  if (SOME)
    store_some(p, v, some);
  else if (PAST)
    stream(p, v);
  else
    store(p, v);
}

// Whether what is written is too large to be in a cache when it is read again, and whole vectors of it are aligned.
static inline bool goes_past(int half, int64_t rows, int64_t channels, const void* written, const void* too = nullptr) {
  const bool aligned = (reinterpret_cast<uintptr_t>(written) | reinterpret_cast<uintptr_t>(too)) % 64 == 0;
  return aligned && channels % LANES == 0 && rows * channels * (half ? 2 : 4) > (4 << 20);
}

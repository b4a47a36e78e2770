/* Vectors of 16 floats, and the sums and functions over them, in one fixed order on every instruction set.

   Every operation below rounds as IEEE 754 says, so a kernel written with it gives the same bits with AVX2 and with AVX-512. */
#ifndef RORQUAL_VECTOR_H
#define RORQUAL_VECTOR_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
enum { LANES = 16 };

#if defined(__AVX512F__)

typedef __m512 v16;

INLINE v16 v_set(float a) { return _mm512_set1_ps(a); }
INLINE v16 v_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void v_store(float *p, v16 a) { _mm512_storeu_ps(p, a); }
INLINE v16 v_add(v16 a, v16 b) { return _mm512_add_ps(a, b); }
INLINE v16 v_sub(v16 a, v16 b) { return _mm512_sub_ps(a, b); }
INLINE v16 v_mul(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
INLINE v16 v_div(v16 a, v16 b) { return _mm512_div_ps(a, b); }
INLINE v16 v_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
INLINE v16 v_min(v16 a, v16 b) { return _mm512_min_ps(a, b); } /* b if one is NaN */
INLINE v16 v_max(v16 a, v16 b) { return _mm512_max_ps(a, b); }
INLINE v16 v_round(v16 a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

/* a * 2^n for an integer n from -126 to 127 */
INLINE v16 v_scale(v16 a, v16 n) {
  __m512i exponent = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
  return _mm512_mul_ps(a, _mm512_castsi512_ps(exponent));
}

INLINE v16 v_load_bf16(const uint16_t *p) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

INLINE v16 v_load_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }

/* a where x is above the limit or NaN, and 0 elsewhere */
INLINE v16 v_above(v16 a, v16 x, v16 limit) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLE_UQ), a);
}

INLINE __m256 v_low(v16 a) { return _mm512_castps512_ps256(a); }
INLINE __m256 v_high(v16 a) {
  return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1));
}

#else /* AVX2 */

typedef struct { __m256 low, high; } v16;

#define PAIR(expression_low, expression_high) (v16){expression_low, expression_high}
INLINE v16 v_set(float a) { return PAIR(_mm256_set1_ps(a), _mm256_set1_ps(a)); }
INLINE v16 v_load(const float *p) { return PAIR(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
INLINE void v_store(float *p, v16 a) { _mm256_storeu_ps(p, a.low), _mm256_storeu_ps(p + 8, a.high); }
INLINE v16 v_add(v16 a, v16 b) { return PAIR(_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)); }
INLINE v16 v_sub(v16 a, v16 b) { return PAIR(_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)); }
INLINE v16 v_mul(v16 a, v16 b) { return PAIR(_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)); }
INLINE v16 v_div(v16 a, v16 b) { return PAIR(_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)); }
INLINE v16 v_fma(v16 a, v16 b, v16 c) {
  return PAIR(_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high));
}
INLINE v16 v_min(v16 a, v16 b) { return PAIR(_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)); }
INLINE v16 v_max(v16 a, v16 b) { return PAIR(_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)); }
INLINE __m256 v_round_half(__m256 a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE v16 v_round(v16 a) { return PAIR(v_round_half(a.low), v_round_half(a.high)); }

INLINE __m256 v_scale_half(__m256 a, __m256 n) {
  __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(a, _mm256_castsi256_ps(exponent));
}
INLINE v16 v_scale(v16 a, v16 n) { return PAIR(v_scale_half(a.low, n.low), v_scale_half(a.high, n.high)); }

INLINE __m256 v_load_bf16_half(const uint16_t *p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
INLINE v16 v_load_bf16(const uint16_t *p) { return PAIR(v_load_bf16_half(p), v_load_bf16_half(p + 8)); }

INLINE v16 v_load_half(const uint16_t *p) {
  return PAIR(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8))));
}

INLINE v16 v_above(v16 a, v16 x, v16 limit) {
  return PAIR(_mm256_and_ps(_mm256_cmp_ps(x.low, limit.low, _CMP_NLE_UQ), a.low),
              _mm256_and_ps(_mm256_cmp_ps(x.high, limit.high, _CMP_NLE_UQ), a.high));
}

INLINE __m256 v_low(v16 a) { return a.low; }
INLINE __m256 v_high(v16 a) { return a.high; }

#endif

/* The sum of the 16 lanes: lane i and lane i + 8 first, then i and i + 4, i + 2, i + 1. */
INLINE float v_sum(v16 a) {
  __m256 eight = _mm256_add_ps(v_low(a), v_high(a));
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

/* n < 16 floats, then zeros */
INLINE v16 v_load_first(const float *p, int64_t n) {
  float padded[LANES] = {0};
  memcpy(padded, p, (size_t)n * sizeof(float));
  return v_load(padded);
}

INLINE v16 v_load_first_bf16(const uint16_t *p, int64_t n) {
  uint16_t padded[LANES] = {0};
  memcpy(padded, p, (size_t)n * sizeof(uint16_t));
  return v_load_bf16(padded);
}

/* e^x with a relative error below 2^-22. It is 0 up to -87.3, and above 88.3 that of 88.3. e^NaN is NaN. */
INLINE v16 v_exp(v16 given) {
  v16 x = v_min(v_set(88.3f), v_max(v_set(-87.3f), given));
  v16 n = v_round(v_mul(x, v_set(1.44269504f)));
  v16 r = v_fma(n, v_set(-0.693359375f), x); /* ln 2 in two parts, so that r is exact */
  r = v_fma(n, v_set(2.12194440e-4f), r);
  v16 y = v_set(1.9875691500e-4f); /* polynomial of Cephes' expf (Moshier) */
  y = v_fma(y, r, v_set(1.3981999507e-3f));
  y = v_fma(y, r, v_set(8.3334519073e-3f));
  y = v_fma(y, r, v_set(4.1665795894e-2f));
  y = v_fma(y, r, v_set(1.6666665459e-1f));
  y = v_fma(y, r, v_set(5.0000001201e-1f));
  y = v_fma(y, v_mul(r, r), v_add(r, v_set(1.0f)));
  return v_above(v_scale(y, n), given, v_set(-87.3f));
}

INLINE v16 v_sigmoid(v16 x) { return v_div(v_set(1.0f), v_add(v_set(1.0f), v_exp(v_sub(v_set(0.0f), x)))); }

INLINE float exp_one(float x) {
  float lanes[LANES];
  v_store(lanes, v_exp(v_set(x)));
  return lanes[0];
}

INLINE float to_float(uint16_t bf16) {
  uint32_t bits = (uint32_t)bf16 << 16;
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

/* rounded to the nearest bf16, ties to even; NaN stays NaN */
INLINE uint16_t to_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#endif

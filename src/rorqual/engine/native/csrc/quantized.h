/* Linear maps with weights of 8 or 4 bits. Blocks of 32 inputs share a scale in half precision, and with 4 bits also the least weight, as
   in GGUF's Q8_0 and Q4_1. The inputs are rounded to 8 bits in the same blocks.

   A panel of 64 outputs has, for each block, the bytes [8 groups, 64 outputs, 4 inputs], each a weight plus 128, and then the scales [64].
   With 4 bits, the bytes are [4, 64, 4]: the lower halves are the first four groups, and the upper halves the last four. After the scales
   come the least weights [64]. The sums over a block are exact integers, so they are the same on every instruction set, and

     y = fma(least weight * scale of the inputs, sum of the inputs over the block, y)    with 4 bits
     y = fma(scale of the weights * scale of the inputs, sum of the products over the block, y)

   from the first block to the last. */
#ifndef RORQUAL_QUANTIZED_H
#define RORQUAL_QUANTIZED_H

#include "step.h"
#include "vector.h"

enum { QUANTS = 32, GROUPS = QUANTS / 4 };

INLINE int64_t quant_bytes(int64_t type) { return type == INT8 ? PANEL * QUANTS : PANEL * QUANTS / 2; }
INLINE int64_t block_bytes(int64_t type) { return quant_bytes(type) + (type == INT8 ? 2 : 4) * PANEL; }

/* Rows of inputs, rounded to 8 bits */
typedef struct {
  int64_t rows, blocks;
  int8_t *quants;  /* [rows, blocks, 32] */
  float *scales;   /* [rows, blocks] */
  int32_t *shifts; /* [rows, blocks]: 128 times the sum of the quants */
} Quantized;

INLINE int64_t blocks_of(int64_t in) { return (in + QUANTS - 1) / QUANTS; }
INLINE int64_t quantized_bytes(int64_t rows, int64_t in) { return rows * blocks_of(in) * (QUANTS + 8); }

INLINE Quantized quantized_rows(void *memory, int64_t rows, int64_t in) {
  const int64_t n = rows * blocks_of(in);
  float *scales = memory;
  return (Quantized){rows, blocks_of(in), (int8_t *)(scales + 2 * n), scales, (int32_t *)(scales + n)};
}

/* A block with a value that is not finite has the scale NaN. Values below 1e-30 are zeros, because 127 / 1e-38 is infinite. */
static void quantize_row(const float *x, int64_t in, const Quantized *to, int64_t row) {
  for (int64_t b = 0; b < to->blocks; b++) {
    const int64_t at = row * to->blocks + b, left = in - b * QUANTS;
    float values[QUANTS] = {0}, highest = 0.0f;
    memcpy(values, x + b * QUANTS, (size_t)(left < QUANTS ? left : QUANTS) * sizeof(float));
    const v16 first = v_load(values), last = v_load(values + LANES), none = v_set(0.0f);
    const float zero = v_sum(v_mul(v_add(first, last), none)); /* or NaN */
    float sizes[LANES];
    v_store(sizes, v_max(v_max(first, v_sub(none, first)), v_max(last, v_sub(none, last))));
    for (int i = 0; i < LANES; i++) highest = sizes[i] > highest ? sizes[i] : highest;
    to->scales[at] = highest / 127.0f + zero;
    const v16 inverse = v_set(zero == 0.0f && highest > 1e-30f ? 127.0f / highest : 0.0f);
    for (int i = 0; i < QUANTS; i += LANES) v_store(values + i, v_round(v_mul(v_load(values + i), inverse)));
    int32_t sum = 0;
    for (int i = 0; i < QUANTS; i++) {
      const int8_t quant = zero == 0.0f ? (int8_t)values[i] : 0;
      to->quants[at * QUANTS + i] = quant, sum += quant;
    }
    to->shifts[at] = 128 * sum;
  }
}

INLINE int32_t four_quants(const int8_t *quants) {
  int32_t four;
  memcpy(&four, quants, sizeof four);
  return four;
}

/* ---- sums of products of 16 outputs. No instruction saturates: a byte times a quant is at most 255 * 127 */

#if defined(__AVX512VNNI__)

enum { QUANT_ROWS = 3, QUANT_VECTORS = 4 };
typedef __m512i dots;

INLINE dots dots_zero(void) { return _mm512_setzero_si512(); }
INLINE dots dots_add(dots sums, const uint8_t *weights, int32_t four) {
  return _mm512_dpbusd_epi32(sums, _mm512_loadu_si512(weights), _mm512_set1_epi32(four));
}
INLINE v16 dots_less(dots sums, int32_t shift) { return _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, _mm512_set1_epi32(shift))); }

#elif defined(__AVX512F__)

enum { QUANT_ROWS = 4, QUANT_VECTORS = 1 };
typedef struct { __m512i low, high; } dots; /* of 8 outputs each, the sums over the first and the last two of four inputs */

INLINE dots dots_zero(void) { return (dots){_mm512_setzero_si512(), _mm512_setzero_si512()}; }
INLINE __m512i dots_half(__m512i sums, const uint8_t *weights, __m512i inputs) {
  __m512i wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)weights));
  return _mm512_add_epi32(sums, _mm512_madd_epi16(wide, inputs));
}
INLINE dots dots_add(dots sums, const uint8_t *weights, int32_t four) {
  __m512i inputs = _mm512_broadcastq_epi64(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(four)));
  return (dots){dots_half(sums.low, weights, inputs), dots_half(sums.high, weights + 32, inputs)};
}
INLINE v16 dots_less(dots sums, int32_t shift) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  __m512i first = _mm512_permutex2var_epi32(sums.low, even, sums.high), last = _mm512_permutex2var_epi32(sums.low, odd, sums.high);
  return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_add_epi32(first, last), _mm512_set1_epi32(shift)));
}

#else /* AVX2 */

enum { QUANT_ROWS = 2, QUANT_VECTORS = 1 };
typedef struct { __m256i quarter[4]; } dots; /* of 4 outputs each, the sums over the first and the last two of four inputs */

INLINE dots dots_zero(void) {
  const __m256i zero = _mm256_setzero_si256();
  return (dots){{zero, zero, zero, zero}};
}
INLINE dots dots_add(dots sums, const uint8_t *weights, int32_t four) {
  __m256i inputs = _mm256_broadcastq_epi64(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(four)));
  for (int i = 0; i < 4; i++) {
    __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(weights + 16 * i)));
    sums.quarter[i] = _mm256_add_epi32(sums.quarter[i], _mm256_madd_epi16(wide, inputs));
  }
  return sums;
}
INLINE __m256 dots_less_half(__m256i one, __m256i other, int32_t shift) {
  __m256i sums = _mm256_permute4x64_epi64(_mm256_hadd_epi32(one, other), 0xd8);
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(sums, _mm256_set1_epi32(shift)));
}
INLINE v16 dots_less(dots sums, int32_t shift) {
  return PAIR(dots_less_half(sums.quarter[0], sums.quarter[1], shift), dots_less_half(sums.quarter[2], sums.quarter[3], shift));
}

#endif

/* QUANT_VECTORS times 16 outputs of `rows` inputs. The type and the rows are constants where it is called. */
INLINE void quantized_tile(const uint8_t *panel, const int64_t type, int64_t column, const Quantized *x, int64_t row, float *y,
                           int64_t stride, const int rows) {
  enum { TILE = QUANT_VECTORS * LANES * 4 };
  const int64_t group = type == INT8 ? PANEL * 4 : TILE;
  uint8_t bytes[GROUPS * TILE];
  v16 sums[QUANT_ROWS][QUANT_VECTORS];
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < QUANT_VECTORS; c++) sums[r][c] = v_set(0.0f);
  for (int64_t b = 0; b < x->blocks; b++) {
    const uint8_t *block = panel + b * block_bytes(type), *weights = block + column * 4;
    const uint16_t *scales = (const uint16_t *)(block + quant_bytes(type)) + column;
    if (type == INT4) {
      for (int g = 0; g < GROUPS / 2; g++)
        for (int i = 0; i < TILE; i++) {
          const uint8_t both = weights[g * PANEL * 4 + i];
          bytes[g * TILE + i] = both & 15, bytes[(g + GROUPS / 2) * TILE + i] = both >> 4;
        }
      weights = bytes;
    }
    dots found[QUANT_ROWS][QUANT_VECTORS];
    for (int r = 0; r < rows; r++)
      for (int c = 0; c < QUANT_VECTORS; c++) found[r][c] = dots_zero();
    for (int g = 0; g < GROUPS; g++)
      for (int c = 0; c < QUANT_VECTORS; c++)
        for (int r = 0; r < rows; r++)
          found[r][c] = dots_add(found[r][c], weights + g * group + c * LANES * 4,
                                 four_quants(x->quants + ((row + r) * x->blocks + b) * QUANTS + 4 * g));
    for (int r = 0; r < rows; r++) {
      const int64_t at = (row + r) * x->blocks + b;
      const v16 scale = v_set(x->scales[at]), sum = v_set((float)(x->shifts[at] / 128));
      for (int c = 0; c < QUANT_VECTORS; c++) {
        if (type == INT4) sums[r][c] = v_fma(v_mul(v_load_half(scales + PANEL + c * LANES), scale), sum, sums[r][c]);
        const v16 products = dots_less(found[r][c], type == INT8 ? x->shifts[at] : 0);
        sums[r][c] = v_fma(v_mul(v_load_half(scales + c * LANES), scale), products, sums[r][c]);
      }
    }
  }
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < QUANT_VECTORS; c++) v_store(y + r * stride + c * LANES, sums[r][c]);
}

/* The outputs of a panel for `rows` inputs, a constant where it is called */
INLINE void quantized_part(const uint8_t *panel, int64_t type, const Quantized *x, int64_t row, float *y, int64_t stride, const int rows) {
  for (int c = 0; c < PANEL; c += QUANT_VECTORS * LANES)
    if (type == INT8) quantized_tile(panel, INT8, c, x, row, y + row * stride + c, stride, rows);
    else quantized_tile(panel, INT4, c, x, row, y + row * stride + c, stride, rows);
}

/* The outputs of a panel for all rows */
static void quantized_panel(const uint8_t *panel, int64_t type, const Quantized *x, float *y, int64_t stride) {
  int64_t row = 0;
  for (; row + QUANT_ROWS <= x->rows; row += QUANT_ROWS) quantized_part(panel, type, x, row, y, stride, QUANT_ROWS);
  for (; row + 2 <= x->rows; row += 2) quantized_part(panel, type, x, row, y, stride, 2);
  if (row < x->rows) quantized_part(panel, type, x, row, y, stride, 1);
}

#endif

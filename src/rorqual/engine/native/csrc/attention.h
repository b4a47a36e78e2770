/* Norms, rotary embeddings and paged attention. */
#ifndef RORQUAL_ATTENTION_H
#define RORQUAL_ATTENTION_H

#include <math.h>

#include "step.h"
#include "vector.h"

/* The sum of squares, of 16 interleaved chains. */
INLINE float sum_of_squares(const float *x, int64_t n) {
  v16 sums = v_set(0.0f);
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) sums = v_fma(v_load(x + i), v_load(x + i), sums);
  if (i < n) {
    v16 rest = v_load_first(x + i, n - i);
    sums = v_fma(rest, rest, sums);
  }
  return v_sum(sums);
}

/* y = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, eq. 4) */
INLINE void rms_norm(const float *x, const float *weight, int64_t n, float eps, float *y) {
  float root = 1.0f / sqrtf(sum_of_squares(x, n) / (float)n + eps);
  for (int64_t i = 0; i < n; i++) y[i] = weight[i] * (x[i] * root);
}

/* Rotate dimensions i and i + dim / 2 by the angle of a position (Su et al. 2021, eq. 34, half-split). */
INLINE void rotate_halves(float *x, const Rope *rope, int64_t position) {
  const int64_t half = rope->dim / 2;
  const float *cos = rope->cos + position * half, *sin = rope->sin + position * half;
  for (int64_t i = 0; i < half; i++) {
    float a = x[i], b = x[i + half];
    x[i] = fmaf(a, cos[i], -(b * sin[i]));
    x[i + half] = fmaf(b, cos[i], a * sin[i]);
  }
}

/* Rotate dimensions 2 i and 2 i + 1 (interleaved, as in DeepSeek's latent attention). */
INLINE void rotate_pairs(float *x, const Rope *rope, int64_t position) {
  const int64_t half = rope->dim / 2;
  const float *cos = rope->cos + position * half, *sin = rope->sin + position * half;
  for (int64_t i = 0; i < half; i++) {
    float a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = fmaf(a, cos[i], -(b * sin[i]));
    x[2 * i + 1] = fmaf(b, cos[i], a * sin[i]);
  }
}

INLINE v16 load_cached(const void *row, int64_t type, int64_t at, int64_t width) {
  const int64_t rest = width - at;
  if (type == FLOAT32) return rest >= LANES ? v_load((const float *)row + at) : v_load_first((const float *)row + at, rest);
  return rest >= LANES ? v_load_bf16((const uint16_t *)row + at) : v_load_first_bf16((const uint16_t *)row + at, rest);
}

INLINE void store_cached(void *row, int64_t type, const float *x, int64_t width) {
  if (type == FLOAT32)
    memcpy(row, x, (size_t)width * sizeof(float));
  else
    for (int64_t i = 0; i < width; i++) ((uint16_t *)row)[i] = to_bf16(x[i]);
}

/* q . k, of 16 interleaved chains */
INLINE float dot_cached(const float *q, const void *row, int64_t type, int64_t width) {
  v16 sums = v_set(0.0f);
  for (int64_t i = 0; i < width; i += LANES) {
    v16 query = width - i >= LANES ? v_load(q + i) : v_load_first(q + i, width - i);
    sums = v_fma(query, load_cached(row, type, i, width), sums);
  }
  return v_sum(sums);
}

typedef struct {
  const char *keys, *values;          /* the block pools of one head: its first row of block 0 */
  int64_t stride, row_bytes;          /* bytes from block to block, and from row to row */
  int64_t width, value_width, type;   /* columns of a key, and of a value */
  const int64_t *blocks;              /* of the sequence */
} CachedHead;

/* bytes from block 0 of a pool to a row of the sequence */
INLINE int64_t cached_row(const CachedHead *head, int64_t row) {
  return head->blocks[row / BLOCK] * head->stride + row % BLOCK * head->row_bytes;
}

/* out [value width] = softmax(scale q k^T) v over the first `n` cached rows. `scores` has room for n rounded up to 16.

   The highest score is found first. Then the weights are added in 16 interleaved chains, and the values in the order of the rows. */
INLINE void attend(const float *q, const CachedHead *head, int64_t n, float scale, float *scores, float *out) {
  float highest = -INFINITY;
  for (int64_t row = 0; row < n; row++) {
    scores[row] = scale * dot_cached(q, head->keys + cached_row(head, row), head->type, head->width);
    if (scores[row] > highest) highest = scores[row];
  }
  for (int64_t row = n; row % LANES; row++) scores[row] = -INFINITY;
  v16 sums = v_set(0.0f);
  for (int64_t row = 0; row < n; row += LANES) {
    v16 weights = v_exp(v_sub(v_load(scores + row), v_set(highest)));
    v_store(scores + row, weights);
    sums = v_add(sums, weights);
  }
  const float total = v_sum(sums);
  const int64_t width = head->value_width;
  for (int64_t i = 0; i < width; i += LANES) {
    v16 sum = v_set(0.0f);
    for (int64_t row = 0; row < n; row++)
      sum = v_fma(v_set(scores[row]), load_cached(head->values + cached_row(head, row), head->type, i, width), sum);
    sum = v_div(sum, v_set(total));
    if (width - i >= LANES) {
      v_store(out + i, sum);
    } else {
      float lanes[LANES];
      v_store(lanes, sum);
      memcpy(out + i, lanes, (size_t)(width - i) * sizeof(float));
    }
  }
}

#endif

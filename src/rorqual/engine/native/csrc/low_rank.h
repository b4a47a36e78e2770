/* LoRA adapters of the rows of a batch (Hu et al. 2021): y += (s B) (A x), with the matrices of each row's own adapter.

   Each output is one chain of fused multiply-adds for every 256 ranks, so a row's sum depends on no other row. */
#ifndef RORQUAL_LOW_RANK_H
#define RORQUAL_LOW_RANK_H

#include "step.h"
#include "vector.h"

enum { RANKS = 256 };

INLINE v16 load_first(const void *matrix, const int64_t type, int64_t at, int64_t n) {
  const float *wide = matrix;
  const uint16_t *narrow = matrix;
  if (type == FLOAT32) return n == LANES ? v_load(wide + at) : v_load_first(wide + at, n);
  return n == LANES ? v_load_bf16(narrow + at) : v_load_first_bf16(narrow + at, n);
}

/* y [columns] += x [in] times a matrix [in, columns], whose rows begin `stride` values apart, from its value `first` on */
INLINE void add_product(const float *x, int64_t in, const void *matrix, const int64_t type, int64_t first, int64_t stride,
                        int64_t columns, float *y) {
  for (int64_t c = 0; c < columns; c += LANES) {
    const int64_t n = columns - c < LANES ? columns - c : LANES;
    v16 sum = v_set(0.0f);
    for (int64_t k = 0; k < in; k++) sum = v_fma(v_set(x[k]), load_first(matrix, type, first + k * stride + c, n), sum);
    float lanes[LANES];
    v_store(lanes, sum);
    for (int64_t i = 0; i < n; i++) y[c + i] += lanes[i];
  }
}

INLINE void add_low_rank(const LowRank *l, int64_t index, const float *x, int64_t in, const int64_t type, float *y) {
  for (int64_t r = 0; r < l->rank; r += RANKS) {
    const int64_t ranks = l->rank - r < RANKS ? l->rank - r : RANKS;
    float inner[RANKS] = {0};
    add_product(x, in, l->down, type, index * in * l->rank + r, l->rank, ranks, inner);
    add_product(inner, ranks, l->up, type, (index * l->rank + r) * l->out, l->out, l->out, y + l->first);
  }
}

/* Add to a row of outputs what its adapter, number `index` of a stack, adds to the parts of a map. */
INLINE void adapt_row(const Linear *map, int64_t stack, int64_t index, const float *x, float *y) {
  for (int64_t part = 0; part < map->parts; part++) {
    const LowRank *l = &map->low_rank[stack * map->parts + part];
    if (l->down == NULL) continue;
    if (l->type == FLOAT32)
      add_low_rank(l, index, x, map->in, FLOAT32, y);
    else
      add_low_rank(l, index, x, map->in, BFLOAT16, y);
  }
}

#endif

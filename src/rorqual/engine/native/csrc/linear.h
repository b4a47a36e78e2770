/* Linear maps: every output is one chain of fused multiply-adds over the inputs, from first to last.

   So an output has the same bits for any number of rows, columns and threads. */
#ifndef RORQUAL_LINEAR_H
#define RORQUAL_LINEAR_H

#include "low_rank.h"
#include "quantized.h"
#include "step.h"
#include "vector.h"

#if defined(__AVX512F__)
enum { TILE_ROWS = 6, TILE_VECTORS = 4 }; /* 24 of 32 registers hold sums */
#else
enum { TILE_ROWS = 4, TILE_VECTORS = 1 }; /* 8 of 16 */
#endif

/* `vectors` times 16 outputs of `rows` inputs. Both numbers are constants where it is called. */
INLINE void linear_tile(const void *panel, int64_t type, const float *x, int64_t x_stride, int64_t in, float *y, int64_t stride,
                        const int rows, const int vectors) {
  v16 sums[TILE_ROWS][PANEL / LANES];
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < vectors; c++) sums[r][c] = v_set(0.0f);
  for (int64_t k = 0; k < in; k++) {
    v16 weights[PANEL / LANES];
    for (int c = 0; c < vectors; c++)
      weights[c] = type == FLOAT32 ? v_load((const float *)panel + k * PANEL + c * LANES)
                                   : v_load_bf16((const uint16_t *)panel + k * PANEL + c * LANES);
    for (int r = 0; r < rows; r++) {
      v16 input = v_set(x[r * x_stride + k]);
      for (int c = 0; c < vectors; c++) sums[r][c] = v_fma(input, weights[c], sums[r][c]);
    }
  }
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < vectors; c++) v_store(y + r * stride + c * LANES, sums[r][c]);
}

INLINE void add_bias(const Linear *map, int64_t panel, int64_t rows, float *y, int64_t stride) {
  if (map->bias != NULL)
    for (int64_t column = panel * PANEL; column < map->out && column < (panel + 1) * PANEL; column++)
      for (int64_t r = 0; r < rows; r++) y[r * stride + column - panel * PANEL] += map->bias[column];
}

INLINE void linear_panel(const Linear *map, const int64_t type, int64_t panel, const float *x, int64_t x_stride, int64_t rows,
                         float *y, int64_t stride) {
  const int64_t in = map->in, size = type == FLOAT32 ? 4 : 2;
  const char *weights = (const char *)map->panels + panel * in * PANEL * size;
  y += panel * PANEL;
  int64_t r = 0;
  for (; r + TILE_ROWS <= rows; r += TILE_ROWS)
    for (int c = 0; c < PANEL / LANES; c += TILE_VECTORS)
      linear_tile(weights + c * LANES * size, type, x + r * x_stride, x_stride, in, y + r * stride + c * LANES,
                  stride, TILE_ROWS, TILE_VECTORS);
  const int64_t rest = rows - r;
  x += r * x_stride;
  float *out = y + r * stride;
  if (rest == 1) linear_tile(weights, type, x, x_stride, in, out, stride, 1, PANEL / LANES);
  for (int c = 0; rest > 1 && c < PANEL / LANES; c += TILE_VECTORS) {
    const char *columns = weights + c * LANES * size;
    switch (rest) {
      case 2: linear_tile(columns, type, x, x_stride, in, out + c * LANES, stride, 2, TILE_VECTORS); break;
      case 3: linear_tile(columns, type, x, x_stride, in, out + c * LANES, stride, 3, TILE_VECTORS); break;
#if defined(__AVX512F__)
      case 4: linear_tile(columns, type, x, x_stride, in, out + c * LANES, stride, 4, TILE_VECTORS); break;
      case 5: linear_tile(columns, type, x, x_stride, in, out + c * LANES, stride, 5, TILE_VECTORS); break;
#endif
    }
  }
  add_bias(map, panel, rows, y, stride);
}

/* The panels `first` to `last` - 1 of y = W x + bias. Rows of x and y begin `x_stride` and `stride` floats apart. y has room for
   whole panels. */
static void linear_panels(const Linear *map, const float *x, const Quantized *quantized, int64_t x_stride, int64_t rows, float *y,
                          int64_t stride, int64_t first, int64_t last) {
  for (int64_t panel = first; panel < last; panel++)
    if (map->type >= INT8) {
      const uint8_t *weights = (const uint8_t *)map->panels + panel * quantized->blocks * block_bytes(map->type);
      quantized_panel(weights, map->type, quantized, y + panel * PANEL, stride);
      add_bias(map, panel, rows, y + panel * PANEL, stride);
    } else if (map->type == FLOAT32)
      linear_panel(map, FLOAT32, panel, x, x_stride, rows, y, stride);
    else
      linear_panel(map, BFLOAT16, panel, x, x_stride, rows, y, stride);
}

INLINE int64_t panels_of(const Linear *map) { return (map->out + PANEL - 1) / PANEL; }

/* On one thread. The weights are no integers. */
static void linear_alone(const Linear *map, const float *x, int64_t x_stride, int64_t rows, float *y, int64_t stride) {
  linear_panels(map, x, NULL, x_stride, rows, y, stride, 0, panels_of(map));
}

/* ---- the same on several threads, which share the panels */

typedef struct {
  const Linear *map;
  const float *x;
  float *y;
  int64_t x_stride, rows, stride;
  Quantized quantized;
  const int64_t *adapters;
} LinearWork;

static void linear_part(void *arg, int64_t part, int64_t parts) {
  const LinearWork *w = arg;
  const int64_t panels = panels_of(w->map);
  linear_panels(w->map, w->x, &w->quantized, w->x_stride, w->rows, w->y, w->stride, panels * part / parts, panels * (part + 1) / parts);
}

static void quantize_part(void *arg, int64_t part, int64_t parts) {
  const LinearWork *w = arg;
  for (int64_t row = w->rows * part / parts; row < w->rows * (part + 1) / parts; row++)
    quantize_row(w->x + row * w->x_stride, w->map->in, &w->quantized, row);
}

static void adapt_part(void *arg, int64_t part, int64_t parts) {
  const LinearWork *w = arg;
  for (int64_t row = w->rows * part / parts; row < w->rows * (part + 1) / parts; row++)
    if (w->adapters[2 * row] >= 0)
      adapt_row(w->map, w->adapters[2 * row], w->adapters[2 * row + 1], w->x + row * w->x_stride, w->y + row * w->stride);
}

/* `scratch` has room for `quantized_bytes` of the inputs if the weights are integers. `adapters`: those of the rows, or NULL. */
static void linear(const Linear *map, const float *x, int64_t x_stride, int64_t rows, float *y, int64_t stride, int64_t threads,
                   void *scratch, const int64_t *adapters) {
  LinearWork work = {map, x, y, x_stride, rows, stride, {0}, adapters};
  if (map->type >= INT8) {
    work.quantized = quantized_rows(scratch, rows, map->in);
    run_parts(quantize_part, &work, rows < threads ? 1 : threads);
  }
  run_parts(linear_part, &work, threads);
  if (adapters != NULL && map->parts) run_parts(adapt_part, &work, rows < threads ? 1 : threads);
}

#endif

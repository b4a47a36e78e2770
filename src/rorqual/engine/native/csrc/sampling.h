/* Log-probabilities of all tokens, and the draw of one. */
#ifndef RORQUAL_SAMPLING_H
#define RORQUAL_SAMPLING_H

#include <math.h>

#include "vector.h"

enum { PIECE = 1024 }; /* probabilities are added in pieces, each in 16 interleaved chains, and the pieces in float64 */

INLINE v16 load_or(const float *row, int64_t at, int64_t n, float other) {
  if (n - at >= LANES) return v_load(row + at);
  float lanes[LANES];
  v_store(lanes, v_set(other));
  memcpy(lanes, row + at, (size_t)(n - at) * sizeof(float));
  return v_load(lanes);
}

INLINE float highest_of(const float *row, int64_t n) {
  v16 highest = v_set(-INFINITY);
  for (int64_t i = 0; i < n; i += LANES) highest = v_max(highest, load_or(row, i, n, -INFINITY));
  float lanes[LANES];
  v_store(lanes, highest);
  for (int i = 1; i < LANES; i++) lanes[0] = lanes[i] > lanes[0] ? lanes[i] : lanes[0];
  return lanes[0];
}

/* The sum of e^(row - shift) over entries `first` to `last` - 1 */
INLINE double sum_of_exponentials(const float *row, int64_t first, int64_t last, float shift) {
  v16 sums = v_set(0.0f);
  for (int64_t i = first; i < last; i += LANES) sums = v_add(sums, v_exp(v_sub(load_or(row, i, last, -INFINITY), v_set(shift))));
  return v_sum(sums);
}

static void log_softmax_row(float *row, int64_t vocab, float temperature) {
  if (temperature != 1.0f)
    for (int64_t i = 0; i < vocab; i++) row[i] /= temperature;
  const float highest = highest_of(row, vocab);
  double total = 0.0;
  for (int64_t i = 0; i < vocab; i += PIECE)
    total += sum_of_exponentials(row, i, i + PIECE < vocab ? i + PIECE : vocab, highest);
  const float shift = highest + (float)log(total);
  for (int64_t i = 0; i < vocab; i++) row[i] -= shift;
}

/* The token in whose interval of the cumulative probabilities `uniform` lies. Where rounding leaves a gap after a piece, it is the
   piece's likeliest token. */
static int64_t draw_row(const float *row, int64_t vocab, double uniform) {
  int64_t best = 0;
  double total = 0.0, before = 0.0;
  for (int64_t i = 0; i < vocab; i += PIECE)
    total += sum_of_exponentials(row, i, i + PIECE < vocab ? i + PIECE : vocab, 0.0f);
  const double target = uniform * total;
  for (int64_t i = 0; i < vocab; i += PIECE) {
    const int64_t end = i + PIECE < vocab ? i + PIECE : vocab;
    const double piece = sum_of_exponentials(row, i, end, 0.0f);
    if (before + piece <= target) {
      before += piece;
      continue;
    }
    best = i;
    for (int64_t j = i; j < end; j++) {
      if (row[j] > row[best]) best = j;
      before += exp_one(row[j]);
      if (before > target) return j;
    }
    return best;
  }
  for (int64_t i = 0; i < vocab; i++)
    if (row[i] > row[best]) best = i;
  return best;
}

#endif

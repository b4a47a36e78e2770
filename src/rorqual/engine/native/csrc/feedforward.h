/* Feed-forward networks: SwiGLU, and a mixture of experts behind a grouped top-k router. */
#ifndef RORQUAL_FEEDFORWARD_H
#define RORQUAL_FEEDFORWARD_H

#include <math.h>

#include "linear.h"

/* h [width] = silu(gate) * up * factor (Shazeer 2020, eq. 6) */
INLINE void swiglu(const float *gate, const float *up, int64_t width, float factor, float *h) {
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) {
    v16 g = v_load(gate + i);
    v_store(h + i, v_mul(v_mul(v_mul(g, v_sigmoid(g)), v_load(up + i)), v_set(factor)));
  }
  if (i < width) {
    float lanes[LANES];
    v16 g = v_load_first(gate + i, width - i);
    v_store(lanes, v_mul(v_mul(v_mul(g, v_sigmoid(g)), v_load_first(up + i, width - i)), v_set(factor)));
    memcpy(h + i, lanes, (size_t)(width - i) * sizeof(float));
  }
}

/* The affinities of the experts of a token, from its logits: sigmoid or softmax. */
INLINE void affinities(float *logits, int64_t n, int64_t score) {
  float highest = -INFINITY, total = 0.0f;
  for (int64_t i = 0; i < n; i++)
    if (logits[i] > highest) highest = logits[i];
  for (int64_t i = 0; i < n; i++)
    logits[i] = score == SIGMOID ? 1.0f / (1.0f + exp_one(-logits[i])) : exp_one(logits[i] - highest);
  for (int64_t i = 0; i < n; i++) total += logits[i];
  for (int64_t i = 0; score == SOFTMAX && i < n; i++) logits[i] /= total;
}

/* The indices of the `k` largest of n values, best first, and of equal values the first. `taken` [n] becomes 1 for them, else 0. */
INLINE void take_best(const float *values, int64_t n, int64_t k, int64_t *best, float *taken) {
  for (int64_t i = 0; i < n; i++) taken[i] = 0.0f;
  for (int64_t i = 0; i < k; i++) {
    int64_t found = -1;
    for (int64_t j = 0; j < n; j++)
      if (taken[j] == 0.0f && (found < 0 || values[j] > values[found])) found = j;
    taken[found] = 1.0f;
    if (best != NULL) best[i] = found;
  }
}

/* Choose the experts of a token, and compute their gates (DeepSeek-V3 eq. 13-16). `work` has room for 4 times the experts. */
INLINE void choose_experts(const Feedforward *f, float *affinity, float *work, int64_t *chosen, float *gates) {
  const int64_t n = f->n_experts, size = n / f->groups;
  float *biased = work, *group = work + n, *taken = work + 2 * n, *kept = work + 3 * n;
  affinities(affinity, n, f->score);
  for (int64_t i = 0; i < n; i++) biased[i] = f->bias == NULL ? affinity[i] : affinity[i] + f->bias[i];
  if (f->groups > 1) {
    for (int64_t g = 0; g < f->groups; g++) {
      float first = -INFINITY, second = -INFINITY;
      for (int64_t i = g * size; i < (g + 1) * size; i++) {
        if (biased[i] > first)
          second = first, first = biased[i];
        else if (biased[i] > second)
          second = biased[i];
      }
      group[g] = f->best_of_group ? first : first + second;
    }
    take_best(group, f->groups, f->groups_per_token, NULL, kept);
    for (int64_t i = 0; i < n; i++)
      if (kept[i / size] == 0.0f) biased[i] = -INFINITY;
  }
  take_best(biased, n, f->per_token, chosen, taken);
  float total = 0.0f;
  for (int64_t i = 0; i < f->per_token; i++) total += affinity[chosen[i]];
  for (int64_t i = 0; i < f->per_token; i++) {
    float gate = affinity[chosen[i]];
    if (f->normalized) gate = gate / (total + 1e-20f);
    gates[i] = gate * f->scale;
  }
}

#endif

/* An engine step of a decoder, compiled once for each instruction set. VARIANT names the set. */
#include <stdlib.h>

#include "attention.h"
#include "feedforward.h"
#include "linear.h"
#include "sampling.h"
#include "step.h"
#include "vector.h"

#define JOIN(name, variant) name##_##variant
#define NAMED(name, variant) JOIN(name, variant)

/* Rows of working values begin at multiples of 64 columns, because linear maps write whole panels. */
INLINE int64_t padded(int64_t columns) { return (columns + PANEL - 1) / PANEL * PANEL; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* Columns from head to head of the queries in the absorbed form: the latent, and the rotated part behind it. */
INLINE int64_t latent_query(const Attention *a) { return padded(a->kv_rank) + padded(a->rope.dim); }

typedef struct {
  const Model *model;
  const Step *step;
  const Layer *layer;
  int64_t index, router, threads;
  float *x, *normed;              /* [tokens, hidden] */
  float *wide, *queries, *mixed;  /* [tokens, padded columns] */
  float *added;                   /* [tokens, padded hidden] */
  float *scores;                  /* [threads, longest sequence + 16] */
  float *rows, *inner, *affinity; /* of experts */
  float *gates;                   /* [tokens, experts per token] */
  int64_t *chosen, longest;       /* [tokens, experts per token] */
  void *scratch;                  /* of linear maps */
} Work;

/* ---- attention of a layer */

INLINE int64_t bytes_of(const Step *step) { return step->pool_type == FLOAT32 ? 4 : 2; }

INLINE void store_row(const Work *work, int64_t which, int64_t slot, int64_t head, int64_t heads, const float *row, int64_t width) {
  char *pool = work->step->pools[2 * work->index + which];
  pool += ((slot / BLOCK * heads + head) * BLOCK + slot % BLOCK) * width * bytes_of(work->step);
  store_cached(pool, work->step->pool_type, row, width);
}

/* Norm and rotate the queries and keys of tokens, and cache the keys and values. */
static void store_grouped(void *arg, int64_t part, int64_t parts) {
  const Work *work = arg;
  const Step *step = work->step;
  const Attention *a = &work->layer->attention;
  const int64_t stride = padded(a->input.out), d = a->width;
  for (int64_t token = step->tokens * part / parts; token < step->tokens * (part + 1) / parts; token++) {
    float *heads = work->wide + token * stride;
    for (int64_t head = 0; head < a->heads + a->kv_heads; head++) {
      const float *norm = head < a->heads ? a->q_norm : a->k_norm;
      if (norm != NULL) rms_norm(heads + head * d, norm, d, a->eps, heads + head * d);
      rotate_halves(heads + head * d, &a->rope, step->positions[token]);
    }
    for (int64_t which = 0; step->slots[token] >= 0 && which < 2; which++)
      for (int64_t head = 0; head < a->kv_heads; head++)
        store_row(work, which, step->slots[token], head, a->kv_heads, heads + (a->heads + which * a->kv_heads + head) * d, d);
  }
}

/* Norm the latents of tokens, rotate the shared key, and cache both. */
static void store_latent(void *arg, int64_t part, int64_t parts) {
  const Work *work = arg;
  const Step *step = work->step;
  const Attention *a = &work->layer->attention;
  const int64_t stride = padded(a->input.out), width = a->kv_rank + a->rope.dim;
  for (int64_t token = step->tokens * part / parts; token < step->tokens * (part + 1) / parts; token++) {
    float *row = work->wide + token * stride, *latent = row + a->input.out - width;
    if (a->q_rank) rms_norm(row, a->q_norm, a->q_rank, a->eps, row);
    rms_norm(latent, a->k_norm, a->kv_rank, a->eps, latent);
    rotate_pairs(latent + a->kv_rank, &a->rope, step->positions[token]);
    if (step->slots[token] >= 0) store_row(work, 0, step->slots[token], 0, 1, latent, width);
  }
}

/* The queries of the absorbed form [tokens, heads, padded latent and rotated part], by heads. */
static void absorb_part(void *arg, int64_t part, int64_t parts) {
  const Work *work = arg;
  const Attention *a = &work->layer->attention;
  const int64_t tokens = work->step->tokens, plain = a->width - a->rope.dim, row = latent_query(a);
  const int64_t from_stride = padded(a->q_rank ? a->q_up.out : a->input.out);
  const float *from = a->q_rank ? work->mixed : work->wide;
  for (int64_t head = a->heads * part / parts; head < a->heads * (part + 1) / parts; head++) {
    float *to = work->queries + head * row;
    linear_alone(&a->absorb[head], from + head * a->width, from_stride, tokens, to, a->heads * row);
    for (int64_t token = 0; token < tokens; token++) {
      float *rotated = to + token * a->heads * row + a->kv_rank;
      memcpy(rotated, from + token * from_stride + head * a->width + plain, (size_t)a->rope.dim * sizeof(float));
      rotate_pairs(rotated, &a->rope, work->step->positions[token]);
    }
  }
}

/* Attend with some of the heads of all tokens. Padding tokens are left out. */
static void attend_part(void *arg, int64_t part, int64_t parts) {
  const Work *work = arg;
  const Step *step = work->step;
  const Attention *a = &work->layer->attention;
  const int latent = a->kind == LATENT;
  const int64_t width = latent ? a->kv_rank + a->rope.dim : a->width, mixed = latent ? a->kv_rank : a->width;
  const int64_t pool_row = BLOCK * width * bytes_of(step), repeat = a->heads / a->kv_heads;
  const int64_t q_row = latent ? latent_query(a) : a->width;
  const int64_t q_stride = latent ? a->heads * q_row : padded(a->input.out);
  const float *queries = latent ? work->queries : work->wide;
  const char *keys = step->pools[2 * work->index], *values = step->pools[2 * work->index + 1];
  for (int64_t sequence = 0; sequence < step->sequences; sequence++)
    for (int64_t token = step->first_tokens[sequence]; token < step->first_tokens[sequence + 1]; token++)
      for (int64_t head = a->heads * part / parts; head < a->heads * (part + 1) / parts; head++) {
        const int64_t shift = head / repeat * pool_row;
        const CachedHead cached = {
            keys + shift, values + shift, a->kv_heads * pool_row, width * bytes_of(step), width, mixed, step->pool_type,
            step->block_table + sequence * step->blocks_per_sequence};
        attend(queries + token * q_stride + head * q_row, &cached, step->positions[token] + 1, a->scale,
               work->scores + part * (work->longest + LANES), work->mixed + (token * a->heads + head) * mixed);
      }
}

/* What each head has mixed of the latents, as values [tokens, heads, value width]. */
static void expand_part(void *arg, int64_t part, int64_t parts) {
  const Work *work = arg;
  const Attention *a = &work->layer->attention;
  const int64_t tokens = work->step->tokens, row = padded(a->value_width);
  float *values = work->queries + part * tokens * row; /* the queries are not needed any more */
  for (int64_t head = a->heads * part / parts; head < a->heads * (part + 1) / parts; head++) {
    linear_alone(&a->expand[head], work->mixed + head * a->kv_rank, a->heads * a->kv_rank, tokens, values, row);
    for (int64_t token = 0; token < tokens; token++)
      memcpy(work->wide + (token * a->heads + head) * a->value_width, values + token * row, (size_t)a->value_width * sizeof(float));
  }
}

static void attention(Work *work) {
  const Attention *a = &work->layer->attention;
  const int64_t tokens = work->step->tokens, hidden = work->model->hidden, stride = padded(a->input.out);
  linear(&a->input, work->normed, hidden, tokens, work->wide, stride, work->threads, work->scratch, work->step->adapters);
  run_parts(a->kind == LATENT ? store_latent : store_grouped, work, tokens < work->threads ? 1 : work->threads);
  if (a->kind == LATENT) {
    if (a->q_rank) linear(&a->q_up, work->wide, stride, tokens, work->mixed, padded(a->q_up.out), work->threads, work->scratch, work->step->adapters);
    run_parts(absorb_part, work, work->threads);
  }
  run_parts(attend_part, work, work->threads);
  if (a->kind == LATENT) run_parts(expand_part, work, work->threads);
  linear(&a->output, a->kind == LATENT ? work->wide : work->mixed, a->output.in, tokens, work->added, padded(hidden), work->threads, work->scratch, work->step->adapters);
}

/* ---- feed-forward network of a layer */

static void swiglu_rows(const float *gate_up, const Dense *d, int64_t rows, const float *factors, float *h) {
  for (int64_t row = 0; row < rows; row++) {
    const float *gate = gate_up + row * padded(d->gate_up.out);
    swiglu(gate, gate + d->width, d->width, factors == NULL ? 1.0f : factors[row], h + row * d->width);
  }
}

static void dense(Work *work, const Dense *d, float *out) {
  const int64_t tokens = work->step->tokens, hidden = work->model->hidden;
  linear(&d->gate_up, work->normed, hidden, tokens, work->wide, padded(d->gate_up.out), work->threads, work->scratch, work->step->adapters);
  swiglu_rows(work->wide, d, tokens, NULL, work->mixed);
  linear(&d->down, work->mixed, d->width, tokens, out, padded(hidden), work->threads, work->scratch, work->step->adapters);
}

static void choose_part(void *arg, int64_t part, int64_t parts) {
  const Work *work = arg;
  const Feedforward *f = &work->layer->ffn;
  const int64_t tokens = work->step->tokens, n = f->per_token;
  for (int64_t token = tokens * part / parts; token < tokens * (part + 1) / parts; token++) {
    float *affinity = work->affinity + token * (padded(f->n_experts) + 4 * f->n_experts);
    choose_experts(f, affinity, affinity + padded(f->n_experts), work->chosen + token * n, work->gates + token * n);
  }
}

/* The gated sum of the experts of each token, in the order of the experts' numbers, added to `work->added`. */
static void add_experts(Work *work) {
  const Feedforward *f = &work->layer->ffn;
  const int64_t tokens = work->step->tokens, hidden = work->model->hidden, n = f->per_token;
  const int64_t stride = padded(f->n_experts) + 4 * f->n_experts;
  linear(&f->router, work->normed, hidden, tokens, work->affinity, stride, work->threads, work->scratch, NULL);
  run_parts(choose_part, work, tokens < work->threads ? 1 : work->threads);
  if (work->step->experts != NULL)
    for (int64_t token = 0; token < tokens; token++)
      memcpy(work->step->experts + (token * work->model->routers + work->router) * n, work->chosen + token * n,
             (size_t)n * sizeof(int64_t));
  float *gathered = work->queries, *factors = work->affinity; /* the affinities are not needed any more */
  for (int64_t expert = 0; expert < f->n_experts; expert++) {
    int64_t rows = 0;
    for (int64_t i = 0; i < tokens * n; i++)
      if (work->chosen[i] == expert) {
        memcpy(gathered + rows * hidden, work->normed + i / n * hidden, (size_t)hidden * sizeof(float));
        factors[rows++] = work->gates[i];
      }
    if (rows == 0) continue;
    const Dense *d = &f->experts[expert];
    linear(&d->gate_up, gathered, hidden, rows, work->wide, padded(d->gate_up.out), work->threads, work->scratch, NULL);
    swiglu_rows(work->wide, d, rows, factors, work->mixed);
    linear(&d->down, work->mixed, d->width, rows, work->rows, padded(hidden), work->threads, work->scratch, NULL);
    rows = 0;
    for (int64_t i = 0; i < tokens * n; i++)
      if (work->chosen[i] == expert) {
        float *sum = work->added + i / n * padded(hidden);
        const float *row = work->rows + rows++ * padded(hidden);
        for (int64_t j = 0; j < hidden; j++) sum[j] += row[j];
      }
  }
  work->router++;
}

static void feedforward(Work *work) {
  const Feedforward *f = &work->layer->ffn;
  if (f->shared.width)
    dense(work, &f->shared, work->added);
  else
    memset(work->added, 0, (size_t)(work->step->tokens * padded(work->model->hidden)) * sizeof(float));
  if (f->n_experts) add_experts(work);
}

/* ---- the step */

static void norm_rows(Work *work, const float *weight, float *out) {
  const int64_t hidden = work->model->hidden;
  for (int64_t token = 0; token < work->step->tokens; token++)
    rms_norm(work->x + token * hidden, weight, hidden, work->model->eps, out + token * hidden);
}

static void add_rows(Work *work) {
  const int64_t hidden = work->model->hidden, stride = padded(hidden);
  for (int64_t token = 0; token < work->step->tokens; token++)
    for (int64_t i = 0; i < hidden; i++) work->x[token * hidden + i] += work->added[token * stride + i];
}

static void embed(const Work *work) {
  const Model *model = work->model;
  const int64_t hidden = model->hidden;
  if (work->step->embeddings != NULL) {
    memcpy(work->x, work->step->embeddings, (size_t)(work->step->tokens * hidden) * sizeof(float));
    return;
  }
  for (int64_t token = 0; token < work->step->tokens; token++) {
    const int64_t first = work->step->ids[token] * hidden;
    for (int64_t i = 0; i < hidden; i++)
      work->x[token * hidden + i] = model->embedding_type == FLOAT32 ? ((const float *)model->embedding)[first + i]
                                                                     : to_float(((const uint16_t *)model->embedding)[first + i]);
  }
}

/* Find room for all working values in one piece of memory. Return it, or NULL. */
static void *allocate(Work *work) {
  const Model *model = work->model;
  const int64_t tokens = work->step->tokens, hidden = model->hidden;
  int64_t wide = padded(hidden), queries = hidden, mixed = hidden, affinity = 1, per_token = 1, longest_input = hidden;
  for (int64_t i = 0; i < model->n_layers; i++) {
    const Attention *a = &model->layers[i].attention;
    const Feedforward *f = &model->layers[i].ffn;
    longest_input = most(longest_input, most(a->output.in, most(a->q_rank, f->shared.width)));
    if (f->n_experts) longest_input = most(longest_input, f->experts[0].width);
    wide = most(wide, most(padded(a->input.out), padded(a->heads * a->value_width)));
    mixed = most(mixed, most(a->heads * (a->kind == LATENT ? a->kv_rank : a->width), padded(a->q_rank ? a->q_up.out : 1)));
    if (a->kind == LATENT)
      queries = most(queries, most(a->heads * latent_query(a), work->threads * padded(a->value_width)));
    wide = most(wide, padded(f->shared.width ? f->shared.gate_up.out : 1)), mixed = most(mixed, f->shared.width);
    if (f->n_experts) {
      wide = most(wide, padded(f->experts[0].gate_up.out)), mixed = most(mixed, f->experts[0].width);
      affinity = most(affinity, padded(f->n_experts) + 4 * f->n_experts), per_token = most(per_token, f->per_token);
    }
  }
  for (int64_t i = 0; i < tokens; i++) work->longest = most(work->longest, work->step->positions[i] + 1);
  /* A token may choose an expert once, so an expert has at most `tokens` rows. */
  float **parts[] = {&work->x, &work->normed, &work->wide, &work->queries, &work->mixed, &work->added, &work->rows,
                     &work->affinity, &work->gates, &work->scores, (float **)&work->chosen, (float **)&work->scratch};
  const int64_t sizes[] = {tokens * hidden, most(tokens, work->step->sampled) * hidden, tokens * wide, tokens * queries, tokens * mixed,
                           tokens * padded(hidden), tokens * padded(hidden), tokens * affinity, tokens * per_token,
                           work->threads * (work->longest + LANES), 2 * tokens * per_token,
                           quantized_bytes(most(tokens, work->step->sampled), longest_input) / 4};
  int64_t total = 0;
  for (int i = 0; i < 12; i++) total += padded(sizes[i]);
  void *memory = NULL;
  if (posix_memalign(&memory, 64, (size_t)total * sizeof(float))) return NULL;
  float *next = memory;
  for (int i = 0; i < 12; i++) *parts[i] = next, next += padded(sizes[i]);
  memset(work->mixed, 0, (size_t)(tokens * mixed) * sizeof(float)); /* attention leaves out padding tokens */
  return memory;
}

int NAMED(run_step, VARIANT)(const Model *model, const Step *step, int64_t threads) {
  const int64_t hidden = model->hidden;
  Work work = {.model = model, .step = step, .threads = threads};
  void *memory = allocate(&work);
  if (memory == NULL) return 1;
  embed(&work);
  for (work.index = 0; work.index < model->n_layers; work.index++) {
    work.layer = &model->layers[work.index];
    norm_rows(&work, work.layer->attention_norm, work.normed);
    attention(&work);
    add_rows(&work);
    norm_rows(&work, work.layer->ffn_norm, work.normed);
    feedforward(&work);
    add_rows(&work);
  }
  norm_rows(&work, model->norm, step->hidden);
  for (int64_t i = 0; i < step->sampled; i++)
    memcpy(work.normed + i * hidden, step->hidden + step->last[i] * hidden, (size_t)hidden * sizeof(float));
  if (step->sampled) linear(&model->head, work.normed, hidden, step->sampled, step->logits, step->logits_stride, threads, work.scratch, NULL);
  free(memory);
  return 0;
}

/* Sample a token of each row of the logits. Return whether a row ends. */
static int sample_rows(const Model *model, const Step *step, const Decoding *d, const double *uniform, int64_t *ids, float *logprobs) {
  int ends = 0;
  for (int64_t row = 0; row < step->tokens; row++) {
    float *logits = step->logits + row * step->logits_stride;
    int64_t id = 0; /* log-probabilities may tie where logits do not */
    for (int64_t i = 1; d->greedy[row] && i < model->vocab; i++)
      if (logits[i] > logits[id]) id = i;
    log_softmax_row(logits, model->vocab, d->temperature[row]);
    ids[row] = d->greedy[row] ? id : draw_row(logits, model->vocab, uniform[row]);
    logprobs[row] = logits[ids[row]];
    ends |= !isfinite(logprobs[row]);
    for (int64_t i = 0; i < d->n_stops; i++) ends |= !d->ignores_stops[row] && ids[row] == d->stops[i];
  }
  return ends;
}

int NAMED(decode, VARIANT)(Decoding *d, const Model *model, const Step *first, int64_t threads) {
  Step step = *first;
  const int64_t rows = step.tokens;
  int ends = 0;
  for (d->done = 0; d->done < d->steps && !ends; d->done++) {
    if (NAMED(run_step, VARIANT)(model, &step, threads)) return 1;
    const int64_t first_row = d->done * rows;
    int64_t *sampled = d->sampled + first_row;
    ends = sample_rows(model, &step, d, d->uniform + first_row, sampled, d->logprobs + first_row);
    step.ids = sampled, step.positions += rows, step.slots += rows, step.hidden += rows * model->hidden;
    if (step.experts != NULL) step.experts += rows * model->routers * model->per_token;
  }
  return 0;
}

int NAMED(apply_linear, VARIANT)(const Linear *map, const float *x, int64_t rows, float *y, int64_t stride) {
  void *scratch = map->type >= INT8 ? malloc((size_t)quantized_bytes(rows, map->in)) : NULL;
  if (map->type >= INT8 && scratch == NULL) return 1;
  linear(map, x, map->in, rows, y, stride, 1, scratch, NULL);
  free(scratch);
  return 0;
}

void NAMED(log_softmax, VARIANT)(float *logits, int64_t rows, int64_t vocab, int64_t stride, const float *temperature) {
  for (int64_t row = 0; row < rows; row++) log_softmax_row(logits + row * stride, vocab, temperature[row]);
}

void NAMED(draw, VARIANT)(const float *logprobs, int64_t rows, int64_t vocab, int64_t stride, const double *uniform, int64_t *ids) {
  for (int64_t row = 0; row < rows; row++) ids[row] = draw_row(logprobs + row * stride, vocab, uniform[row]);
}

/* The tables that Python fills once for a model, and the arguments of an engine step. `library.py` mirrors every struct. */
#ifndef RORQUAL_STEP_H
#define RORQUAL_STEP_H

#include <stdint.h>

enum { PANEL = 64, BLOCK = 64 };
enum { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3 };

/* The matrices A^T and s B^T of the adapters of a stack, for the outputs `first` to `first` + `out` - 1 of a map */
typedef struct {
  const void *down, *up; /* [adapters, in, rank] and [adapters, rank, out], or NULL */
  int64_t rank, first, out, type;
} LowRank;

/* y = W x + bias. The weight [out, in] is stored in panels of 64 outputs, [ceil(out / 64), in, 64], the last one filled with zeros. The
   panels of INT8 and INT4 are those of `quantized.h`. */
typedef struct {
  const void *panels;
  const float *bias; /* [out], or NULL */
  int64_t in, out;
  int64_t type; /* of the panels */
  const LowRank *low_rank; /* [stacks, parts] */
  int64_t parts;
} Linear;

/* cos and sin [positions, dim / 2] */
typedef struct {
  const float *cos, *sin;
  int64_t dim;
} Rope;

enum { GROUPED = 0, LATENT = 1 };

/* Attention of one of two kinds.

   GROUPED: grouped-query attention. `input` computes the queries, then the keys, then the values, of `width` columns a head.
   LATENT: absorbed latent attention (DeepSeek-V2, section 2.1). `input` computes the queries, or with `q_up` their latents of
   `q_rank` columns, then the latent of keys and values of `kv_rank` columns, then the rotated part of the key. A query head has
   `width` columns, of which the last `rope.dim` are rotated. `absorb` maps the others to the latent, and `expand` maps what a head
   has mixed of the latents to its `value_width` values; each has one map for each head. */
typedef struct {
  int64_t kind, heads, kv_heads, width;
  Linear input, output;
  const float *q_norm, *k_norm; /* GROUPED: of a head, or NULL. LATENT: of both latents */
  Rope rope;
  int64_t q_rank, kv_rank, value_width;
  Linear q_up;
  const Linear *absorb, *expand;
  float scale, eps;
} Attention;

/* SwiGLU. `gate_up` computes the gate, then the up projection, of `width` columns each. */
typedef struct {
  Linear gate_up, down;
  int64_t width;
} Dense;

enum { SIGMOID = 0, SOFTMAX = 1 };

/* A mixture of experts (DeepSeek-V3 eq. 12-16), or with `n_experts` 0 the network `shared` alone. `shared.width` 0: none. */
typedef struct {
  Dense shared;
  const Dense *experts;
  Linear router;     /* fp32 */
  const float *bias; /* [experts], or NULL */
  int64_t n_experts, per_token, groups, groups_per_token, score, best_of_group, normalized;
  float scale;
} Feedforward;

typedef struct {
  const float *attention_norm, *ffn_norm; /* [hidden] */
  Attention attention;
  Feedforward ffn;
} Layer;

typedef struct {
  const Layer *layers;
  int64_t n_layers, hidden, vocab, routers, per_token;
  const void *embedding; /* [vocab, hidden] */
  int64_t embedding_type;
  const float *norm; /* [hidden] */
  Linear head;
  float eps;
} Model;

/* One forward pass. Pools are [blocks, heads, 64, width]. The tokens of a sequence are consecutive. */
typedef struct {
  int64_t tokens, sequences, sampled, blocks_per_sequence, pool_type;
  const int64_t *ids, *positions, *slots; /* [tokens]; slot -1: padding, which is not cached */
  const float *embeddings;                /* [tokens, hidden] instead of those of `ids`, or NULL */
  const int64_t *first_tokens;            /* [sequences + 1] */
  const int64_t *block_table;             /* [sequences, blocks_per_sequence] */
  void *const *pools;                     /* [layers, 2]: keys and values; of latent attention, twice the latents */
  const int64_t *last;                    /* [sampled]: the tokens whose logits are wanted */
  float *hidden;                          /* [tokens, hidden] after the final norm */
  int64_t *experts;                       /* [tokens, routers, per_token], or NULL */
  float *logits;                          /* [sampled, stride of logits] */
  int64_t logits_stride;                  /* a multiple of 64 */
  const int64_t *adapters;                /* [tokens, 2]: a stack or -1, and the adapter's index there. Or NULL */
} Step;

/* Decoding steps of `rows` sequences with one token each, until `steps` are done or a row ends. A step's arguments follow those of the
   step before it in each array of `Step`, except `ids`, which are the tokens that the step before it sampled, and `logits`. */
typedef struct {
  int64_t steps;
  const float *temperature; /* [rows] */
  const uint8_t *greedy;    /* [rows] */
  const double *uniform;    /* [steps, rows], in [0, 1) */
  const int64_t *stops;     /* [n_stops]: tokens that end a row */
  int64_t n_stops;
  const uint8_t *ignores_stops; /* [rows] */
  int64_t *sampled;             /* [steps, rows] */
  float *logprobs;              /* [steps, rows]; a row ends if one is not finite */
  int64_t done;                 /* the steps that were run */
} Decoding;

/* Return 0, or 1 if there is no memory. */
int decode_avx2(Decoding *, const Model *, const Step *, int64_t threads);
int decode_avx512(Decoding *, const Model *, const Step *, int64_t threads);
int decode_avx512vnni(Decoding *, const Model *, const Step *, int64_t threads);
int run_step_avx2(const Model *, const Step *, int64_t threads);
int run_step_avx512(const Model *, const Step *, int64_t threads);
int run_step_avx512vnni(const Model *, const Step *, int64_t threads);
int apply_linear_avx2(const Linear *, const float *x, int64_t rows, float *y, int64_t stride);
int apply_linear_avx512(const Linear *, const float *x, int64_t rows, float *y, int64_t stride);
int apply_linear_avx512vnni(const Linear *, const float *x, int64_t rows, float *y, int64_t stride);

/* Replace each row of logits [rows, stride] by its log-softmax at the row's temperature. */
void log_softmax_avx2(float *logits, int64_t rows, int64_t vocab, int64_t stride, const float *temperature);
void log_softmax_avx512(float *logits, int64_t rows, int64_t vocab, int64_t stride, const float *temperature);
void log_softmax_avx512vnni(float *logits, int64_t rows, int64_t vocab, int64_t stride, const float *temperature);
/* Draw a token of each row of log-probabilities by inverse transform sampling with its random number in [0, 1). */
void draw_avx2(const float *logprobs, int64_t rows, int64_t vocab, int64_t stride, const double *uniform, int64_t *ids);
void draw_avx512(const float *logprobs, int64_t rows, int64_t vocab, int64_t stride, const double *uniform, int64_t *ids);
void draw_avx512vnni(const float *logprobs, int64_t rows, int64_t vocab, int64_t stride, const double *uniform, int64_t *ids);

/* Return whether the processor has the instructions of the variant avx512vnni. */
int has_vnni(void);

/* Call `work(arg, part, parts)` for each part on a thread of its own, and return when all have ended. */
void run_parts(void (*work)(void *, int64_t, int64_t), void *arg, int64_t parts);

#endif

/* Attention block and feed-forward block of a transformer block for a few rows, as one function each
   instead of a dozen operators that each start threads and pass through memory.

       attention_block:     y = x + wo attend(rope(wq n), rope(wk n), wv n),    n = rms_norm(x)
       feed_forward_block:  y = x + w2 (silu(w1 n) * w3 n)

   Each is one parallel region: threads share the work of every step, with a barrier after it. Sums are
   float32 and inputs of products are elements, as in plain torch. A row's result depends neither on
   other rows nor on the number of threads. */

#include "transformer_ops.h"

#include <stdlib.h>

#define CHUNK 256 /* positions whose attention one thread computes */

/* inference_ops.py has the same structures. */
typedef struct {
    const element *norm; /* (dim) */
    double eps;
    int64_t heads, kv_heads, head_dim;
    matrix wq, wk, wv, wo;
} attention_weights;

typedef struct {
    const element *norm;
    double eps;
    matrix w1, w2, w3;
} feed_forward_weights;

/* Attention reads keys for scores, then values for their weighted sums. Heads of 32, 64 and 128 are read
   for up to MAX_HEADS query heads at a time, and values are prefetched while keys are scored. */
#ifndef NO_SIMD
#define MAX_HEADS 4
INLINE void attention_scores(const int head_dim, const int heads, const element *q,
                             const element *keys, const element *values, int64_t count,
                             float *scores) {
    enum { AT_ONCE = SUMS / MAX_HEADS };
    const float scale = 1.0f / sqrtf((float)head_dim);
    factor factors[MAX_HEADS * 128];
    for (int i = 0; i < heads * head_dim; i += STEP) load_factors(q + i, factors + i);
    for (int64_t p = 0; p < count; p += AT_ONCE) {
        lanes sums[SUMS];
#pragma GCC unroll 16
        for (int i = 0; i < AT_ONCE * head_dim; i += 64 / sizeof *keys) {
            __builtin_prefetch(keys + p * head_dim + i + 1024);
            __builtin_prefetch(values + p * head_dim + i);
        }
#pragma GCC unroll 16
        for (int i = 0; i < SUMS; i++) sums[i] = broadcast_lanes(0);
#pragma GCC unroll 1
        for (int d = 0; d < head_dim; d += STEP)
#pragma GCC unroll 4
            for (int i = 0; i < AT_ONCE; i++) {
                const vector k = load_vector(keys + (p + i < count ? p + i : p) * head_dim + d);
#pragma GCC unroll 4
                for (int h = 0; h < heads; h++)
                    sums[AT_ONCE * h + i] =
                        add_dot(sums[AT_ONCE * h + i], factors + h * head_dim + d, k);
            }
        float reduced[SUMS];
        store_reduced(reduced, sums);
        for (int h = 0; h < heads; h++)
            for (int i = 0; i < AT_ONCE; i++)
                scores[h * CHUNK + p + i] = reduced[AT_ONCE * h + i] * scale;
    }
}

INLINE void weighted_sum(const int head_dim, const int heads, const float *scores,
                         const element *values, int64_t count, float *y, int64_t stride) {
    const int most = SUMS / (heads == 3 ? 4 : heads); /* a power of two, which divides head_dim */
    const int across = most * LANES < head_dim ? most : head_dim / LANES;
    for (int d = 0; d < head_dim; d += across * LANES) {
        lanes sums[SUMS];
#pragma GCC unroll 16
        for (int i = 0; i < heads * across; i++) sums[i] = broadcast_lanes(0);
        for (int64_t p = 0; p < count; p++)
#pragma GCC unroll 16
            for (int j = 0; j < across; j++) {
                const lanes v = load_elements(values + p * head_dim + d + LANES * j);
#pragma GCC unroll 4
                for (int h = 0; h < heads; h++)
                    sums[h * across + j] = multiply_add_lanes(broadcast_lanes(scores[h * CHUNK + p]),
                                                              v, sums[h * across + j]);
            }
#pragma GCC unroll 4
        for (int h = 0; h < heads; h++)
#pragma GCC unroll 16
            for (int j = 0; j < across; j++)
                store_lanes(y + h * stride + d + LANES * j, sums[h * across + j]);
    }
}
#endif

/* The same for one query head of any size. */
static void attention_scores_any(int64_t head_dim, const element *q, const element *keys,
                                 const element *values, int64_t count, float *scores) {
    (void)values;
    for (int64_t p = 0; p < count; p++) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < head_dim; d++)
            sum += to_float(q[d]) * to_float(keys[p * head_dim + d]);
        scores[p] = sum / sqrtf((float)head_dim);
    }
}

static void weighted_sum_any(int64_t head_dim, const float *scores, const element *values,
                             int64_t count, float *y, int64_t stride) {
    (void)stride;
    memset(y, 0, head_dim * sizeof(float));
    for (int64_t p = 0; p < count; p++)
#pragma omp simd
        for (int64_t d = 0; d < head_dim; d++)
            y[d] += scores[p] * to_float(values[p * head_dim + d]);
}

/* Attention of `group` query heads to `count` positions of the KV head that they share. For each head
   `out` gets the sum of head_dim values, weighted by exp(score - largest score), then the largest
   score and the sum of the weights. */
#ifdef NO_SIMD
#define MAX_HEADS 1
#define BY_SIZE(name, ...) name##_any(head_dim, __VA_ARGS__);
#else
#define BY_HEADS(name, size, ...)                                                                    \
    switch (heads) {                                                                                 \
        case 1: name(size, 1, __VA_ARGS__); break;                                                   \
        case 2: name(size, 2, __VA_ARGS__); break;                                                   \
        case 3: name(size, 3, __VA_ARGS__); break;                                                   \
        default: name(size, 4, __VA_ARGS__);                                                         \
    }
#define BY_SIZE(name, ...)                                                                           \
    switch (head_dim) {                                                                              \
        case 32: BY_HEADS(name, 32, __VA_ARGS__) break;                                              \
        case 64: BY_HEADS(name, 64, __VA_ARGS__) break;                                              \
        case 128: BY_HEADS(name, 128, __VA_ARGS__) break;                                            \
        default: name##_any(head_dim, __VA_ARGS__);                                                  \
    }
#endif
static void attend(int64_t head_dim, const element *q, const element *keys, const element *values,
                   int64_t group, int64_t count, float *scores, float *out) {
    const int64_t stride = head_dim + 2;
    const int64_t step = head_dim == 32 || head_dim == 64 || head_dim == 128 ? MAX_HEADS : 1;
    for (int64_t h = 0; h < group; h += step) {
        const int64_t heads = min_int(group - h, step);
        (void)heads;
        BY_SIZE(attention_scores, q + h * head_dim, keys, values, count, scores + h * CHUNK)
    }
    for (int64_t h = 0; h < group; h++) {
        float *row = scores + h * CHUNK, max_score = row[0], sum = 0;
#pragma omp simd reduction(max : max_score)
        for (int64_t p = 0; p < count; p++) max_score = row[p] > max_score ? row[p] : max_score;
#pragma omp simd reduction(+ : sum)
        for (int64_t p = 0; p < count; p++) sum += row[p] = fast_exp(row[p] - max_score);
        out[h * stride + head_dim] = max_score;
        out[h * stride + head_dim + 1] = sum;
    }
    for (int64_t h = 0; h < group; h += step) {
        const int64_t heads = min_int(group - h, step);
        (void)heads;
        BY_SIZE(weighted_sum, scores + h * CHUNK, values, count, out + h * stride, stride)
    }
}

/* The attention of one head from the results of `count` chunks, `stride` apart. */
static void combine(const float *chunks, int64_t count, int64_t stride, int64_t head_dim, float *sums,
                    element *y) {
    float max_score = chunks[head_dim], sum_exp = 0;
    for (int64_t c = 1; c < count; c++)
        max_score =
            chunks[c * stride + head_dim] > max_score ? chunks[c * stride + head_dim] : max_score;
    memset(sums, 0, head_dim * sizeof(float));
    for (int64_t c = 0; c < count; c++) {
        const float *chunk = chunks + c * stride;
        float weight = fast_exp(chunk[head_dim] - max_score);
        sum_exp += weight * chunk[head_dim + 1];
        for (int64_t i = 0; i < head_dim; i++) sums[i] += weight * chunk[i];
    }
    for (int64_t i = 0; i < head_dim; i++) y[i] = from_float(sums[i] / sum_exp);
}

/* x (rows, dim), at most MAX_ROWS rows. Stores their keys and values in the cache; then each
   attends to all positions up to its own. y (rows, dim): x + the result, or with `is_partial`
   the float32 result. Returns 1 without memory, 2 for a position outside the cache. */
int NAMED(attention_block)(const attention_weights *l, const cache_layer *cache,
                           const token_positions *at, const element *x, void *y, int is_partial) {
    const int64_t rows = at->rows;
    int64_t positions[MAX_ROWS], last = 0;
    for (int64_t b = 0; b < rows; b++) {
        positions[b] = position_of(at, b);
        if (positions[b] < 0 || positions[b] >= cache_row(cache, at, b, l->head_dim).seq_len) return 2;
        last = max_int(last, positions[b]);
    }
    const int64_t dim = l->wq.k, hd = l->head_dim, kv = l->kv_heads, group = l->heads / kv;
    const int64_t q_dim = l->heads * hd, kv_dim = kv * hd, width = q_dim + 2 * kv_dim;
    const int64_t chunks = last / CHUNK + 1, result_size = group * (hd + 2);
    const int64_t widest = max_int(dim, q_dim);
    /* float32 first, for its alignment */
    const int64_t floats = rows * width + rows * kv * chunks * result_size;
    const int64_t num_elements = rows * (dim + 2 * q_dim);
    char *memory = malloc(4 * floats + prepared_size(rows, widest) + num_elements * sizeof(element));
    if (!memory) return 1;
    float *qkv = (float *)memory, *chunk_results = qkv + rows * width;
    element *normed = (element *)(memory + 4 * floats + prepared_size(rows, widest));
    element *q_rotated = normed + rows * dim, *attended = q_rotated + rows * q_dim;
    inputs in = {.x = normed, .rows = rows, .k = dim};
    inputs heads = {.x = attended, .rows = rows, .k = q_dim};
    assign_prepared(&in, memory + 4 * floats);
    assign_prepared(&heads, memory + 4 * floats);
#pragma omp parallel
    {
        float scratch[group * CHUNK + hd];
        element dequantized[cache_row(cache, at, 0, hd).key_scales ? 2 * CHUNK * hd : 1];
#pragma omp for schedule(static)
        for (int64_t b = 0; b < rows; b++)
            rms_norm(x + b * dim, l->norm, l->eps, dim, normed + b * dim);
        prepare(&in, &l->wq);

        const int64_t tq = tiles_of(&l->wq), tk = tiles_of(&l->wk);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tq + 2 * tk; t++) {
            const matrix *m = t < tq ? &l->wq : t < tq + tk ? &l->wk : &l->wv;
            const int64_t tile = t < tq ? t : (t - tq) % tk;
            const int64_t column = t < tq ? 0 : t < tq + tk ? q_dim : q_dim + kv_dim;
            multiply_tile(m, &in, tile, qkv + column + tile * TILE, width);
        }

#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows * kv; i++) {
            int64_t b = i / kv, h = i % kv;
            const cache_layer kv_row = cache_row(cache, at, b, hd);
            int64_t offset = h * kv_row.head_stride + positions[b] * hd;
            const float *freqs = freqs_cis_of(at, b, hd);
            const float *from = qkv + b * width;
            for (int64_t g = h * group; g < (h + 1) * group; g++)
                apply_rope(from + g * hd, freqs, hd, q_rotated + b * q_dim + g * hd);
            element row[hd];
            apply_rope(from + q_dim + h * hd, freqs, hd, row);
            store_head(kv_row.keys, kv_row.key_scales, offset, hd, row);
            for (int64_t d = 0; d < hd; d++) row[d] = from_float(from[q_dim + kv_dim + h * hd + d]);
            store_head(kv_row.values, kv_row.value_scales, offset, hd, row);
        }

#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < rows * kv * chunks; i++) {
            int64_t b = i / (kv * chunks), h = i / chunks % kv, first = i % chunks * CHUNK;
            const int64_t count = min_int(positions[b] + 1 - first, CHUNK);
            if (count <= 0) continue;
            const cache_layer kv_row = cache_row(cache, at, b, hd);
            int64_t offset = h * kv_row.head_stride + first * hd;
            const element *q = q_rotated + b * q_dim + h * group * hd;
            const element *keys =
                load_heads(kv_row.keys, kv_row.key_scales, offset, hd, count, dequantized);
            const element *values = load_heads(kv_row.values, kv_row.value_scales, offset, hd, count,
                                                dequantized + CHUNK * hd);
            attend(hd, q, keys, values, group, count, scratch, chunk_results + i * result_size);
        }

#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows * l->heads; i++) {
            int64_t b = i / l->heads, head = i % l->heads, h = head / group, g = head % group;
            combine(chunk_results + (b * kv + h) * chunks * result_size + g * (hd + 2),
                    positions[b] / CHUNK + 1, result_size, hd, scratch,
                    attended + b * q_dim + head * hd);
        }
        prepare(&heads, &l->wo);

#pragma omp for schedule(static)
        for (int64_t t = 0; t < tiles_of(&l->wo); t++)
            output_tile(&l->wo, &heads, t, x, y, is_partial);
    }
    free(memory);
    return 0;
}

/* x and y as in `attention_block`. */
int NAMED(feed_forward_block)(const feed_forward_weights *l, const element *x, void *y,
                              int64_t rows, int is_partial) {
    const int64_t dim = l->w1.k, hidden = l->w2.k, widest = max_int(dim, hidden);
    char *memory = malloc(prepared_size(rows, widest) + rows * (dim + hidden) * sizeof(element));
    if (!memory) return 1;
    element *normed = (element *)(memory + prepared_size(rows, widest));
    element *between = normed + rows * dim;
    inputs in = {.x = normed, .rows = rows, .k = dim};
    inputs inner = {.x = between, .rows = rows, .k = hidden};
    assign_prepared(&in, memory);
    assign_prepared(&inner, memory);
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t b = 0; b < rows; b++)
            rms_norm(x + b * dim, l->norm, l->eps, dim, normed + b * dim);
        prepare(&in, &l->w1);

#pragma omp for schedule(static)
        for (int64_t t = 0; t < tiles_of(&l->w1); t++) {
            float gates[MAX_ROWS * TILE], ups[MAX_ROWS * TILE];
            multiply_tile(&l->w1, &in, t, gates, TILE);
            multiply_tile(&l->w3, &in, t, ups, TILE);
            for (int64_t b = 0; b < rows; b++)
                for (int64_t r = 0; r < outputs_of(&l->w1, t); r++)
                    between[b * hidden + t * TILE + r] =
                        silu_mul(gates[b * TILE + r], ups[b * TILE + r]);
        }
        prepare(&inner, &l->w2);

#pragma omp for schedule(static)
        for (int64_t t = 0; t < tiles_of(&l->w2); t++)
            output_tile(&l->w2, &inner, t, x, y, is_partial);
    }
    free(memory);
    return 0;
}

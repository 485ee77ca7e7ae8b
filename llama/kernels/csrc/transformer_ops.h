/* Norm, rotary embedding, gate and KV cache, for decoding (decode_block.c) and prompts (prefill.c). */

#ifndef TRANSFORMER_OPS_H
#define TRANSFORMER_OPS_H

#include "matmul.h"

/* A layer's keys and values, each (rows, kv_heads, seq_len, head_dim); strides in elements. They are
   elements, or int8 with a scale for each position of a head, (rows, kv_heads, seq_len). */
typedef struct cache_layer {
    void *keys, *values;
    float *key_scales, *value_scales; /* NULL for elements */
    int64_t row_stride, head_stride, seq_len;
    /* Where each row has a cache of its own, these are its first layer's, and their `row_stride` is
       that between layers; else NULL. */
    const struct cache_layer *rows;
    int64_t layer;
} cache_layer;

/* Stores a head's key or value of one position. */
INLINE void store_head(void *numbers, float *scales, int64_t offset, int64_t head_dim,
                       const element *x) {
    if (!scales) {
        memcpy((element *)numbers + offset, x, head_dim * sizeof *x);
        return;
    }
    int32_t sum;
    scales[offset / head_dim] = quantize(x, head_dim, (int8_t *)numbers + offset, &sum);
}

/* `count` positions from an offset on, as elements: in place, or dequantized to `space`. */
INLINE const element *load_heads(const void *numbers, const float *scales, int64_t offset,
                                 int64_t head_dim, int64_t count, element *space) {
    if (!scales) return (const element *)numbers + offset;
    const int8_t *from = (const int8_t *)numbers + offset;
    for (int64_t p = 0; p < count; p++) {
        const float scale = scales[offset / head_dim + p];
#pragma omp simd
        for (int64_t d = 0; d < head_dim; d++)
            space[p * head_dim + d] = from_float(from[p * head_dim + d] * scale);
    }
    return space;
}

/* The positions of a forward pass: its row i is token i % seq of row i / seq of the cache. */
typedef struct {
    int64_t rows, seq;
    int64_t start;          /* the position of each row's first token */
    const int64_t *starts;  /* or where rows differ (rows / seq), else NULL */
    const float *freqs_cis; /* (rows, or seq without starts, head_dim / 2, 2): cosine, sine */
} token_positions;

INLINE int64_t position_of(const token_positions *p, int64_t i) {
    return (p->starts ? p->starts[i / p->seq] : p->start) + i % p->seq;
}

INLINE const float *freqs_cis_of(const token_positions *p, int64_t i, int64_t head_dim) {
    return p->freqs_cis + (p->starts ? i : i % p->seq) * head_dim;
}

/* The row of the cache for row i of the forward pass. */
INLINE cache_layer cache_row(const cache_layer *cache, const token_positions *p, int64_t i,
                             int64_t head_dim) {
    const int64_t b = i / p->seq;
    cache_layer row = cache->rows ? cache->rows[b] : *cache;
    const int64_t first = row.row_stride * (cache->rows ? cache->layer : b);
    const int64_t size = row.key_scales ? sizeof(int8_t) : sizeof(element);
    row.keys = (char *)row.keys + first * size;
    row.values = (char *)row.values + first * size;
    if (row.key_scales) {
        row.key_scales += first / head_dim;
        row.value_scales += first / head_dim;
    }
    return row;
}

/* e^x to about 1e-7, in operations that compilers vectorize. */
INLINE float fast_exp(float x) {
    x = x < -87.0f ? -87.0f : x; /* NaN stays */
    x = x > 88.0f ? 88.0f : x;
    float whole = rintf(x * 1.44269504f);
    float fraction =
        x - whole * 0.693359375f + whole * 2.12194440e-4f; /* ln 2 = 0.693359375 - 2.12e-4 */
    float e = 1.0f / 720;
    e = e * fraction + 1.0f / 120;
    e = e * fraction + 1.0f / 24;
    e = e * fraction + 1.0f / 6;
    e = e * fraction + 0.5f;
    e = e * fraction + 1.0f;
    e = e * fraction + 1.0f;
    uint32_t bits = (uint32_t)((int32_t)whole + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return e * power;
}

INLINE void rms_norm(const element *x, const element *weight, double eps, int64_t dim, element *y) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < dim; i++) sum += to_float(x[i]) * to_float(x[i]);
    float scale = 1.0f / sqrtf(sum / (float)dim + (float)eps);
#pragma omp simd
    for (int64_t i = 0; i < dim; i++)
        y[i] = from_float(to_float(from_float(to_float(x[i]) * scale)) * to_float(weight[i]));
}

INLINE element silu_mul(float gate, float up) {
    return from_float(gate / (1.0f + fast_exp(-gate)) * up);
}

/* Rotates pairs (x[2j], x[2j + 1]) by the angles of freqs_cis. */
INLINE void apply_rope(const float *x, const float *freqs_cis, int64_t head_dim, element *y) {
#pragma omp simd
    for (int64_t j = 0; j < head_dim / 2; j++) {
        float even = x[2 * j], odd = x[2 * j + 1], c = freqs_cis[2 * j], s = freqs_cis[2 * j + 1];
        y[2 * j] = from_float(even * c - odd * s);
        y[2 * j + 1] = from_float(even * s + odd * c);
    }
}

#endif

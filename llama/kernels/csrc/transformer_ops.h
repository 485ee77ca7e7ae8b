/* What few rows and a prompt's many rows have in common besides products. */

#ifndef TRANSFORMER_OPS_H
#define TRANSFORMER_OPS_H

#include "matmul.h"

#include <math.h>

/* A layer's keys and values, each (rows, kv_heads, positions, head_dim); strides in elements. They are
   bfloat16, or int8 with a scale for each position of a head, (rows, kv_heads, positions). */
typedef struct {
    void *keys, *values;
    float *key_scales, *value_scales; /* NULL for bfloat16 */
    int64_t row_stride, head_stride, seq_len;
} cache_layer;

/* Stores the numbers of a head at one position. */
INLINE void store_head(void *numbers, float *scales, int64_t offset, int64_t head_dim, const uint16_t *x) {
    if (!scales) {
        memcpy((uint16_t *)numbers + offset, x, head_dim * sizeof *x);
        return;
    }
    float max_abs = 0;
    int has_nonfinite = 0;
    for (int64_t d = 0; d < head_dim; d++) {
        float size = fabsf(from_bf16(x[d]));
        max_abs = size > max_abs ? size : max_abs;
        has_nonfinite |= !(size <= 3.4e38f);
    }
    const float inverse = max_abs > 0 && !has_nonfinite ? 127.0f / max_abs : 0;
    for (int64_t d = 0; d < head_dim; d++)
        ((int8_t *)numbers)[offset + d] = has_nonfinite ? 0 : (int8_t)rintf(from_bf16(x[d]) * inverse);
    scales[offset / head_dim] = has_nonfinite ? NAN : max_abs / 127.0f;
}

/* `count` positions from a slot on in bfloat16: where they lie, or made in `space`. */
INLINE const uint16_t *load_heads(const void *numbers, const float *scales, int64_t offset,
                              int64_t head_dim, int64_t count, uint16_t *space) {
    if (!scales) return (const uint16_t *)numbers + offset;
    const int8_t *from = (const int8_t *)numbers + offset;
    for (int64_t p = 0; p < count; p++) {
        const float scale = scales[offset / head_dim + p];
#pragma omp simd
        for (int64_t d = 0; d < head_dim; d++)
            space[p * head_dim + d] = round_to_bf16(from[p * head_dim + d] * scale);
    }
    return space;
}

/* Where the tokens of a pass stand: row i of it is token i % seq of the cache's row i / seq. */
typedef struct {
    int64_t rows, seq;
    int64_t start;         /* the position of each first token, */
    const int64_t *starts; /* or where they differ a position for each */
    const float *freqs_cis;    /* (rows or where all are alike seq, head_dim / 2, 2): cosine, sine */
} token_positions;

INLINE int64_t position_of(const token_positions *p, int64_t i) {
    return (p->starts ? p->starts[i / p->seq] : p->start) + i % p->seq;
}

INLINE const float *freqs_cis_of(const token_positions *p, int64_t i, int64_t head_dim) {
    return p->freqs_cis + (p->starts ? i : i % p->seq) * head_dim;
}

/* Where in keys and values position `at` of head h lies, in the cache's row for row i of the pass. */
INLINE int64_t cache_offset(const cache_layer *cache, const token_positions *p, int64_t i, int64_t h, int64_t at,
                       int64_t head_dim) {
    return i / p->seq * cache->row_stride + h * cache->head_stride + at * head_dim;
}

/* e^x to about 1e-7, in operations of which loops become vectors. */
INLINE float fast_exp(float x) {
    x = x < -87.0f ? -87.0f : x; /* NaN stays */
    x = x > 88.0f ? 88.0f : x;
    float whole = rintf(x * 1.44269504f);
    float part = x - whole * 0.693359375f + whole * 2.12194440e-4f; /* ln 2, in two parts */
    float e = 1.0f / 720;
    e = e * part + 1.0f / 120;
    e = e * part + 1.0f / 24;
    e = e * part + 1.0f / 6;
    e = e * part + 0.5f;
    e = e * part + 1.0f;
    e = e * part + 1.0f;
    uint32_t bits = (uint32_t)((int32_t)whole + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return e * power;
}

INLINE void rms_norm(const uint16_t *x, const uint16_t *weight, double eps, int64_t dim,
                     uint16_t *y) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < dim; i++) sum += from_bf16(x[i]) * from_bf16(x[i]);
    float scale = 1.0f / sqrtf(sum / (float)dim + (float)eps);
#pragma omp simd
    for (int64_t i = 0; i < dim; i++)
        y[i] = to_bf16(from_bf16(to_bf16(from_bf16(x[i]) * scale)) * from_bf16(weight[i]));
}

INLINE uint16_t silu_mul(float gate, float up) {
    return to_bf16(gate / (1.0f + fast_exp(-gate)) * up);
}

/* Turns pairs (x[2j], x[2j + 1]) by angles given as cosine and sine. */
INLINE void apply_rope(const float *x, const float *freqs_cis, int64_t head_dim, uint16_t *y) {
#pragma omp simd
    for (int64_t j = 0; j < head_dim / 2; j++) {
        float even = x[2 * j], odd = x[2 * j + 1], c = freqs_cis[2 * j], s = freqs_cis[2 * j + 1];
        y[2 * j] = to_bf16(even * c - odd * s);
        y[2 * j + 1] = to_bf16(even * s + odd * c);
    }
}

#endif

/* A prompt's many rows between matrix products, which torch computes: norm, rotary embedding, attention
   and gate, each in one pass over memory. */

#include "transformer_ops.h"

#include <stdlib.h>

/* x, y (rows, dim) bfloat16. */
void rms_norm_rows(const uint16_t *x, const uint16_t *weight, double eps, uint16_t *y, int64_t rows,
                   int64_t dim) {
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < rows; b++) rms_norm(x + b * dim, weight, eps, dim, y + b * dim);
}

/* gates = silu(gates) * ups, over `count` numbers. */
void silu_mul_rows(uint16_t *gates, const uint16_t *ups, int64_t count) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < count; i++) gates[i] = silu_mul(from_bf16(gates[i]), from_bf16(ups[i]));
}

/* Rotates q (rows, heads, head_dim) in place; k, rotated, and v (rows, kv_heads, head_dim) go to the
   cache. Returns 2 for a position outside of it. */
int rope_and_store(const cache_layer *cache, const token_positions *at, uint16_t *q,
                   const uint16_t *k, const uint16_t *v, int64_t heads, int64_t kv_heads,
                   int64_t head_dim) {
    for (int64_t b = 0; b < at->rows; b += at->seq)
        if (position_of(at, b) < 0 ||
            position_of(at, b) + at->seq > cache_row(cache, at, b, head_dim).seq_len)
            return 2;
#pragma omp parallel
    {
        float wide[head_dim];
        uint16_t rotated[head_dim];
#pragma omp for schedule(static)
        for (int64_t b = 0; b < at->rows; b++) {
            const float *freqs = freqs_cis_of(at, b, head_dim);
            for (int64_t h = 0; h < heads; h++) {
                uint16_t *row = q + (b * heads + h) * head_dim;
                for (int64_t d = 0; d < head_dim; d++) wide[d] = from_bf16(row[d]);
                apply_rope(wide, freqs, head_dim, row);
            }
            const cache_layer row = cache_row(cache, at, b, head_dim);
            for (int64_t h = 0; h < kv_heads; h++) {
                int64_t from = (b * kv_heads + h) * head_dim;
                int64_t offset = h * row.head_stride + position_of(at, b) * head_dim;
                for (int64_t d = 0; d < head_dim; d++) wide[d] = from_bf16(k[from + d]);
                apply_rope(wide, freqs, head_dim, rotated);
                store_head(row.keys, row.key_scales, offset, head_dim, rotated);
                store_head(row.values, row.value_scales, offset, head_dim, v + from);
            }
        }
    }
    return 0;
}

#if defined(HAS_AVX512) && defined(__AVX512BF16__)

/* As in flash attention (Dao et al., 2022): some rows, the query heads of one KV head side by side, go
   over the positions in blocks. Each row has the largest score so far, the sum of exp(score - largest)
   and the sum of values with these weights. Both products are dot products of bfloat16 pairs, for
   which a block's keys and values are rearranged:

       keys     [pair of dimensions][position][2]
       values   [pair of positions][dimension][2] */
#define QUERIES 128
#define POSITIONS 128
#define ALIGNED __attribute__((aligned(64)))

typedef struct {
    uint16_t keys[128 * POSITIONS] ALIGNED, values[128 * POSITIONS] ALIGNED;
    uint16_t dequantized[2][128 * POSITIONS];
    uint16_t q[QUERIES * 128] ALIGNED, weights[QUERIES * POSITIONS] ALIGNED;
    float scores[QUERIES * POSITIONS] ALIGNED, sums[QUERIES * 128] ALIGNED;
    float max_score[QUERIES], sum_exp[QUERIES], rescale[QUERIES];
} workspace;

INLINE __m512bh broadcast_pair(const uint16_t *p) {
    int32_t both;
    memcpy(&both, p, 4);
    return (__m512bh)_mm512_set1_epi32(both);
}

INLINE void rearrange(const int head_dim, workspace *w, const uint16_t *keys, const uint16_t *values,
                      int64_t count) {
    uint32_t *k = (uint32_t *)w->keys;
    for (int64_t p = 0; p < POSITIONS; p++) {
        const char *row = (const char *)(keys + (p < count ? p : 0) * head_dim);
        for (int d = 0; d < head_dim / 2; d++) memcpy(k + d * POSITIONS + p, row + 4 * d, 4);
    }
    for (int64_t p = 0; p < POSITIONS; p += 2) {
        const uint16_t *even = values + p * head_dim, *odd = even + head_dim;
        for (int d = 0; d < head_dim; d++) { /* 0 past the end, where memory could hold NaN */
            w->values[p * head_dim + 2 * d] = p < count ? even[d] : 0;
            w->values[p * head_dim + 2 * d + 1] = p + 1 < count ? odd[d] : 0;
        }
    }
}

INLINE void block_scores(const int head_dim, workspace *w, int64_t rows) {
    for (int64_t r = 0; r < rows; r += 8)
        for (int64_t p = 0; p < POSITIONS; p += 32) {
            __m512 sums[8][2];
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) sums[i][0] = sums[i][1] = _mm512_setzero_ps();
            for (int d = 0; d < head_dim / 2; d++) {
                const uint16_t *k = w->keys + 2 * (d * POSITIONS + p);
                __m512bh low = (__m512bh)_mm512_load_si512(k);
                __m512bh high = (__m512bh)_mm512_load_si512(k + 32);
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++) {
                    __m512bh q = broadcast_pair(w->q + (r + i) * head_dim + 2 * d);
                    sums[i][0] = _mm512_dpbf16_ps(sums[i][0], low, q);
                    sums[i][1] = _mm512_dpbf16_ps(sums[i][1], high, q);
                }
            }
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                _mm512_store_ps(w->scores + (r + i) * POSITIONS + p, sums[i][0]);
                _mm512_store_ps(w->scores + (r + i) * POSITIONS + p + 16, sums[i][1]);
            }
        }
}

/* Scores of `count` positions of row r to weights, and the factor for the sums of earlier blocks. */
INLINE void softmax_row(workspace *w, int64_t r, int64_t count, float scale) {
    float *scores = w->scores + r * POSITIONS, max_score = w->max_score[r], sum_exp = 0;
    uint16_t *weights = w->weights + r * POSITIONS;
#pragma omp simd reduction(max : max_score)
    for (int64_t p = 0; p < count; p++)
        max_score = scores[p] * scale > max_score ? scores[p] * scale : max_score;
    for (int64_t p = count; p < POSITIONS; p++) scores[p] = -INFINITY;
#pragma omp simd reduction(+ : sum_exp)
    for (int64_t p = 0; p < POSITIONS; p++) {
        float weight = scores[p] == -INFINITY ? 0 : fast_exp(scores[p] * scale - max_score);
        sum_exp += weight;
        weights[p] = to_bf16(weight);
    }
    w->rescale[r] = fast_exp(w->max_score[r] - max_score);
    w->sum_exp[r] = w->sum_exp[r] * w->rescale[r] + sum_exp;
    w->max_score[r] = max_score;
}

INLINE void add_values(const int head_dim, workspace *w, int64_t rows) {
    enum { AT_ONCE = 4 };
    for (int64_t r = 0; r < rows; r += AT_ONCE)
        for (int d = 0; d < head_dim; d += 64) {
            __m512 sums[AT_ONCE][4];
#pragma GCC unroll 4
            for (int i = 0; i < AT_ONCE; i++)
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++)
                    sums[i][j] =
                        _mm512_mul_ps(_mm512_load_ps(w->sums + (r + i) * head_dim + d + 16 * j),
                                      _mm512_set1_ps(w->rescale[r + i]));
            for (int64_t p = 0; p < POSITIONS; p += 2) {
                __m512bh v[4];
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++)
                    v[j] = (__m512bh)_mm512_load_si512(w->values + p * head_dim + 2 * d + 32 * j);
#pragma GCC unroll 4
                for (int i = 0; i < AT_ONCE; i++) {
                    __m512bh weight = broadcast_pair(w->weights + (r + i) * POSITIONS + p);
#pragma GCC unroll 4
                    for (int j = 0; j < 4; j++)
                        sums[i][j] = _mm512_dpbf16_ps(sums[i][j], v[j], weight);
                }
            }
#pragma GCC unroll 4
            for (int i = 0; i < AT_ONCE; i++)
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++)
                    _mm512_store_ps(w->sums + (r + i) * head_dim + d + 16 * j, sums[i][j]);
        }
}

/* Queries `first` to `first` + `count` of a row of the batch, for one KV head. */
INLINE void attend_block(const int head_dim, workspace *w, const cache_layer *cache,
                         const token_positions *at, const uint16_t *q, uint16_t *y, int64_t first,
                         int64_t count, int64_t h, int64_t group, int64_t heads) {
    const int64_t rows = count * group, padded = (rows + 7) / 8 * 8;
    const float scale = 1.0f / sqrtf((float)head_dim);
    memset(w->q, 0, padded * head_dim * sizeof *w->q);
    for (int64_t r = 0; r < rows; r++)
        memcpy(w->q + r * head_dim,
               q + ((first + r / group) * heads + h * group + r % group) * head_dim,
               head_dim * sizeof *q);
    memset(w->sums, 0, padded * head_dim * sizeof *w->sums);
    for (int64_t r = 0; r < padded; r++) {
        w->max_score[r] = -1e30f;
        w->sum_exp[r] = 0;
    }
    const cache_layer row = cache_row(cache, at, first, head_dim);
    const int64_t start = position_of(at, first), end = position_of(at, first + count - 1) + 1;
    for (int64_t p = 0; p < end; p += POSITIONS) {
        const int64_t offset = h * row.head_stride + p * head_dim;
        const int64_t seen = min_int(end - p, POSITIONS);
        rearrange(
            head_dim, w,
            load_heads(row.keys, row.key_scales, offset, head_dim, seen, w->dequantized[0]),
            load_heads(row.values, row.value_scales, offset, head_dim, seen, w->dequantized[1]),
            end - p);
        block_scores(head_dim, w, padded);
        for (int64_t r = 0; r < padded; r++) {
            int64_t seen = start + (r < rows ? r / group : 0) + 1 - p;
            softmax_row(w, r, max_int(0, min_int(seen, POSITIONS)), scale);
        }
        add_values(head_dim, w, padded);
    }
    for (int64_t r = 0; r < rows; r++)
        for (int d = 0; d < head_dim; d++)
            y[((first + r / group) * heads + h * group + r % group) * head_dim + d] =
                to_bf16(w->sums[r * head_dim + d] / w->sum_exp[r]);
}

/* Each row of q attends to all positions up to its own: q, y (rows, heads, head_dim). Returns 1
   without memory. */
int attend_rows(const cache_layer *cache, const token_positions *at, const uint16_t *q, uint16_t *y,
                int64_t heads, int64_t kv_heads, int64_t head_dim) {
    const int64_t group = heads / kv_heads, at_once = QUERIES / group;
    const int64_t blocks = (at->seq + at_once - 1) / at_once, batch = at->rows / at->seq;
    int failed = 0;
#pragma omp parallel
    {
        workspace *w = aligned_alloc(64, (sizeof *w + 63) / 64 * 64);
        if (!w) {
#pragma omp atomic write
            failed = 1;
        }
        /* The last block reads most, and is first. */
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < batch * kv_heads * blocks; i++) {
            int64_t block = blocks - 1 - i / (batch * kv_heads), b = i / kv_heads % batch;
            int64_t from = block * at_once, first = b * at->seq + from, h = i % kv_heads;
            int64_t count = min_int(at->seq - from, at_once);
            if (w && head_dim == 64)
                attend_block(64, w, cache, at, q, y, first, count, h, group, heads);
            else if (w)
                attend_block(128, w, cache, at, q, y, first, count, h, group, heads);
        }
        free(w);
    }
    return failed;
}

int supports_head_dim(int64_t head_dim) { return head_dim == 64 || head_dim == 128; }

#else /* torch's attention is as fast */
int supports_head_dim(int64_t head_dim) {
    (void)head_dim;
    return 0;
}

int attend_rows(void) { return 0; }
#endif

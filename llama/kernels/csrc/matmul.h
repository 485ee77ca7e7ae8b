/* Matrices in each weight format, and their products with a few rows. */

#ifndef MATMUL_H
#define MATMUL_H

#include "simd.h"

#include <math.h>

#define TILE 16  /* outputs that are computed together */
#define GROUP 32 /* inputs that share a scale in packed weights */
#define MAX_ROWS 16

/* A layer's weights (n, k). 16 bits: bfloat16, row-major; 8 and 4: packed as in matmul.c. */
typedef struct {
    const void *data;
    const _Float16 *scales; /* of packed weights */
    int64_t n, k, bits;
    int64_t partial_sums; /* of equal length, that sums over k consist of: a power of two */
} matrix;

/* Rows to multiply: bfloat16 (rows, k), and the buffers that `prepare` fills. */
typedef struct {
    const uint16_t *x;
    factor *factors; /* for bfloat16 weights, in the order of matmul.c */
    int8_t *q;       /* for packed weights: (k / GROUP, rows, GROUP) */
    float *scales;   /* (k / GROUP, rows) */
    int32_t *bias;   /* (k / GROUP, rows): the sum of q, times -8 */
    int64_t rows, k;
} inputs;

/* The number of tiles, and of outputs in a tile: the last one of a bfloat16 matrix may be short. */
INLINE int64_t tiles_of(const matrix *m) { return (m->n + TILE - 1) / TILE; }

INLINE int64_t outputs_of(const matrix *m, int64_t tile) {
    return m->n - tile * TILE < TILE ? m->n - tile * TILE : TILE;
}

/* Bytes of the buffers for `rows` rows, and their addresses in `memory`. */
int64_t prepared_size(int64_t rows, int64_t k);
void assign_prepared(inputs *in, char *memory);

/* Fills the buffers for weights of so many bits. All threads of a parallel region call it, and share
   the work. */
void prepare(const inputs *in, int64_t bits);

/* The outputs of a tile for at most MAX_ROWS rows: output r of row b is y[b * stride + r]. */
void multiply_tile(const matrix *m, const inputs *in, int64_t tile, float *y, int64_t stride);

/* The same to y (rows, n): in float32, or in bfloat16 with x added unless it is NULL. */
void output_tile(const matrix *m, const inputs *in, int64_t tile, const uint16_t *x, void *y,
                 int as_float);

/* Rounds `count` numbers to int8: returns the scale, and in `sum` that of the integers. A number that
   is not finite makes the scale NaN, and the integers 0. */
INLINE float quantize(const uint16_t *x, int64_t count, int8_t *q, int32_t *sum) {
    float max_abs = 0;
    int has_nonfinite = 0;
#pragma omp simd reduction(max : max_abs) reduction(| : has_nonfinite)
    for (int64_t j = 0; j < count; j++) {
        float size = fabsf(from_bf16(x[j]));
        max_abs = size > max_abs ? size : max_abs;
        has_nonfinite |= !(size <= 3.4e38f);
    }
    const float inverse = max_abs > 0 && !has_nonfinite ? 127.0f / max_abs : 0;
    int32_t total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < count; j++) {
        int32_t v = has_nonfinite ? 0 : (int32_t)rintf(from_bf16(x[j]) * inverse);
        q[j] = (int8_t)v;
        total += v;
    }
    *sum = total;
    return has_nonfinite ? NAN : max_abs / 127.0f;
}

#endif

/* Matrices in each weight format, and their products with a few rows. */

#ifndef MATMUL_H
#define MATMUL_H

#include "element_types.h"

#define TILE 16  /* outputs that are computed together */
#define GROUP 32 /* inputs that share a scale in packed weights */
#define MAX_ROWS 16
#ifdef NO_SIMD /* unrolled, they take minutes to compile */
#define FACTOR_ROWS 1
#else
#define FACTOR_ROWS 4 /* whose factors lie together, where they are copies */
#endif

/* A specialization for each number of rows, with loops over rows unrolled into registers. More rows
   than pay off go in several passes, with the weights in the cache. The order of a row's sums does
   not depend on the number of rows. */
#define CASE(rows, call)                                                                             \
    case rows: call(rows); break;
#define FOR_UP_TO_4_ROWS(rows, call)                                                                 \
    switch (rows) { CASE(1, call) CASE(2, call) CASE(3, call) default : call(4); }
#define FOR_UP_TO_8_ROWS(rows, call)                                                                 \
    switch (rows) {                                                                                  \
        CASE(1, call) CASE(2, call) CASE(3, call) CASE(4, call)                                      \
        CASE(5, call) CASE(6, call) CASE(7, call) default : call(8);                                 \
    }

/* A layer's weights (n, k): elements, row-major; in 8 or 4 bits, packed as in packed_matmul.c; or
   bfloat16 in 12 bits, as in bf12_matmul.c. */
typedef struct {
    const void *data;
    const _Float16 *scales;           /* of 8 and 4 bits, else NULL */
    const uint8_t *tables;            /* these three of 12 bits, else NULL */
    const int32_t *starts;
    const uint32_t *escapes;
    int64_t n, k, bits;
    int64_t partial_sums; /* of equal length, that packed sums over k consist of: a power of two */
} matrix;

/* Rows to multiply, (rows, k), and the buffers that `prepare` fills. */
typedef struct {
    const element *x;
    factor *factors; /* for weights that are not rounded, in the order of matmul.c */
    int8_t *q;       /* for int8 and int4: (k / GROUP, rows, GROUP) */
    float *scales;   /* (k / GROUP, rows) */
    int32_t *bias;   /* (k / GROUP, rows): the sum of q, times -8 */
    int64_t rows, k;
} inputs;

/* The number of tiles, and of outputs in a tile: the last one may be short, but not of int8 and int4. */
INLINE int64_t tiles_of(const matrix *m) { return (m->n + TILE - 1) / TILE; }

INLINE int64_t outputs_of(const matrix *m, int64_t tile) {
    return min_int(m->n - tile * TILE, TILE);
}

#define prepared_size NAMED(prepared_size)
#define assign_prepared NAMED(assign_prepared)
#define prepare NAMED(prepare)
#define multiply_tile NAMED(multiply_tile)
#define output_tile NAMED(output_tile)

/* Bytes of the buffers for `rows` rows, a multiple of 4, and their addresses in `memory`. */
int64_t prepared_size(int64_t rows, int64_t k);
void assign_prepared(inputs *in, char *memory);

/* Fills the buffers for the weights m. All threads of a parallel region call it, and share the
   work. */
void prepare(const inputs *in, const matrix *m);

/* The outputs of a tile for at most MAX_ROWS rows: output r of row b is y[b * stride + r]. */
void multiply_tile(const matrix *m, const inputs *in, int64_t tile, float *y, int64_t stride);

/* The same to y (rows, n): in float32, or as elements with x added unless it is NULL. */
void output_tile(const matrix *m, const inputs *in, int64_t tile, const element *x, void *y,
                 int as_float);

/* `prepare` and `multiply_tile` for packed weights, which take inputs in bfloat16. */
void prepare_packed(const inputs *in);
void multiply_packed_tile(const matrix *m, const inputs *in, int64_t tile, float *y, int64_t stride);

/* `multiply_tile` for bfloat16 in 12 bits, which takes the factors of bfloat16. */
void multiply_bf12_tile(const matrix *m, const inputs *in, int64_t tile, float *y, int64_t stride);

/* Rounds `count` numbers to int8: returns the scale, and in `sum` that of the integers. A number that
   is not finite makes the scale NaN, and the integers 0. */
INLINE float quantize(const element *x, int64_t count, int8_t *q, int32_t *sum) {
    float max_abs = 0;
    int has_nonfinite = 0;
#pragma omp simd reduction(max : max_abs) reduction(| : has_nonfinite)
    for (int64_t j = 0; j < count; j++) {
        float size = fabsf(to_float(x[j]));
        max_abs = size > max_abs ? size : max_abs;
        has_nonfinite |= !(size <= 3.4e38f);
    }
    const float inverse = max_abs > 0 && !has_nonfinite ? 127.0f / max_abs : 0;
    int32_t total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < count; j++) {
        int32_t v = has_nonfinite ? 0 : (int32_t)rintf(to_float(x[j]) * inverse);
        q[j] = (int8_t)v;
        total += v;
    }
    *sum = total;
    return has_nonfinite ? NAN : max_abs / 127.0f;
}

#endif

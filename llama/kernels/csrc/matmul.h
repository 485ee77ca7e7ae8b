/* What the sources here share: numbers, matrices in each format, and their product with few rows. */

#ifndef MATMUL_H
#define MATMUL_H

#include "simd.h"

#define TILE 16  /* outputs that are computed together */
#define GROUP 32 /* inputs that share a scale in packed weights */
#define MAX_ROWS 16

/* A layer's weights (n, k). 16 bits: bfloat16, row after row; 8 and 4: packed as linear.c says. */
typedef struct {
    const void *data;
    const _Float16 *scales; /* of packed weights */
    int64_t n, k, bits;
    int64_t partial_sums; /* a power of two: in how many the sums over k are made */
} matrix;

/* Rows that are multiplied: bfloat16 (rows, k), and what `prepare` makes of them. */
typedef struct {
    const uint16_t *x;
    factor *factors; /* for bfloat16 weights, as linear.c says; for packed ones */
    int8_t *q;       /* (k / GROUP, rows, GROUP), */
    float *scales;   /* (k / GROUP, rows) and so what q adds up to, times -8 */
    int32_t *bias;
    int64_t rows, k;
} inputs;

/* How many tiles a matrix has, and how many outputs a tile: the last of bfloat16 may be short. */
INLINE int64_t tiles_of(const matrix *m) { return (m->n + TILE - 1) / TILE; }

INLINE int64_t outputs_of(const matrix *m, int64_t tile) {
    return m->n - tile * TILE < TILE ? m->n - tile * TILE : TILE;
}

/* Bytes that `rows` rows take when they are prepared, and where each part of that begins. */
int64_t prepared_size(int64_t rows, int64_t k);
void assign_prepared(inputs *in, char *memory);

/* Makes of all rows what they are multiplied as, with weights of so many bits; called by every thread
   of a parallel region, which share the work. */
void prepare(const inputs *in, int64_t bits);

/* Outputs TILE * tile and on, of at most MOST_ROWS rows: y[b * stride + r] for output r of it. */
void multiply_tile(const matrix *m, const inputs *in, int64_t tile, float *y, int64_t stride);

#endif

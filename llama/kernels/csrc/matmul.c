/* Products of a few rows with a large matrix, at the speed of reading the matrix.

   y[b][n] = sum over k of x[b][k] * w[n][k], for few rows b: one while a single sequence is decoded.
   Plain C without torch's headers compiles in seconds. */

#include "matmul.h"

#include <stdlib.h>

#define AT_ONCE FACTOR_ROWS
#define AHEAD (8192 / (int64_t)sizeof(element)) /* elements of a row, to prefetch */
#ifdef NO_SIMD
#define OUTPUTS 1
#define FOR_ROWS(rows, call) call(1)
#else
#define OUTPUTS (SUMS / AT_ONCE)
#define FOR_ROWS FOR_UP_TO_4_ROWS
#endif

/* Factors are the rows themselves, or copies in blocks of up to AT_ONCE rows: STEP numbers of each
   row, then the next STEP of each. The rest of k after whole steps is taken from x. */
int64_t prepared_size(int64_t rows, int64_t k) {
    int64_t integers = rows * (k + k / GROUP * (int64_t)(sizeof(float) + sizeof(int32_t)));
    int64_t factors = COPIES_FACTORS ? rows * k * (int64_t)sizeof(factor) : 0;
    return (max_int(integers, factors) + 3) / 4 * 4;
}

void assign_prepared(inputs *in, char *memory) {
    int64_t groups = in->rows * (in->k / GROUP);
    in->factors = COPIES_FACTORS ? (factor *)memory : (factor *)in->x;
    in->scales = (float *)memory;
    in->bias = (int32_t *)(in->scales + groups);
    in->q = (int8_t *)(in->bias + groups);
}

INLINE int is_packed(const matrix *m) { return sizeof(element) == 2 && m->scales; }

void prepare(const inputs *in, const matrix *m) {
    if (is_packed(m))
        prepare_packed(in);
    else if (COPIES_FACTORS) {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < in->k / STEP; i++)
            for (int64_t b = 0; b < in->rows; b++) {
                const int64_t first = b / AT_ONCE * AT_ONCE;
                const int64_t rows = min_int(in->rows - first, AT_ONCE);
                load_factors(in->x + b * in->k + i * STEP,
                             in->factors + first * in->k + (i * rows + b - first) * STEP);
            }
    }
}

/* `outputs` rows of w (n, k) times a block of `rows` inputs. */
INLINE void multiply_block(const int rows, const int outputs, const element *x, const factor *factors,
                           const element *w, int64_t k, float *y, int64_t stride) {
    lanes sums[OUTPUTS][AT_ONCE];
    const element *next = w + outputs * k;
#pragma GCC unroll 4
    for (int r = 0; r < outputs; r++)
#pragma GCC unroll 4
        for (int b = 0; b < rows; b++) sums[r][b] = broadcast_lanes(0);
    int64_t i = 0;
    for (; i + STEP <= k; i += STEP) {
        vector v[OUTPUTS];
#pragma GCC unroll 4
        for (int r = 0; r < outputs; r++) {
            __builtin_prefetch(outputs > 1 ? next + outputs * i + STEP * r : w + i + AHEAD);
            v[r] = load_vector(w + r * k + i);
        }
#pragma GCC unroll 4
        for (int b = 0; b < rows; b++) {
            const factor *f = factors + (COPIES_FACTORS ? i * rows + b * STEP : b * k + i);
#pragma GCC unroll 4
            for (int r = 0; r < outputs; r++) sums[r][b] = add_dot(sums[r][b], f, v[r]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < outputs; r++)
#pragma GCC unroll 4
        for (int b = 0; b < rows; b++) {
            float sum = reduce_add(sums[r][b]);
            for (int64_t j = i; j < k; j++) sum += to_float(x[b * k + j]) * to_float(w[r * k + j]);
            y[b * stride + r] = sum;
        }
}

void multiply_tile(const matrix *m, const inputs *in, int64_t tile, float *y, int64_t stride) {
    if (is_packed(m)) {
        multiply_packed_tile(m, in, tile, y, stride);
        return;
    }
    if (sizeof(element) == 2 && m->bits == 12) {
        multiply_bf12_tile(m, in, tile, y, stride);
        return;
    }
    const int64_t k = m->k, outputs = outputs_of(m, tile);
    const element *w = (const element *)m->data + tile * TILE * k;
#ifdef HAS_AVX512
    if (in->rows == 1) { /* in order of addresses, for the hardware's prefetcher */
        for (int r = 0; r < outputs; r++)
            multiply_block(1, 1, in->x, in->factors, w + r * k, k, y + r, stride);
        return;
    }
#endif
    for (int r = 0; r < outputs; r += OUTPUTS)
        for (int64_t b = 0; b < in->rows; b += AT_ONCE) {
            const element *x = in->x + b * k;
            const factor *factors = in->factors + b * k;
            float *to = y + b * stride + r;
            if (r + OUTPUTS <= outputs) {
#define CALL(ROWS) multiply_block(ROWS, OUTPUTS, x, factors, w + r * k, k, to, stride)
                FOR_ROWS(in->rows - b, CALL);
#undef CALL
            } else {
#define CALL(ROWS)                                                                                   \
    for (int s = r; s < outputs; s++)                                                                \
    multiply_block(ROWS, 1, x, factors, w + s * k, k, to + s - r, stride)
                FOR_ROWS(in->rows - b, CALL);
#undef CALL
            }
        }
}

void output_tile(const matrix *m, const inputs *in, int64_t tile, const element *x, void *y,
                 int as_float) {
    float sums[MAX_ROWS * TILE];
    multiply_tile(m, in, tile, sums, TILE);
    for (int64_t b = 0; b < in->rows; b++)
        for (int64_t r = 0; r < outputs_of(m, tile); r++) {
            const int64_t at = b * m->n + tile * TILE + r;
            const float sum = sums[b * TILE + r];
            if (as_float)
                ((float *)y)[at] = sum;
            else
                ((element *)y)[at] = from_float(x ? to_float(x[at]) + sum : sum);
        }
}

/* x (rows, k), y (rows, n) elements or float32. Packed weights have n a multiple of 16 and k of 32.
   Returns 1 without memory. */
int NAMED(linear)(const matrix *m, const element *x, void *y, int64_t rows, int as_float) {
    const int64_t blocks = (rows + MAX_ROWS - 1) / MAX_ROWS, size = prepared_size(MAX_ROWS, m->k);
    const int64_t block_bytes = MAX_ROWS * m->n * (as_float ? sizeof(float) : sizeof(element));
    char *memory = malloc(blocks * (size + sizeof(inputs)));
    if (!memory) return 1;
    inputs *in = (inputs *)(memory + blocks * size);
    for (int64_t i = 0; i < blocks; i++) {
        const int64_t first = i * MAX_ROWS;
        in[i] = (inputs){.x = x + first * m->k, .rows = min_int(rows - first, MAX_ROWS), .k = m->k};
        assign_prepared(in + i, memory + i * size);
    }
#pragma omp parallel
    {
        for (int64_t i = 0; i < blocks; i++) prepare(in + i, m);
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < tiles_of(m); tile++)
            for (int64_t i = 0; i < blocks; i++)
                output_tile(m, in + i, tile, NULL, (char *)y + i * block_bytes, as_float);
    }
    free(memory);
    return 0;
}

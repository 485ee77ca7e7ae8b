/* Products of a few rows with a large matrix, at the speed of reading the matrix.

   y[b][n] = sum over k of x[b][k] * w[n][k], for few rows b: one while a single sequence is decoded.
   Plain C without torch's headers compiles in seconds.

   Packed weights (int8, int4) lie in tiles of 16 outputs, each tile in groups of 32 inputs. In a
   group of int8, byte 64 i + 4 r + j is input 4 i + j of output r, so that a vector of 64 bytes has
   four inputs for each of 16 outputs, and one instruction adds all their products:

       tile 0, group 0:   r0: k0-3  r1: k0-3 ... r15: k0-3 | r0: k4-7 ... | ... k28-31
       tile 0, group 1:   r0: k32-35 ...

   int4 has in the same order inputs 0-15 of a group in the low nibbles and inputs 16-31 in the high
   ones. Both are stored unsigned, with 128 or 8 added. Each group of each output has a scale, 16 of
   them side by side. Inputs are rounded to int8 with a scale for each group of 32 too, so that results
   do not depend on how ranks divide the inputs. */

#include "matmul.h"

#include <stdlib.h>

/* A specialization for each number of rows, with loops over rows unrolled into registers. More rows
   than pay off go in several passes, with the weights in the cache. The order of a row's sums does
   not depend on the number of rows. */
#define CASE(rows, call)                                                                             \
    case rows: call(rows); break;
#define UP_TO_4_ROWS(rows, call)                                                                     \
    switch (rows) { CASE(1, call) CASE(2, call) CASE(3, call) default : call(4); }
#ifdef NO_SIMD /* unrolled, they take minutes to compile */
#define BF16_ROWS 1
#define BF16_OUTPUTS 1
#define PACKED_ROWS 1
#define FOR_BF16_ROWS(rows, call) call(1)
#define FOR_PACKED_ROWS(rows, call) call(1)
#else
#define BF16_ROWS 4
#define BF16_OUTPUTS (SUMS / BF16_ROWS)
#define FOR_BF16_ROWS UP_TO_4_ROWS
#ifdef HAS_AVX512
#define PACKED_ROWS 8
#define FOR_PACKED_ROWS(rows, call)                                                                  \
    switch (rows) {                                                                                  \
        CASE(1, call)                                                                                \
        CASE(2, call)                                                                                \
        CASE(3, call) CASE(4, call) CASE(5, call) CASE(6, call) CASE(7, call) default : call(8);     \
    }
#else /* eight are no faster, and take twice as long to compile */
#define PACKED_ROWS 4
#define FOR_PACKED_ROWS UP_TO_4_ROWS
#endif
#endif

/* ---- inputs ----------------------------------------------------------------------------------- */

/* The factors for bfloat16 weights are x itself where the processor multiplies bfloat16. Elsewhere they
   are copies, in blocks of up to BF16_ROWS rows: STEP numbers of each row, then the next STEP of each.
   The rest of k after whole steps is taken from x. */
#if defined(__AVX512BF16__)
#define PREPARES_BF16 0
#else
#define PREPARES_BF16 1
#endif

int64_t prepared_size(int64_t rows, int64_t k) {
    int64_t integers = rows * (k + k / GROUP * (int64_t)(sizeof(float) + sizeof(int32_t)));
    int64_t factors = PREPARES_BF16 ? rows * k * (int64_t)sizeof(factor) : 0;
    return integers > factors ? integers : factors;
}

void assign_prepared(inputs *in, char *memory) {
    int64_t groups = in->rows * (in->k / GROUP);
    in->factors = PREPARES_BF16 ? (factor *)memory : (factor *)in->x;
    in->scales = (float *)memory;
    in->bias = (int32_t *)(in->scales + groups);
    in->q = (int8_t *)(in->bias + groups);
}

void prepare(const inputs *in, int64_t bits) {
    if (bits != 16) {
#pragma omp for schedule(static)
        for (int64_t g = 0; g < in->k / GROUP; g++)
            for (int64_t b = 0; b < in->rows; b++) {
                const int64_t at = g * in->rows + b;
                int32_t sum;
                in->scales[at] =
                    quantize(in->x + b * in->k + g * GROUP, GROUP, in->q + at * GROUP, &sum);
                in->bias[at] = -8 * sum;
            }
    } else if (PREPARES_BF16) {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < in->k / STEP; i++)
            for (int64_t b = 0; b < in->rows; b++) {
                const int64_t first = b / BF16_ROWS * BF16_ROWS, left = in->rows - first;
                const int64_t rows = left < BF16_ROWS ? left : BF16_ROWS;
                load_factors(in->x + b * in->k + i * STEP,
                             in->factors + first * in->k + (i * rows + b - first) * STEP);
            }
    }
}

/* ---- bfloat16: w is (n, k) -------------------------------------------------------------------- */

/* `outputs` rows of w times a block of `rows` inputs. */
INLINE void bf16_block(const int rows, const int outputs, const uint16_t *x, const factor *factors,
                       const uint16_t *w, int64_t k, float *y, int64_t stride) {
    lanes sums[BF16_OUTPUTS][BF16_ROWS];
    const char *next = (const char *)(w + outputs * k);
#pragma GCC unroll 4
    for (int r = 0; r < outputs; r++)
#pragma GCC unroll 4
        for (int b = 0; b < rows; b++) sums[r][b] = broadcast_lanes(0);
    int64_t i = 0;
    for (; i + STEP <= k; i += STEP) {
        pairs v[BF16_OUTPUTS];
#pragma GCC unroll 4
        for (int r = 0; r < outputs; r++) {
            if (outputs > 1) __builtin_prefetch(next + 2 * (outputs * i + STEP * r));
            v[r] = load_pairs(w + r * k + i);
        }
#pragma GCC unroll 4
        for (int b = 0; b < rows; b++) {
            const factor *f = factors + (PREPARES_BF16 ? i * rows + b * STEP : b * k + i);
#pragma GCC unroll 4
            for (int r = 0; r < outputs; r++) sums[r][b] = add_pairs(sums[r][b], f, v[r]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < outputs; r++)
#pragma GCC unroll 4
        for (int b = 0; b < rows; b++) {
            float sum = reduce_add(sums[r][b]);
            for (int64_t j = i; j < k; j++) sum += from_bf16(x[b * k + j]) * from_bf16(w[r * k + j]);
            y[b * stride + r] = sum;
        }
}

static void bf16_tile(const matrix *m, const inputs *in, int64_t tile, float *y, int64_t stride) {
    int64_t k = m->k, outputs = outputs_of(m, tile);
    const uint16_t *w = (const uint16_t *)m->data + tile * TILE * k;
#ifdef HAS_AVX512
    if (in->rows == 1) { /* in order of addresses, for the hardware's prefetcher */
        for (int r = 0; r < outputs; r++)
            bf16_block(1, 1, in->x, in->factors, w + r * k, k, y + r, stride);
        return;
    }
#endif
    for (int r = 0; r < outputs; r += BF16_OUTPUTS)
        for (int64_t b = 0; b < in->rows; b += BF16_ROWS) {
            const uint16_t *x = in->x + b * k;
            const factor *factors = in->factors + b * k;
            float *to = y + b * stride + r;
            if (r + BF16_OUTPUTS <= outputs) {
#define CALL(ROWS) bf16_block(ROWS, BF16_OUTPUTS, x, factors, w + r * k, k, to, stride)
                FOR_BF16_ROWS(in->rows - b, CALL);
#undef CALL
            } else {
#define CALL(ROWS)                                                                                   \
    for (int s = r; s < outputs; s++)                                                                \
    bf16_block(ROWS, 1, x, factors, w + s * k, k, to + s - r, stride)
                FOR_BF16_ROWS(in->rows - b, CALL);
#undef CALL
            }
        }
}

/* ---- int8 and int4 ---------------------------------------------------------------------------- */

/* Adds to `out` the products of a group of 16 outputs and the same group of `rows` rows of inputs, of
   which `at` is the first one's index in `in`. */
INLINE void add_group(const int rows, const int bits, const uint8_t *w, const _Float16 *scales,
                      const inputs *in, int64_t at, floats *out) {
    const int8_t *q = in->q + at * GROUP;
    const int32_t *bias = in->bias + at;
    ints sums[PACKED_ROWS];
#pragma GCC unroll 8
    for (int b = 0; b < rows; b++) sums[b] = init_sums(bias[b], bits);
#pragma GCC unroll 8
    for (int i = 0; i < bits; i++, w += 64) { /* 8 vectors of int8, or 4 of int4 */
        __builtin_prefetch(w + 4096);
        bytes v = load_bytes(w), low = bits == 8 ? v : low_nibbles(v), high = high_nibbles(v);
#pragma GCC unroll 8
        for (int b = 0; b < rows; b++) {
            const int8_t *row = q + b * GROUP + 4 * i;
            int32_t four;
            memcpy(&four, row, 4);
            sums[b] = add_products(sums[b], low, four, bits);
            if (bits == 4) {
                memcpy(&four, row + 16, 4);
                sums[b] = add_products(sums[b], high, four, bits);
            }
        }
    }
#pragma GCC unroll 8
    for (int b = 0; b < rows; b++)
        out[b] = add_scaled(out[b], finish_sums(sums[b], bias[b], bits), scales, in->scales[at + b]);
}

/* The sum over inputs consists of partial sums that are added in pairs, (0 + 1) + (2 + 3). A sum waits
   at its level until the other one of its pair is there. Ranks that divide the inputs compute subtrees
   of it. */
#define LEVELS 8

/* `rows` rows of the inputs from `first` on. */
INLINE void packed_rows(const int rows, const int bits, const matrix *m, const inputs *in,
                        int64_t first, int64_t tile, float *y, int64_t stride) {
    const int64_t groups = m->k / GROUP;
    const int64_t leaf = groups % m->partial_sums ? groups : groups / m->partial_sums;
    int64_t level = 0;
    const uint8_t *w = (const uint8_t *)m->data + tile * m->k * TILE * bits / 8;
    const _Float16 *scales = m->scales + tile * groups * TILE;
    floats waiting[LEVELS][PACKED_ROWS]; /* partial sums that wait for the other of their pair */
    for (int64_t begin = 0; begin < groups; begin += leaf) {
        floats out[PACKED_ROWS];
#pragma GCC unroll 8
        for (int b = 0; b < rows; b++) out[b] = broadcast(0);
        for (int64_t g = begin; g < begin + leaf; g++) {
            add_group(rows, bits, w, scales, in, g * in->rows + first, out);
            w += bits * 64;
            scales += TILE;
        }
        for (level = 0; (begin / leaf) >> level & 1; level++)
#pragma GCC unroll 8
            for (int b = 0; b < rows; b++) out[b] = add(waiting[level][b], out[b]);
#pragma GCC unroll 8
        for (int b = 0; b < rows; b++) waiting[level][b] = out[b];
    }
#pragma GCC unroll 8
    for (int b = 0; b < rows; b++) store(y + b * stride, waiting[level][b]);
}

static void packed_tile(const matrix *m, const inputs *in, int64_t tile, float *y, int64_t stride) {
    for (int64_t b = 0; b < in->rows; b += PACKED_ROWS) {
        float *to = y + b * stride;
#define CALL8(ROWS) packed_rows(ROWS, 8, m, in, b, tile, to, stride)
#define CALL4(ROWS) packed_rows(ROWS, 4, m, in, b, tile, to, stride)
        if (m->bits == 8) {
            FOR_PACKED_ROWS(in->rows - b, CALL8);
        } else {
            FOR_PACKED_ROWS(in->rows - b, CALL4);
        }
#undef CALL8
#undef CALL4
    }
}

void multiply_tile(const matrix *m, const inputs *in, int64_t tile, float *y, int64_t stride) {
    if (m->bits == 16)
        bf16_tile(m, in, tile, y, stride);
    else
        packed_tile(m, in, tile, y, stride);
}

void output_tile(const matrix *m, const inputs *in, int64_t tile, const uint16_t *x, void *y,
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
                ((uint16_t *)y)[at] = to_bf16(x ? from_bf16(x[at]) + sum : sum);
        }
}

/* x (rows, k) bfloat16, y (rows, n) float32 or bfloat16. Packed weights have n a multiple of 16 and
   k of 32. Returns 1 without memory. */
int linear(const matrix *m, const uint16_t *x, void *y, int64_t rows, int as_float) {
    const int64_t blocks = (rows + MAX_ROWS - 1) / MAX_ROWS, size = prepared_size(MAX_ROWS, m->k);
    const int64_t block_bytes = MAX_ROWS * m->n * (as_float ? 4 : 2);
    char *memory = malloc(blocks * (size + sizeof(inputs)));
    if (!memory) return 1;
    inputs *in = (inputs *)(memory + blocks * size);
    for (int64_t i = 0; i < blocks; i++) {
        const int64_t first = i * MAX_ROWS, left = rows - first;
        in[i] = (inputs){.x = x + first * m->k, .rows = left < MAX_ROWS ? left : MAX_ROWS, .k = m->k};
        assign_prepared(in + i, memory + i * size);
    }
#pragma omp parallel
    {
        for (int64_t i = 0; i < blocks; i++) prepare(in + i, m->bits);
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < tiles_of(m); tile++)
            for (int64_t i = 0; i < blocks; i++)
                output_tile(m, in + i, tile, NULL, (char *)y + i * block_bytes, as_float);
    }
    free(memory);
    return 0;
}

/* ---- packing ---------------------------------------------------------------------------------- */

/* Rounds a group of one output: returns its scale, writes numbers with 128 or 8 added. int8 is scaled
   by the largest magnitude; int4, from -8 to 7, by the one of four scales with the least squared error,
   which bring the number of largest magnitude to -8 or a little less. */
static _Float16 pack_group(const uint16_t *w, int bits, uint8_t *out) {
    static const float reaches[4] = {8.0f, 7.6f, 7.2f, 6.8f};
    float values[GROUP], max_abs = 0, largest = 0, least = INFINITY;
    _Float16 best = 0;
    for (int j = 0; j < GROUP; j++) values[j] = from_bf16(w[j]);
#pragma omp simd reduction(max : max_abs)
    for (int j = 0; j < GROUP; j++) max_abs = fabsf(values[j]) > max_abs ? fabsf(values[j]) : max_abs;
    for (int j = GROUP - 1; j >= 0; j--) largest = fabsf(values[j]) == max_abs ? values[j] : largest;
    float lowest = bits == 8 ? -127 : -8, highest = bits == 8 ? 127 : 7;
    for (int c = 0; c < (bits == 8 ? 1 : 4); c++) {
        _Float16 scale = (_Float16)(bits == 8 ? fabsf(largest) / 127 : largest / -reaches[c]);
        float divisor = scale == 0 ? 1 : (float)scale, error = 0, found[GROUP];
#pragma omp simd reduction(+ : error)
        for (int j = 0; j < GROUP; j++) {
            float v = rintf(values[j] / divisor);
            v = v < lowest ? lowest : v;
            found[j] = v > highest ? highest : v;
            float wrong = found[j] * (float)scale - values[j];
            error += wrong * wrong;
        }
        if (c && !(error < least)) continue;
        least = error;
        best = scale;
        for (int j = 0; j < GROUP; j++) out[j] = (uint8_t)(found[j] + (bits == 8 ? 128 : 8));
    }
    return best;
}

/* w (n, k) bfloat16 to tiles and scales; n is a multiple of 16 and k of 32. */
void pack_weight(const uint16_t *w, uint8_t *data, _Float16 *scales, int64_t n, int64_t k, int bits) {
    int64_t groups = k / GROUP;
#pragma omp parallel for schedule(static)
    for (int64_t tile = 0; tile < n / TILE; tile++)
        for (int64_t g = 0; g < groups; g++) {
            uint8_t *to = data + (tile * groups + g) * GROUP * TILE * bits / 8;
            for (int r = 0; r < TILE; r++) {
                uint8_t row[GROUP];
                const uint16_t *from = w + (tile * TILE + r) * k + g * GROUP;
                scales[(tile * groups + g) * TILE + r] = pack_group(from, bits, row);
                for (int i = 0; i < bits; i++)
                    for (int j = 0; j < 4; j++) {
                        uint8_t first = row[4 * i + j];
                        to[64 * i + 4 * r + j] = bits == 8 ? first : first | row[16 + 4 * i + j] << 4;
                    }
            }
        }
}

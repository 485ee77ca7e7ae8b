/* Products with int8 and int4 weights, of bfloat16 inputs, and packing.

   Packed weights lie in tiles of 16 outputs, each tile in groups of 32 inputs. In a group of int8,
   byte 64 i + 4 r + j is input 4 i + j of output r, so that a vector of 64 bytes has four inputs for
   each of 16 outputs, and one instruction adds all their products:

       tile 0, group 0:   r0: k0-3  r1: k0-3 ... r15: k0-3 | r0: k4-7 ... | ... k28-31
       tile 0, group 1:   r0: k32-35 ...

   int4 has in the same order inputs 0-15 of a group in the low nibbles and inputs 16-31 in the high
   ones. Both are stored unsigned, with 128 or 8 added. Each group of each output has a scale, 16 of
   them side by side. Inputs are rounded to int8 with a scale for each group of 32 too, so that results
   do not depend on how ranks divide the inputs. */

#include "matmul.h"

#ifdef NO_SIMD /* unrolled, they take minutes to compile */
#define PACKED_ROWS 1
#define FOR_PACKED_ROWS(rows, call) call(1)
#elif defined(HAS_AVX512)
#define PACKED_ROWS 8
#define FOR_PACKED_ROWS FOR_UP_TO_8_ROWS
#else /* eight are no faster, and take twice as long to compile */
#define PACKED_ROWS 4
#define FOR_PACKED_ROWS FOR_UP_TO_4_ROWS
#endif

void prepare_packed(const inputs *in) {
#pragma omp for schedule(static)
    for (int64_t g = 0; g < in->k / GROUP; g++)
        for (int64_t b = 0; b < in->rows; b++) {
            const int64_t at = g * in->rows + b;
            int32_t sum;
            in->scales[at] = quantize(in->x + b * in->k + g * GROUP, GROUP, in->q + at * GROUP, &sum);
            in->bias[at] = -8 * sum;
        }
}

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

void multiply_packed_tile(const matrix *m, const inputs *in, int64_t tile, float *y, int64_t stride) {
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

/* Rounds a group of one output: returns its scale, writes numbers with 128 or 8 added. int8 is scaled
   by the largest magnitude; int4, from -8 to 7, by the one of four scales with the least squared error,
   which bring the number of largest magnitude to -8 or a little less. */
static _Float16 pack_group(const element *w, int bits, uint8_t *out) {
    static const float reaches[4] = {8.0f, 7.6f, 7.2f, 6.8f};
    float values[GROUP], max_abs = 0, largest = 0, least = INFINITY;
    _Float16 best = 0;
    for (int j = 0; j < GROUP; j++) values[j] = to_float(w[j]);
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
void pack_weight(const element *w, uint8_t *data, _Float16 *scales, int64_t n, int64_t k, int bits) {
    int64_t groups = k / GROUP;
#pragma omp parallel for schedule(static)
    for (int64_t tile = 0; tile < n / TILE; tile++)
        for (int64_t g = 0; g < groups; g++) {
            uint8_t *to = data + (tile * groups + g) * GROUP * TILE * bits / 8;
            for (int r = 0; r < TILE; r++) {
                uint8_t row[GROUP];
                const element *from = w + (tile * TILE + r) * k + g * GROUP;
                scales[(tile * groups + g) * TILE + r] = pack_group(from, bits, row);
                for (int i = 0; i < bits; i++)
                    for (int j = 0; j < 4; j++) {
                        uint8_t first = row[4 * i + j];
                        to[64 * i + 4 * r + j] = bits == 8 ? first : first | row[16 + 4 * i + j] << 4;
                    }
            }
        }
}

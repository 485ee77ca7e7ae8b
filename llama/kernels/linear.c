/* Products of a few rows with a large matrix, at the speed at which the matrix is read.

   y[b][n] = sum over k of x[b][k] * w[n][k], for rows b that are few: one while a single answer is
   decoded. Plain C: no torch headers, so that it compiles in a second. Each format has one function
   for AVX-512 and one that any compiler understands and makes vectors of as it can.

   Packed weights (int8, int4) lie in tiles of 16 outputs, each tile in groups of 32 inputs. In a
   group of int8, byte 64 i + 4 r + j is input 4 i + j of output r, so that a vector of 64 bytes has
   four inputs for each of 16 outputs, and one instruction adds all their products:

       tile 0, group 0:   r0: k0-3  r1: k0-3 ... r15: k0-3 | r0: k4-7 ... | ... k28-31
       tile 0, group 1:   r0: k32-35 ...

   int4 has in the same order inputs 0-15 of a group in the low half of each byte and inputs 16-31 in
   the high half. Both are stored without sign, with 128 or 8 added. Each group of each output has a
   scale, 16 of them side by side. Inputs are rounded to int8 with a scale for each group of 32 too,
   which is why results do not depend on how inputs are divided among processes. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define TILE 16
#define GROUP 32
#define OUTPUTS 4

static inline float from_bf16(uint16_t v) {
    uint32_t bits = (uint32_t)v << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline uint16_t to_bf16(float f) { /* to nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* y is float32, or bfloat16 where the layer's result is wanted as it is. */
static inline void put(void *y, int64_t at, float value, int as_float) {
    if (as_float)
        ((float *)y)[at] = value;
    else
        ((uint16_t *)y)[at] = to_bf16(value);
}

/* A function for each number of rows, in which loops over rows are unrolled into registers. As many
   rows go at a time as their sums fit there; the weights stay in the cache for the next. */
#define BF16_ROWS 4
#define PACKED_ROWS 8
#define INLINE static inline __attribute__((always_inline))
#define UP_TO_4_ROWS(rows, call)                                                                   \
    switch (rows) {                                                                                \
        case 1: call(1); break;                                                                    \
        case 2: call(2); break;                                                                    \
        case 3: call(3); break;                                                                    \
        default: call(4); break;                                                                   \
    }
#define UP_TO_8_ROWS(rows, call)                                                                   \
    switch (rows) {                                                                                \
        case 1: call(1); break;                                                                    \
        case 2: call(2); break;                                                                    \
        case 3: call(3); break;                                                                    \
        case 4: call(4); break;                                                                    \
        case 5: call(5); break;                                                                    \
        case 6: call(6); break;                                                                    \
        case 7: call(7); break;                                                                    \
        default: call(8); break;                                                                   \
    }

/* ---- bfloat16: w is (n, k), as it lies in the file -------------------------------------------- */

/* `outputs` of w from `at` on, for all rows of x. */
#if defined(__AVX512BF16__)
INLINE void bf16_block(const int rows, const int outputs, const uint16_t *x, const uint16_t *w,
                       void *y, int64_t n, int64_t k, int64_t at, int as_float) {
    __m512 sums[OUTPUTS][BF16_ROWS];
    /* Four short rows are too short for the processor to see where they lead: to the next four. */
    int64_t ahead = k <= 4096 ? 2 * outputs * k : 1024;
#pragma GCC unroll 4
    for (int r = 0; r < outputs; r++)
#pragma GCC unroll 4
        for (int b = 0; b < rows; b++) sums[r][b] = _mm512_setzero_ps();
    for (int64_t i = 0; i < k; i += 32) {
        __mmask32 in = k - i < 32 ? ((__mmask32)1 << (k - i)) - 1 : ~(__mmask32)0;
        __m512bh xs[BF16_ROWS];
#pragma GCC unroll 4
        for (int b = 0; b < rows; b++)
            xs[b] = (__m512bh)_mm512_maskz_loadu_epi16(in, x + b * k + i);
#pragma GCC unroll 4
        for (int r = 0; r < outputs; r++) {
            _mm_prefetch((const char *)(w + (at + r) * k + i) + ahead, _MM_HINT_T0);
            __m512bh ws = (__m512bh)_mm512_maskz_loadu_epi16(in, w + (at + r) * k + i);
#pragma GCC unroll 4
            for (int b = 0; b < rows; b++) sums[r][b] = _mm512_dpbf16_ps(sums[r][b], ws, xs[b]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < outputs; r++)
#pragma GCC unroll 4
        for (int b = 0; b < rows; b++)
            put(y, b * n + at + r, _mm512_reduce_add_ps(sums[r][b]), as_float);
}
#else
INLINE void bf16_block(const int rows, const int outputs, const uint16_t *x, const uint16_t *w,
                       void *y, int64_t n, int64_t k, int64_t at, int as_float) {
    for (int r = 0; r < outputs; r++)
        for (int b = 0; b < rows; b++) {
            const uint16_t *xs = x + b * k, *ws = w + (at + r) * k;
            float sums[16] = {0}, sum = 0;
            int64_t i = 0;
            for (; i + 16 <= k; i += 16)
                for (int j = 0; j < 16; j++) sums[j] += from_bf16(xs[i + j]) * from_bf16(ws[i + j]);
            for (; i < k; i++) sums[0] += from_bf16(xs[i]) * from_bf16(ws[i]);
            for (int j = 0; j < 16; j++) sum += sums[j];
            put(y, b * n + at + r, sum, as_float);
        }
}
#endif

/* x (rows, k), w (n, k), y (rows, n). */
void linear_bf16(const uint16_t *x, const uint16_t *w, void *y, int64_t rows, int64_t n, int64_t k,
                 int as_float) {
#pragma omp parallel for schedule(static)
    for (int64_t q = 0; q < (n + OUTPUTS - 1) / OUTPUTS; q++)
        for (int64_t b = 0; b < rows; b += BF16_ROWS) {
            const uint16_t *xb = x + b * k;
            void *yb = (char *)y + b * n * (as_float ? 4 : 2);
            int64_t at = q * OUTPUTS, most = rows - b;
            if (at + OUTPUTS <= n) {
#define CALL(ROWS) bf16_block(ROWS, OUTPUTS, xb, w, yb, n, k, at, as_float)
                UP_TO_4_ROWS(most, CALL)
#undef CALL
            } else {
#define CALL(ROWS)                                                                                 \
    for (; at < n; at++) bf16_block(ROWS, 1, xb, w, yb, n, k, at, as_float)
                UP_TO_4_ROWS(most, CALL)
#undef CALL
            }
        }
}

/* ---- int8 and int4 ---------------------------------------------------------------------------- */

/* Rounds a row of x to int8 in groups: q and, for each group, its scale and the sum of its q. What
   is not finite makes the scale so, and with it the results. */
static void round_inputs(const uint16_t *x, int64_t k, int8_t *q, float *scales, int32_t *sums) {
    for (int64_t g = 0; g < k / GROUP; g++) {
        float values[GROUP], most = 0;
        for (int j = 0; j < GROUP; j++) {
            values[j] = from_bf16(x[g * GROUP + j]);
            float size = fabsf(values[j]);
            most = size > most || size != size ? size : most; /* once NaN, it stays */
        }
        float inverse = most > 0 && most <= 3.4e38f ? 127.0f / most : 0;
        int32_t sum = 0;
        for (int j = 0; j < GROUP; j++) {
            int32_t v = inverse > 0 ? (int32_t)rintf(values[j] * inverse) : 0;
            q[g * GROUP + j] = (int8_t)v;
            sum += v;
        }
        scales[g] = most / 127.0f;
        sums[g] = sum;
    }
}

typedef struct {
    const int8_t *q;      /* inputs (rows, k) */
    const float *scales;  /* theirs (rows, k / GROUP) */
    const int32_t *sums;  /* of q in each group */
    const uint8_t *w;     /* (n / TILE, k / GROUP, GROUP * TILE * bits / 8) */
    const _Float16 *ws;   /* its scales (n / TILE, k / GROUP, TILE) */
    void *y;
    int64_t n, k;
    int as_float;
} packed;

#if defined(__AVX512VNNI__)
INLINE void packed_tile(const int rows, const int bits, const packed *p, int64_t tile) {
    int64_t groups = p->k / GROUP;
    const uint8_t *w = p->w + tile * p->k * TILE * bits / 8;
    const _Float16 *ws = p->ws + tile * groups * TILE;
    const __m512i low = _mm512_set1_epi8(15);
    __m512 out[PACKED_ROWS];
#pragma GCC unroll 8
    for (int b = 0; b < rows; b++) out[b] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++, w += GROUP * TILE * bits / 8, ws += TILE) {
        __m512i sums[PACKED_ROWS]; /* begins with what the 128 or 8 in each weight adds too much */
#pragma GCC unroll 8
        for (int b = 0; b < rows; b++)
            sums[b] = _mm512_set1_epi32(-(bits == 8 ? 128 : 8) * p->sums[b * groups + g]);
#pragma GCC unroll 8
        for (int i = 0; i < bits; i++) { /* 8 vectors of int8, or 4 of int4, fill a group */
            _mm_prefetch((const char *)w + 64 * i + 4096, _MM_HINT_T0);
            __m512i v = _mm512_loadu_si512(w + 64 * i);
            __m512i first = bits == 8 ? v : _mm512_and_si512(v, low);
            __m512i second = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
#pragma GCC unroll 8
            for (int b = 0; b < rows; b++) {
                const int8_t *q = p->q + b * p->k + g * GROUP + 4 * i;
                int32_t four;
                memcpy(&four, q, 4);
                sums[b] = _mm512_dpbusd_epi32(sums[b], first, _mm512_set1_epi32(four));
                if (bits == 4) {
                    memcpy(&four, q + 16, 4);
                    sums[b] = _mm512_dpbusd_epi32(sums[b], second, _mm512_set1_epi32(four));
                }
            }
        }
        __m512 s = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)ws));
#pragma GCC unroll 8
        for (int b = 0; b < rows; b++) {
            __m512 both = _mm512_mul_ps(s, _mm512_set1_ps(p->scales[b * groups + g]));
            out[b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[b]), both, out[b]);
        }
    }
#pragma GCC unroll 8
    for (int b = 0; b < rows; b++) {
        float values[TILE];
        _mm512_storeu_ps(values, out[b]);
        for (int r = 0; r < TILE; r++) put(p->y, b * p->n + tile * TILE + r, values[r], p->as_float);
    }
}
#else
INLINE void packed_tile(const int rows, const int bits, const packed *p, int64_t tile) {
    int64_t groups = p->k / GROUP;
    const uint8_t *w = p->w + tile * p->k * TILE * bits / 8;
    const _Float16 *ws = p->ws + tile * groups * TILE;
    float out[PACKED_ROWS][TILE] = {{0}};
    for (int64_t g = 0; g < groups; g++, w += GROUP * TILE * bits / 8, ws += TILE)
        for (int b = 0; b < rows; b++) {
            const int8_t *q = p->q + b * p->k + g * GROUP;
            int32_t sums[TILE];
            for (int r = 0; r < TILE; r++) sums[r] = -(bits == 8 ? 128 : 8) * p->sums[b * groups + g];
            for (int i = 0; i < bits; i++)
                for (int r = 0; r < TILE; r++)
                    for (int j = 0; j < 4; j++) {
                        int32_t v = w[64 * i + 4 * r + j];
                        sums[r] += (bits == 8 ? v : v & 15) * q[4 * i + j];
                        if (bits == 4) sums[r] += (v >> 4) * q[16 + 4 * i + j];
                    }
            for (int r = 0; r < TILE; r++)
                out[b][r] += (float)sums[r] * (float)ws[r] * p->scales[b * groups + g];
        }
    for (int b = 0; b < rows; b++)
        for (int r = 0; r < TILE; r++)
            put(p->y, b * p->n + tile * TILE + r, out[b][r], p->as_float);
}
#endif

/* x (rows, k) bfloat16, y (rows, n); n a multiple of 16, k of 32. 1 without memory. */
int linear_packed(const uint16_t *x, const uint8_t *w, const _Float16 *ws, void *y, int64_t rows,
                  int64_t n, int64_t k, int bits, int as_float) {
    int64_t groups = k / GROUP;
    int8_t *q = malloc(rows * (k + groups * (sizeof(float) + sizeof(int32_t))));
    if (!q) return 1;
    float *scales = (float *)(q + rows * k);
    int32_t *sums = (int32_t *)(scales + rows * groups);
    for (int64_t b = 0; b < rows; b++)
        round_inputs(x + b * k, k, q + b * k, scales + b * groups, sums + b * groups);
#pragma omp parallel for schedule(static)
    for (int64_t tile = 0; tile < n / TILE; tile++)
        for (int64_t b = 0; b < rows; b += PACKED_ROWS) {
            char *yb = (char *)y + b * n * (as_float ? 4 : 2);
            packed p = {q + b * k, scales + b * groups, sums + b * groups, w, ws, yb, n, k, as_float};
#define CALL8(ROWS) packed_tile(ROWS, 8, &p, tile)
#define CALL4(ROWS) packed_tile(ROWS, 4, &p, tile)
            if (bits == 8)
                UP_TO_8_ROWS(rows - b, CALL8)
            else
                UP_TO_8_ROWS(rows - b, CALL4)
#undef CALL8
#undef CALL4
        }
    free(q);
    return 0;
}

/* Rounds a group of inputs of one output: its scale, and each number with 128 or 8 added. int8 is
   scaled by the largest size; int4, from -8 to 7, has the largest number at -8 or a little nearer,
   whichever of four scales errs least. */
static _Float16 pack_group(const uint16_t *w, int bits, uint8_t *out) {
    static const float reaches[4] = {8.0f, 7.6f, 7.2f, 6.8f};
    float values[GROUP], largest = 0, least = INFINITY;
    _Float16 best = 0;
    for (int j = 0; j < GROUP; j++) {
        values[j] = from_bf16(w[j]);
        if (fabsf(values[j]) > fabsf(largest)) largest = values[j];
    }
    float lowest = bits == 8 ? -127 : -8, highest = bits == 8 ? 127 : 7;
    for (int c = 0; c < (bits == 8 ? 1 : 4); c++) {
        _Float16 scale = (_Float16)(bits == 8 ? fabsf(largest) / 127 : largest / -reaches[c]);
        float divisor = scale == 0 ? 1 : (float)scale, error = 0, found[GROUP];
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

/* w (n, k) bfloat16 to tiles and scales; n a multiple of 16, k of 32. */
void pack_linear(const uint16_t *w, uint8_t *data, _Float16 *scales, int64_t n, int64_t k, int bits) {
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

/* Bfloat16 weights in 12 bits, without loss: products, unpacking and packing.

   A bfloat16 number is a low byte, the lowest bit of its exponent and the mantissa, and a high byte,
   its sign and the other bits of the exponent. In a row of trained weights few high bytes occur: the
   row has a table of its 16 most frequent ones, and a number is stored as its low byte and the index
   of its high byte in 4 bits. A block of 128 inputs takes 192 bytes:

       bytes 0-63      low bytes of inputs 0-63
       bytes 64-127    low bytes of inputs 64-127
       bytes 128-191   indices: of inputs 0-63 in the low nibbles, of 64-127 in the high ones

   64 numbers lie in four units of 16, so that interleaving their low and high bytes within each unit,
   as the processors do it, gives the inputs in order:

       0-7 32-39 | 8-15 40-47 | 16-23 48-55 | 24-31 56-63

   A high byte that is not in the table is an escape: a word with its input in the upper 24 bits and
   the byte in the lower 8, in the order of inputs. Those of row r are escapes[starts[r]] up to
   escapes[starts[r + 1]]. The last block of a row is filled up with zeros.

   Numbers are put back together in registers, escapes too, before they are multiplied in the order of
   matmul.c: sums have the bits that they have over bfloat16. */

#include "matmul.h"

#define BLOCK 128
#define BLOCK_BYTES 192
#define HALF 64
#define VECTORS (HALF / STEP)        /* in half a block */
#define UNITS (HALF / BYTES_OF_LANES) /* registers of low bytes in half a block */
#define BLOCKS_AHEAD 48               /* to prefetch */
#define UNLIKELY(x) __builtin_expect(x, 0)

#ifdef NO_SIMD /* unrolled, they take minutes to compile */
#define BF12_ROWS 1
#define FOR_BF12_ROWS(rows, call) call(1)
#define OUTPUTS_FOR(rows) 1
#else
#define BF12_ROWS 8
#define FOR_BF12_ROWS FOR_UP_TO_8_ROWS
#ifdef HAS_AVX512 /* one row in order of addresses, for the hardware's prefetcher */
#define OUTPUTS_FOR(rows) (rows == 1 ? 1 : rows <= 4 ? 4 : 2)
#else
#define OUTPUTS_FOR(rows) (rows <= 2 ? 4 : rows <= 4 ? SUMS / 4 : SUMS / 8)
#endif
#endif

/* Where a row's numbers are, and its next escape. */
typedef struct {
    const uint8_t *blocks;
    byte_lanes table;
    const uint32_t *escape, *end;
    int64_t next; /* the input of the next escape; after the last one beyond all inputs */
} packed_row;

INLINE int64_t row_bytes(int64_t k) { return (k + BLOCK - 1) / BLOCK * BLOCK_BYTES; }

INLINE int64_t next_of(const packed_row *row) {
    return row->escape < row->end ? (int64_t)(*row->escape >> 8) : INT64_MAX;
}

INLINE packed_row row_of(const matrix *m, int64_t r) {
    packed_row row = {(const uint8_t *)m->data + r * row_bytes(m->k),
                      broadcast_table(m->tables + 16 * r), m->escapes + m->starts[r],
                      m->escapes + m->starts[r + 1], 0};
    row.next = next_of(&row);
    return row;
}

/* Puts the escapes of 64 inputs from `first` on into their high bytes. A file can be damaged: no
   input leads out of the numbers. */
static __attribute__((noinline)) void restore_escapes(packed_row *row, int64_t first,
                                                      uint8_t *numbers) {
    for (; next_of(row) < first + HALF; row->escape++)
        numbers[2 * ((*row->escape >> 8) % HALF) + 1] = (uint8_t)*row->escape;
    row->next = next_of(row);
}

INLINE void prefetch_block(const uint8_t *block) {
    for (int i = 0; i < BLOCK_BYTES; i += 64) __builtin_prefetch(block + i);
}

/* The 64 bfloat16 numbers of half a block, whose first is input `first` of the row. */
INLINE void unpack_half(packed_row *row, const uint8_t *block, const int half, int64_t first,
                        byte_lanes *numbers) {
#pragma GCC unroll 4
    for (int i = 0; i < UNITS; i++) {
        const byte_lanes low = load_byte_lanes(block + HALF * half + BYTES_OF_LANES * i);
        const byte_lanes both = load_byte_lanes(block + 2 * HALF + BYTES_OF_LANES * i);
        const byte_lanes index = half ? high_nibbles_of(both) : low_nibbles_of(both);
        const byte_lanes high = look_up(row->table, index);
        numbers[i] = interleave_first(low, high);
        numbers[UNITS + i] = interleave_last(low, high);
    }
    if (UNLIKELY(row->next < first + HALF)) {
        uint8_t copy[2 * HALF];
        memcpy(copy, numbers, sizeof copy);
        restore_escapes(row, first, copy);
        memcpy(numbers, copy, sizeof copy);
    }
}

/* The factors of a step of inputs, of row b of `rows` that begin at row `first` of `in`. */
INLINE const factor *factors_of(const inputs *in, const int rows, int64_t first, const int b,
                                int64_t input) {
    if (!COPIES_FACTORS) return in->factors + (first + b) * in->k + input;
    const int group = b / FACTOR_ROWS * FACTOR_ROWS;
    const int in_group = rows - group < FACTOR_ROWS ? rows - group : FACTOR_ROWS;
    return in->factors + (first + group) * in->k + input * in_group + (b - group) * STEP;
}

/* The end of an output's sums, over the inputs after whole blocks. */
static __attribute__((noinline)) void add_last_block(int rows, const matrix *m, const inputs *in,
                                                     int64_t first, packed_row *row, lanes *sums,
                                                     float *y, int64_t stride) {
    const int64_t k = m->k, begin = k / BLOCK * BLOCK, steps = k / STEP * STEP;
    const uint8_t *block = row->blocks + k / BLOCK * BLOCK_BYTES;
    element w[BLOCK];
    byte_lanes numbers[VECTORS];
    unpack_half(row, block, 0, begin, numbers);
    memcpy(w, numbers, sizeof numbers);
    unpack_half(row, block, 1, begin + HALF, numbers);
    memcpy(w + HALF, numbers, sizeof numbers);
    for (int b = 0; b < rows; b++) {
        for (int64_t i = begin; i < steps; i += STEP)
            sums[b] = add_dot(sums[b], factors_of(in, rows, first, b, i), load_vector(w + i - begin));
        float sum = reduce_add(sums[b]);
        const element *x = in->x + (first + b) * k;
        for (int64_t i = steps; i < k; i++) sum += to_float(x[i]) * to_float(w[i - begin]);
        y[b * stride] = sum;
    }
}

/* `outputs` rows of the matrix from r on, times `rows` rows of the inputs from `first` on. */
INLINE void multiply_rows(const int rows, const int outputs, const matrix *m, const inputs *in,
                          int64_t first, int64_t r, float *y, int64_t stride) {
    const int64_t k = m->k, bytes = row_bytes(k);
    packed_row row[4];
    lanes sums[4][BF12_ROWS];
#pragma GCC unroll 4
    for (int o = 0; o < outputs; o++) {
        row[o] = row_of(m, r + o);
#pragma GCC unroll 8
        for (int b = 0; b < rows; b++) sums[o][b] = broadcast_lanes(0);
    }
    const uint8_t *next = row[0].blocks + outputs * bytes;
    for (int64_t i = 0; i + BLOCK <= k; i += BLOCK) {
#pragma GCC unroll 4
        for (int o = 0; o < outputs; o++) {
            const uint8_t *ahead =
                outputs > 1 ? next : row[0].blocks + (i / BLOCK + BLOCKS_AHEAD) * BLOCK_BYTES;
            prefetch_block(ahead);
            next += BLOCK_BYTES;
        }
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            byte_lanes numbers[4][VECTORS];
#pragma GCC unroll 4
            for (int o = 0; o < outputs; o++)
                unpack_half(&row[o], row[o].blocks + i / BLOCK * BLOCK_BYTES, half, i + HALF * half,
                            numbers[o]);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) {
                vector w[4];
#pragma GCC unroll 4
                for (int o = 0; o < outputs; o++) w[o] = widen(numbers[o][v]);
#pragma GCC unroll 8
                for (int b = 0; b < rows; b++) {
                    const factor *f = factors_of(in, rows, first, b, i + HALF * half + STEP * v);
#pragma GCC unroll 4
                    for (int o = 0; o < outputs; o++) sums[o][b] = add_dot(sums[o][b], f, w[o]);
                }
            }
        }
    }
#pragma GCC unroll 4
    for (int o = 0; o < outputs; o++) {
        if (k % BLOCK) {
            lanes partial[BF12_ROWS];
            memcpy(partial, sums[o], rows * sizeof(lanes));
            add_last_block(rows, m, in, first, &row[o], partial, y + o, stride);
            continue;
        }
#pragma GCC unroll 8
        for (int b = 0; b < rows; b++) y[b * stride + o] = reduce_add(sums[o][b]);
    }
}

static __attribute__((noinline)) void multiply_row(int rows, const matrix *m, const inputs *in,
                                                   int64_t first, int64_t r, float *y,
                                                   int64_t stride) {
    multiply_rows(rows, 1, m, in, first, r, y, stride);
}

#ifndef NO_SIMD
/* Many rows of inputs do not stay in the first cache while a row of the matrix is read. They go block
   by block instead, for all outputs of a tile, whose sums wait in memory meanwhile. From how many rows
   on that pays off was measured. */
INLINE int goes_by_blocks(const inputs *in) {
#ifdef HAS_AVX2
    const int least = 4;
#else
    const int least = 7;
#endif
    return in->rows >= least && (COPIES_FACTORS || in->rows * in->k * sizeof(factor) > 1 << 16);
}

#define BLOCK_OUTPUTS (SUMS / FACTOR_ROWS) /* whose sums with FACTOR_ROWS rows fit into registers */

/* Adds to the sums of `rows` rows of the inputs and BLOCK_OUTPUTS outputs their products over `count`
   inputs from `input` on, with weights w. */
INLINE void add_block(const int rows, const inputs *in, int64_t first, int64_t input, int64_t count,
                      vector (*w)[BLOCK / STEP], lanes (*sums)[TILE]) {
    lanes s[FACTOR_ROWS][BLOCK_OUTPUTS];
#pragma GCC unroll 4
    for (int b = 0; b < rows; b++)
#pragma GCC unroll 4
        for (int o = 0; o < BLOCK_OUTPUTS; o++) s[b][o] = sums[b][o];
#pragma GCC unroll 2
    for (int64_t i = 0; i < count; i += STEP) {
        vector v[BLOCK_OUTPUTS];
#pragma GCC unroll 4
        for (int o = 0; o < BLOCK_OUTPUTS; o++) v[o] = w[o][i / STEP];
#pragma GCC unroll 4
        for (int b = 0; b < rows; b++) {
            const factor *f = factors_of(in, rows, first, b, input + i);
#pragma GCC unroll 4
            for (int o = 0; o < BLOCK_OUTPUTS; o++) s[b][o] = add_dot(s[b][o], f, v[o]);
        }
    }
#pragma GCC unroll 4
    for (int b = 0; b < rows; b++)
#pragma GCC unroll 4
        for (int o = 0; o < BLOCK_OUTPUTS; o++) sums[b][o] = s[b][o];
}

static __attribute__((noinline)) void multiply_by_blocks(const matrix *m, const inputs *in,
                                                         int64_t tile, float *y, int64_t stride) {
    const int64_t k = m->k, begin = tile * TILE, outputs = outputs_of(m, tile);
    packed_row row[TILE];
    lanes sums[MAX_ROWS][TILE];
    for (int64_t o = 0; o < TILE; o++) {
        row[o] = row_of(m, begin + min_int(o, outputs - 1)); /* a short tile repeats its last one */
        for (int64_t b = 0; b < in->rows; b++) sums[b][o] = broadcast_lanes(0);
    }
    for (int64_t i = 0; i < k; i += BLOCK)
        for (int64_t o = 0; o < TILE; o += BLOCK_OUTPUTS) {
            vector w[BLOCK_OUTPUTS][BLOCK / STEP];
            const int64_t at = i / BLOCK * BLOCK_BYTES;
            /* to the next block of the row, or to the first one of its row in the next tile */
            const int64_t ahead = i + BLOCK < k ? BLOCK_BYTES : TILE * row_bytes(k) - at;
#pragma GCC unroll 4
            for (int p = 0; p < BLOCK_OUTPUTS; p++) {
                const uint8_t *block = row[o + p].blocks + at;
                byte_lanes numbers[2][VECTORS];
                prefetch_block(block + ahead);
                unpack_half(&row[o + p], block, 0, i, numbers[0]);
                unpack_half(&row[o + p], block, 1, i + HALF, numbers[1]);
#pragma GCC unroll 16
                for (int v = 0; v < 2 * VECTORS; v++)
                    w[p][v] = widen(numbers[v / VECTORS][v % VECTORS]);
            }
            for (int64_t b = 0; b < in->rows; b += FACTOR_ROWS) {
                lanes(*to)[TILE] = (lanes(*)[TILE]) & sums[b][o];
#define CALL(ROWS) add_block(ROWS, in, b, i, min_int(BLOCK, k - i), w, to)
                FOR_UP_TO_4_ROWS(in->rows - b, CALL);
#undef CALL
            }
        }
    for (int64_t b = 0; b < in->rows; b++)
        for (int64_t o = 0; o < outputs; o++) y[b * stride + o] = reduce_add(sums[b][o]);
}
#endif

void multiply_bf12_tile(const matrix *m, const inputs *in, int64_t tile, float *y, int64_t stride) {
    const int64_t begin = tile * TILE, outputs = outputs_of(m, tile);
#ifndef NO_SIMD
    if (goes_by_blocks(in) && m->k % STEP == 0) {
        multiply_by_blocks(m, in, tile, y, stride);
        return;
    }
#endif
    for (int64_t b = 0; b < in->rows; b += BF12_ROWS) {
        float *to = y + b * stride;
        int64_t r = 0;
#define CALL(ROWS)                                                                                   \
    for (; r + OUTPUTS_FOR(ROWS) <= outputs; r += OUTPUTS_FOR(ROWS))                                 \
        multiply_rows(ROWS, OUTPUTS_FOR(ROWS), m, in, b, begin + r, to + r, stride);                 \
    for (; r < outputs; r++) multiply_row(ROWS, m, in, b, begin + r, to + r, stride)
        FOR_BF12_ROWS(in->rows - b, CALL);
#undef CALL
    }
}

/* Rows of a matrix in bfloat16, (count, k): those in `rows`, or without it all from `first` on. */
void unpack_bf12(const uint8_t *blocks, const uint8_t *tables, const int32_t *starts,
                 const uint32_t *escapes, int64_t k, const int64_t *rows, int64_t first,
                 int64_t count, uint16_t *to) {
    const matrix m = {.data = blocks, .tables = tables, .starts = starts, .escapes = escapes, .k = k};
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) {
        packed_row row = row_of(&m, rows ? rows[i] : first + i);
        for (int64_t at = 0; at < k; at += HALF) {
            byte_lanes numbers[VECTORS];
            const uint8_t *block = row.blocks + at / BLOCK * BLOCK_BYTES;
            __builtin_prefetch(block + BLOCKS_AHEAD * BLOCK_BYTES);
            if (at % BLOCK)
                unpack_half(&row, block, 1, at, numbers);
            else
                unpack_half(&row, block, 0, at, numbers);
            if (at + HALF <= k)
                memcpy(to + i * k + at, numbers, sizeof numbers);
            else
                memcpy(to + i * k + at, numbers, (k - at) * sizeof *to);
        }
    }
}

/* Of each row of w (n, k) the 16 most frequent high bytes, of equals the lower first, and the number
   of the weights with others: tables (n, 16), with zeros after a row's last one, and counts (n). */
void find_bf12_tables(const uint16_t *w, int64_t n, int64_t k, uint8_t *tables, int32_t *counts) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < n; r++) {
        /* Neighbours are often alike, and in one histogram would wait for each other. */
        uint32_t seen[8][256] = {{0}}, keys[256];
        const uint16_t *row = w + r * k;
        int64_t i = 0, others = k;
        for (; i + 8 <= k; i += 8)
            for (int j = 0; j < 8; j++) seen[j][row[i + j] >> 8]++;
        for (; i < k; i++) seen[0][row[i] >> 8]++;
        for (int v = 0; v < 256; v++) {
            uint32_t count = 0;
            for (int j = 0; j < 8; j++) count += seen[j][v];
            keys[v] = count << 8 | (255 - v); /* larger for a lower byte; counts are below 2^24 */
        }
        for (int j = 0; j < 16; j++) {
            uint32_t best = 0;
#pragma omp simd reduction(max : best)
            for (int v = 0; v < 256; v++) best = keys[v] > best ? keys[v] : best;
            const int v = 255 - best % 256;
            tables[16 * r + j] = best < 256 ? 0 : (uint8_t)v;
            others -= best >> 8;
            keys[v] = 0;
        }
        counts[r] = (int32_t)others;
    }
}

/* w (n, k) to blocks and escapes, with the tables, and `starts` that follow from the counts, of
   find_bf12_tables. */
void pack_bf12(const uint16_t *w, int64_t n, int64_t k, const uint8_t *tables, const int32_t *starts,
               uint8_t *blocks, uint32_t *escapes) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < n; r++) {
        uint8_t index_of[256], *to = blocks + r * row_bytes(k);
        uint32_t *escape = escapes + starts[r];
        memset(index_of, 16, sizeof index_of);
        for (int j = 15; j >= 0; j--) index_of[tables[16 * r + j]] = (uint8_t)j;
        for (int64_t i = 0; i < k; i += BLOCK, to += BLOCK_BYTES) {
            uint16_t numbers[BLOCK] = {0};
            uint8_t index[BLOCK], others = 0;
            const int64_t count = min_int(BLOCK, k - i);
            memcpy(numbers, w + r * k + i, count * sizeof *w);
            for (int j = 0; j < BLOCK; j++) others |= index[j] = index_of[numbers[j] >> 8];
            memset(index + count, 0, BLOCK - count);
            if (UNLIKELY(others & 16))
                for (int j = 0; j < count; j++)
                    if (index[j] == 16) {
                        *escape++ = (uint32_t)(i + j) << 8 | numbers[j] >> 8;
                        index[j] = 0;
                    }
            for (int j = 0; j < HALF; j++) {
                const int at = j % 32 / 8 * 16 + j / 32 * 8 + j % 8;
                to[at] = (uint8_t)numbers[j];
                to[HALF + at] = (uint8_t)numbers[HALF + j];
                to[2 * HALF + at] = (uint8_t)(index[j] | index[HALF + j] << 4);
            }
        }
    }
}

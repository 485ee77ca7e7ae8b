/* Products of small matrices in the first-level cache, and the layouts that they need.

   Operands consist of words of 32 bits: pairs of bfloat16 numbers where the processor multiplies those
   and rows are bfloat16, else single floats. In c = a b

       a    (rows, words)       a word has neighbours of a row
       b    (words, columns)    a word has neighbours of a column: (depth / 2, columns, 2) */

#ifndef BLOCK_MATMUL_H
#define BLOCK_MATMUL_H

#include "element_types.h"

#if defined(HAS_AVX512) && defined(__AVX512BF16__) && !defined(IN_FLOAT32)
#define WORD 2 /* numbers in a word */
typedef uint16_t number;
typedef __m512i words;

INLINE words load_words(const number *p) { return _mm512_loadu_si512(p); }
INLINE words spread_word(const number *p) {
    int32_t word;
    memcpy(&word, p, 4);
    return _mm512_set1_epi32(word);
}
INLINE floats add_words(floats sum, words a, words b) {
    return (floats){{_mm512_dpbf16_ps(sum.of[0], (__m512bh)a, (__m512bh)b)}};
}
#else
#define WORD 1
typedef float number;
typedef floats words;

INLINE words load_words(const number *p) { return load(p); }
INLINE words spread_word(const number *p) { return broadcast(*p); }
INLINE floats add_words(floats sum, words a, words b) { return multiply_add(a, b, sum); }
#endif

/* The side of a block, and of a tile of a product, whose sums are in registers. */
enum { BLOCK = 64 };
#ifdef HAS_AVX512
enum { DOWN = 8, ACROSS = 32 };
#else
enum { DOWN = 4, ACROSS = 16 };
#endif

/* The elements to compute of a block of keys (down) and queries (across) at the same positions:

       x x x x      SCORES       the scores of a key and the queries from its own on
       . x x x      FOR_KEYS     for a key the sum over queries from its own on
       . . x x      FOR_QUERIES  for a query the sum over keys up to its own
       . . . x */
typedef enum { ALL, SCORES, FOR_KEYS, FOR_QUERIES } triangle;

/* The rows of such a block that are computed in column c: whole tiles. */
INLINE int64_t rows_in(int is_own, int64_t c, int64_t rows) {
    return is_own ? min_int(c / ACROSS * ACROSS + ACROSS, rows) : rows;
}

INLINE void multiply_tile_of(const int across, int is_new, float *c, int64_t c_row, const number *a,
                             int64_t a_row, const number *b, int64_t b_row, int64_t from,
                             int64_t to) {
    floats sums[DOWN][2];
#pragma GCC unroll 8
    for (int i = 0; i < DOWN; i++)
#pragma GCC unroll 2
        for (int j = 0; j < across / 16; j++)
            sums[i][j] = is_new ? broadcast(0) : load(c + i * c_row + 16 * j);
    for (int64_t k = from; k < to; k += WORD) {
        words right[2];
#pragma GCC unroll 2
        for (int j = 0; j < across / 16; j++) right[j] = load_words(b + k * b_row + 16 * WORD * j);
#pragma GCC unroll 8
        for (int i = 0; i < DOWN; i++) {
            words left = spread_word(a + i * a_row + k);
#pragma GCC unroll 2
            for (int j = 0; j < across / 16; j++) sums[i][j] = add_words(sums[i][j], left, right[j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < DOWN; i++)
#pragma GCC unroll 2
        for (int j = 0; j < across / 16; j++) store(c + i * c_row + 16 * j, sums[i][j]);
}

/* c (rows, columns) = a b, or += unless `is_new`, with sums over `depth` numbers; all three are
   multiples of 16. `_row` is the stride of rows, in numbers, of b in words. */
static void multiply(triangle what, int is_new, float *c, int64_t c_row, const number *a,
                     int64_t a_row, const number *b, int64_t b_row, int64_t rows, int64_t columns,
                     int64_t depth) {
    for (int64_t i = 0; i < rows; i += DOWN)
        for (int64_t j = 0; j < columns; j += ACROSS) {
            const int64_t end = min_int(j + ACROSS, columns);
            const int64_t from = what == FOR_KEYS ? i : 0;
            const int64_t to = what == FOR_QUERIES ? min_int(end, depth) : depth;
            const number *left = a + i * a_row, *right = b + WORD * j;
            float *out = c + i * c_row + j;
            if (what == SCORES && end <= i) continue;
            if (ACROSS == 32 && end - j == 32)
                multiply_tile_of(32, is_new, out, c_row, left, a_row, right, b_row, from, to);
            else
                multiply_tile_of(16, is_new, out, c_row, left, a_row, right, b_row, from, to);
        }
}

/* 16 x 16 words or floats. */
INLINE void transpose_16(const char *from, int64_t from_row, char *to, int64_t to_row) {
#ifdef HAS_AVX512
    __m512i a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(from + 4 * i * from_row);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
            a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
        }
#pragma GCC unroll 4
    for (int i = 0; i < 4;
         i++) { /* quarter j of a[4 g + i] is column 4 j + i of rows 4 g to 4 g + 3 */
        __m512i even = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
        __m512i even_2 = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
        __m512i odd = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        __m512i odd_2 = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
        char *out = to + 4 * i * to_row;
        _mm512_storeu_si512(out, _mm512_shuffle_i32x4(even, even_2, 0x88));
        _mm512_storeu_si512(out + 16 * to_row, _mm512_shuffle_i32x4(odd, odd_2, 0x88));
        _mm512_storeu_si512(out + 32 * to_row, _mm512_shuffle_i32x4(even, even_2, 0xdd));
        _mm512_storeu_si512(out + 48 * to_row, _mm512_shuffle_i32x4(odd, odd_2, 0xdd));
    }
#else
    for (int64_t i = 0; i < 16; i++)
        for (int64_t j = 0; j < 16; j++)
            memcpy(to + 4 * (i * to_row + j), from + 4 * (j * from_row + i), 4);
#endif
}

/* (rows, columns) to (columns, rows), both rounded up to multiples of 16. */
static void transpose(const void *from, int64_t from_row, void *to, int64_t to_row, int64_t rows,
                      int64_t columns) {
    for (int64_t r = 0; r < rows; r += 16)
        for (int64_t c = 0; c < columns; c += 16)
            transpose_16((const char *)from + 4 * (r * from_row + c), from_row,
                         (char *)to + 4 * (c * to_row + r), to_row);
}

/* Rows (rows, columns) as `b` of a product that sums over rows: in place, or copied to `space`. */
static const number *rows_as_b(const number *x, int64_t rows, int64_t columns, number *space) {
#if WORD == 2
    for (int64_t r = 0; r < rows; r += 2, x += 2 * columns)
        for (int64_t c = 0; c < columns; c++) {
            space[(r * columns) + 2 * c] = x[c];
            space[(r * columns) + 2 * c + 1] = x[columns + c];
        }
    return space;
#else
    (void)rows, (void)columns, (void)space;
    return x;
#endif
}

#if WORD == 2
INLINE __m512i to_bf16_pairs(const float *low, const float *high) {
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(high), _mm512_loadu_ps(low));
}
#endif

/* A block of floats as `a` of a product that sums over queries. */
static const number *block_as_a(int is_own, const float *x, int64_t rows, int64_t columns,
                                number *space) {
#if WORD == 2
    for (int64_t c = 0; c < columns; c += 32)
        for (int64_t r = 0; r < rows_in(is_own, c, rows); r++) {
            const int64_t at = r * BLOCK + c;
            _mm512_storeu_si512(space + at, to_bf16_pairs(x + at, x + at + 16));
        }
    return space;
#else
    (void)is_own, (void)rows, (void)columns, (void)space;
    return x;
#endif
}

/* A block of floats as `b` of a product that sums over keys. */
static const number *block_as_b(int is_own, const float *x, int64_t rows, int64_t columns,
                                number *space) {
#if WORD == 2
    uint16_t order[32]; /* 0 16 1 17 2 18 ... */
    for (int i = 0; i < 32; i++) order[i] = (uint16_t)(i / 2 + i % 2 * 16);
    const __m512i interleaved = _mm512_loadu_si512(order);
    for (int64_t c = 0; c < columns; c += 16)
        for (int64_t r = 0; r < rows_in(is_own, c, rows); r += 2) {
            const float *at = x + r * BLOCK + c;
            __m512i both = _mm512_permutexvar_epi16(interleaved, to_bf16_pairs(at, at + BLOCK));
            _mm512_storeu_si512(space + r * BLOCK + 2 * c, both);
        }
    return space;
#else
    (void)is_own, (void)rows, (void)columns, (void)space;
    return x;
#endif
}

#endif

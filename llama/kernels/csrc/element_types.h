/* The type of a model's numbers. Most sources are compiled twice, for bfloat16 and, with IN_FLOAT32,
   for float32. Sums are float32 in both.

   A `vector` is STEP elements of a matrix, and is multiplied by as many factors. A `factor` is an
   element where the processor multiplies those. Bfloat16 becomes float32 elsewhere: a shift gives the
   even numbers of a register and a mask the odd ones, so a step has its even factors before the odd
   ones. `widen` makes a vector of STEP bfloat16 numbers, as many as a `byte_lanes` holds. */

#ifndef ELEMENT_TYPES_H
#define ELEMENT_TYPES_H

#include "simd.h"

#include <math.h>

#ifdef IN_FLOAT32
#define NAMED(name) name##_float32
typedef float element, factor;
typedef lanes vector;
#define STEP LANES
#define COPIES_FACTORS 0

INLINE float to_float(element x) { return x; }
INLINE element from_float(float f) { return f; }
INLINE lanes load_elements(const element *p) { return load_lanes(p); }
INLINE vector load_vector(const element *w) { return load_lanes(w); }
INLINE lanes add_dot(lanes sum, const factor *x, vector w) {
    return multiply_add_lanes(load_lanes(x), w, sum);
}
#else
#define NAMED(name) name##_bfloat16
typedef uint16_t element;

INLINE float to_float(element x) { return from_bf16(x); }
INLINE element from_float(float f) { return to_bf16(f); }
INLINE lanes load_elements(const element *p) { return load_bf16_lanes(p); }
#if defined(__AVX512BF16__)
typedef element factor;
typedef __m512i vector;
#define STEP 32
#define COPIES_FACTORS 0

INLINE vector widen(byte_lanes both) { return both; }
INLINE lanes add_dot(lanes sum, const factor *x, vector w) {
    return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)_mm512_loadu_si512(x));
}
#else
typedef float factor;
typedef struct {
    lanes even, odd;
} vector;
#define STEP (2 * LANES)
#define COPIES_FACTORS 1

INLINE vector widen(byte_lanes both) {
#if defined(HAS_AVX512)
    return (vector){_mm512_castsi512_ps(_mm512_slli_epi32(both, 16)),
                    _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(-65536)))};
#elif defined(HAS_AVX2)
    return (vector){_mm256_castsi256_ps(_mm256_slli_epi32(both, 16)),
                    _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(-65536)))};
#elif defined(NO_SIMD)
    uint16_t w[STEP];
    memcpy(w, &both, sizeof w);
    vector y;
    for (int i = 0; i < LANES; i++) {
        y.even.lane[i] = from_bf16(w[2 * i]);
        y.odd.lane[i] = from_bf16(w[2 * i + 1]);
    }
    return y;
#else
    uint32x4_t words = vreinterpretq_u32_s8(both);
    return (vector){vreinterpretq_f32_u32(vshlq_n_u32(words, 16)),
                    vreinterpretq_f32_u32(vandq_u32(words, vdupq_n_u32(0xffff0000)))};
#endif
}
INLINE lanes add_dot(lanes sum, const factor *x, vector w) {
    sum = multiply_add_lanes(load_lanes(x), w.even, sum);
    return multiply_add_lanes(load_lanes(x + LANES), w.odd, sum);
}
#endif
INLINE vector load_vector(const element *w) { return widen(load_byte_lanes((const uint8_t *)w)); }
#endif

/* STEP elements as factors. */
INLINE void load_factors(const element *x, factor *to) {
#if COPIES_FACTORS
    for (int i = 0; i < LANES; i++) {
        to[i] = to_float(x[2 * i]);
        to[LANES + i] = to_float(x[2 * i + 1]);
    }
#else
    memcpy(to, x, STEP * sizeof *x);
#endif
}

INLINE int64_t min_int(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max_int(int64_t a, int64_t b) { return a > b ? a : b; }

#define LOG2_E 1.44269504f

/* 2^x to 1e-7, for x up to 126; below -126 as for -126. */
INLINE float fast_exp2(float x) {
    x = x < -126.0f ? -126.0f : x;         /* NaN stays */
    const float shifted = x + 12582912.0f; /* 1.5 * 2^23: its last bit is 1 */
    const float fraction = x - (shifted - 12582912.0f);
    float power = 0.00132764713f;
    power = power * fraction + 0.00967554096f;
    power = power * fraction + 0.0555071309f;
    power = power * fraction + 0.240221202f;
    power = power * fraction + 0.693146944f;
    power = power * fraction + 1.00000012f;
    uint32_t bits, whole;
    memcpy(&bits, &power, 4);
    memcpy(&whole, &shifted, 4);
    bits += whole << 23;
    memcpy(&power, &bits, 4);
    return power;
}

#endif

/* The type of numbers in training: its sources are compiled twice, for bfloat16 and, with IN_FLOAT32,
   for float32. */

#ifndef ELEMENT_TYPES_H
#define ELEMENT_TYPES_H

#include "transformer_ops.h"

#define LOG2_E 1.44269504f

/* 2^x to 1e-7, for x up to 126; below -126 as for -126. Shorter than `fast_exp`. */
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

#ifdef IN_FLOAT32
#define NAMED(name) name##_float32
typedef float element;
INLINE float to_float(element x) { return x; }
INLINE element from_float(float f) { return f; }
#else
#define NAMED(name) name##_bfloat16
typedef uint16_t element;
INLINE float to_float(element x) { return from_bf16(x); }
INLINE element from_float(float f) { return round_to_bf16(f); }
#endif

#endif

/* SIMD operations on 16 numbers, for AVX-512, AVX2 and NEON, or as plain loops. The other sources are
   written in these terms.

   `floats` and `ints` have 16 lanes, `bytes` has 4 bytes for each lane. An integer product begins with
   `init_sums`, goes on with `add_products` and ends with `finish_sums`; the two take the bias, -8
   times the sum of the inputs, since packed weights are stored with an offset of BIAS(bits).

   `lanes` is a single register of LANES float32. SUMS of them can be accumulators at a time, which
   leaves registers for the factors. */

#ifndef SIMD_H
#define SIMD_H

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

INLINE float from_bf16(uint16_t v) {
    uint32_t bits = (uint32_t)v << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* To nearest, ties to even. A NaN that arithmetic gives has low bits of 0, so that none carries. */
INLINE uint16_t to_bf16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#include <immintrin.h>
#define HAS_AVX512
typedef __m512 floats, lanes;
typedef __m512i ints, bytes;
#define LANES 16
#define SUMS 16
#define BIAS(bits) (bits == 8 ? 128 : 8)

INLINE floats broadcast(float x) { return _mm512_set1_ps(x); }
INLINE floats load_bf16(const uint16_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
INLINE floats load(const float *p) { return _mm512_loadu_ps(p); }
INLINE floats multiply_add(floats a, floats b, floats sum) { return _mm512_fmadd_ps(a, b, sum); }
INLINE void store(float *p, floats x) { _mm512_storeu_ps(p, x); }
INLINE float reduce_add(floats x) { return _mm512_reduce_add_ps(x); }
INLINE ints broadcast_int(int32_t x) { return _mm512_set1_epi32(x); }
INLINE bytes load_bytes(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE bytes low_nibbles(bytes x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
INLINE bytes high_nibbles(bytes x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }
INLINE ints add_products(ints sums, bytes w, int32_t q, int bits) {
    (void)bits;
    return _mm512_dpbusd_epi32(sums, w, _mm512_set1_epi32(q));
}
INLINE floats add_scaled(floats sums, ints x, const _Float16 *scales, float scale) {
    floats s = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scales));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(x), _mm512_mul_ps(s, _mm512_set1_ps(scale)), sums);
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
typedef struct {
    __m256 a, b;
} floats;
typedef struct {
    __m256i a, b;
} ints;
typedef ints bytes;
typedef __m256 lanes;
#define HAS_AVX2
#define LANES 8
#define SUMS 8

INLINE floats broadcast(float x) { return (floats){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE lanes broadcast_lanes(float x) { return _mm256_set1_ps(x); }
INLINE lanes load_bf16_lanes(const uint16_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
INLINE lanes multiply_add_lanes(lanes a, lanes b, lanes sum) { return _mm256_fmadd_ps(a, b, sum); }
INLINE void store_lanes(float *p, lanes x) { _mm256_storeu_ps(p, x); }
INLINE floats load_bf16(const uint16_t *p) {
    return (floats){load_bf16_lanes(p), load_bf16_lanes(p + 8)};
}
INLINE floats load(const float *p) { return (floats){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE floats multiply_add(floats a, floats b, floats sum) {
    return (floats){_mm256_fmadd_ps(a.a, b.a, sum.a), _mm256_fmadd_ps(a.b, b.b, sum.b)};
}
INLINE void store(float *p, floats x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
INLINE float reduce_add(lanes x) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
INLINE ints broadcast_int(int32_t x) { return (ints){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
INLINE bytes load_bytes(const uint8_t *p) {
    const __m256i *at = (const __m256i *)p;
    return (bytes){_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
INLINE __m256i low_nibbles_32(__m256i x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
INLINE bytes low_nibbles(bytes x) { return (bytes){low_nibbles_32(x.a), low_nibbles_32(x.b)}; }
INLINE bytes high_nibbles(bytes x) {
    return (bytes){low_nibbles_32(_mm256_srli_epi16(x.a, 4)),
                   low_nibbles_32(_mm256_srli_epi16(x.b, 4))};
}
/* maddubs adds two products in 16 bits, saturated, of an unsigned and a signed factor: for int8 these
   are |w| and sign(w) q. The 16 products of an int4 group in a lane fit into 16 bits together. */
INLINE __m256i add_products_8(__m256i sums, __m256i w, __m256i q, int bits) {
    if (bits == 8) {
        w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
        __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(q, w));
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    } else
        sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(w, q));
    __asm__("" : "+x"(sums)); /* else gcc computes all products first and spills registers */
    return sums;
}
INLINE ints add_products(ints sums, bytes w, int32_t q, int bits) {
    __m256i four = _mm256_set1_epi32(q);
    return (ints){add_products_8(sums.a, w.a, four, bits), add_products_8(sums.b, w.b, four, bits)};
}
INLINE ints init_sums(int32_t bias, int bits) {
    (void)bias, (void)bits;
    return broadcast_int(0);
}
INLINE ints finish_sums(ints sums, int32_t bias, int bits) {
    if (bits == 8) return sums;
    __m256i ones = _mm256_set1_epi16(1), more = _mm256_set1_epi32(bias);
    return (ints){_mm256_add_epi32(_mm256_madd_epi16(sums.a, ones), more),
                  _mm256_add_epi32(_mm256_madd_epi16(sums.b, ones), more)};
}
INLINE __m256 add_scaled_8(__m256 sums, __m256i x, const _Float16 *scales, float scale) {
    __m256 s = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)scales));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(x), _mm256_mul_ps(s, _mm256_set1_ps(scale)), sums);
}
INLINE floats add_scaled(floats sums, ints x, const _Float16 *scales, float scale) {
    return (floats){add_scaled_8(sums.a, x.a, scales, scale),
                    add_scaled_8(sums.b, x.b, scales + 8, scale)};
}

#elif defined(__ARM_NEON) && defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
typedef float32x4x4_t floats;
typedef int32x4x4_t ints;
typedef int8x16x4_t bytes;
typedef float32x4_t lanes;
#define LANES 4
#define SUMS 16
#define BIAS(bits) (bits == 8 ? 0 : 8)
#define FOR_EACH(result, value)                                                                      \
    for (int i = 0; i < 4; i++) result.val[i] = value;

INLINE floats broadcast(float x) {
    floats y;
    FOR_EACH(y, vdupq_n_f32(x))
    return y;
}
INLINE lanes broadcast_lanes(float x) { return vdupq_n_f32(x); }
INLINE lanes load_bf16_lanes(const uint16_t *p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
INLINE lanes multiply_add_lanes(lanes a, lanes b, lanes sum) { return vfmaq_f32(sum, a, b); }
INLINE void store_lanes(float *p, lanes x) { vst1q_f32(p, x); }
INLINE floats load_bf16(const uint16_t *p) {
    floats y;
    FOR_EACH(y, load_bf16_lanes(p + 4 * i))
    return y;
}
INLINE floats load(const float *p) {
    floats y;
    FOR_EACH(y, vld1q_f32(p + 4 * i))
    return y;
}
INLINE floats multiply_add(floats a, floats b, floats sum) {
    FOR_EACH(sum, vfmaq_f32(sum.val[i], a.val[i], b.val[i]))
    return sum;
}
INLINE void store(float *p, floats x) {
    for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, x.val[i]);
}
INLINE float reduce_add(lanes x) { return vaddvq_f32(x); }
INLINE ints broadcast_int(int32_t x) {
    ints y;
    FOR_EACH(y, vdupq_n_s32(x))
    return y;
}
INLINE bytes load_bytes(const uint8_t *p) {
    bytes y;
    FOR_EACH(y, vreinterpretq_s8_u8(vld1q_u8(p + 16 * i)))
    return y;
}
INLINE bytes low_nibbles(bytes x) {
    FOR_EACH(x, vandq_s8(x.val[i], vdupq_n_s8(15)))
    return x;
}
INLINE bytes high_nibbles(bytes x) {
    FOR_EACH(x, vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(x.val[i]), 4)))
    return x;
}
INLINE ints add_products(ints sums, bytes w, int32_t q, int bits) {
    int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(q)), sign = vdupq_n_s8(bits == 8 ? -128 : 0);
    FOR_EACH(sums, vdotq_s32(sums.val[i], veorq_s8(w.val[i], sign), four))
    return sums;
}
INLINE floats add_scaled(floats sums, ints x, const _Float16 *scales, float scale) {
    for (int i = 0; i < 4; i++) {
        float32x4_t s = vcvt_f32_f16(vld1_f16((const float16_t *)scales + 4 * i));
        sums.val[i] = vfmaq_f32(sums.val[i], vcvtq_f32_s32(x.val[i]), vmulq_n_f32(s, scale));
    }
    return sums;
}

#else
#define NO_SIMD
typedef struct {
    float lane[16];
} floats, lanes;
typedef struct {
    int32_t lane[16];
} ints;
typedef struct {
    uint8_t lane[64];
} bytes;
#define LANES 16
#define SUMS 16
#define BIAS(bits) (bits == 8 ? 128 : 8)
#define FOR_EACH(result, value)                                                                      \
    for (int i = 0; i < 16; i++) result.lane[i] = value;

INLINE floats broadcast(float x) {
    floats y;
    FOR_EACH(y, x)
    return y;
}
INLINE floats load_bf16(const uint16_t *p) {
    floats y;
    FOR_EACH(y, from_bf16(p[i]))
    return y;
}
INLINE floats load(const float *p) {
    floats y;
    memcpy(y.lane, p, sizeof y.lane);
    return y;
}
INLINE floats multiply_add(floats a, floats b, floats sum) {
    FOR_EACH(sum, sum.lane[i] + a.lane[i] * b.lane[i])
    return sum;
}
INLINE void store(float *p, floats x) { memcpy(p, x.lane, sizeof x.lane); }
INLINE float reduce_add(floats x) {
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) x.lane[i] += x.lane[i + width];
    return x.lane[0];
}
INLINE ints broadcast_int(int32_t x) {
    ints y;
    FOR_EACH(y, x)
    return y;
}
INLINE bytes load_bytes(const uint8_t *p) {
    bytes y;
    memcpy(y.lane, p, sizeof y.lane);
    return y;
}
INLINE bytes low_nibbles(bytes x) {
    for (int i = 0; i < 64; i++) x.lane[i] &= 15;
    return x;
}
INLINE bytes high_nibbles(bytes x) {
    for (int i = 0; i < 64; i++) x.lane[i] >>= 4;
    return x;
}
INLINE ints add_products(ints sums, bytes w, int32_t q, int bits) {
    int8_t four[4];
    (void)bits;
    memcpy(four, &q, 4);
    FOR_EACH(sums, sums.lane[i] + w.lane[4 * i] * four[0] + w.lane[4 * i + 1] * four[1] +
                       w.lane[4 * i + 2] * four[2] + w.lane[4 * i + 3] * four[3])
    return sums;
}
INLINE floats add_scaled(floats sums, ints x, const _Float16 *scales, float scale) {
    FOR_EACH(sums, sums.lane[i] + (float)x.lane[i] * ((float)scales[i] * scale))
    return sums;
}
#endif

INLINE floats add(floats a, floats b) { return multiply_add(a, broadcast(1), b); }

#if LANES == 16
INLINE lanes broadcast_lanes(float x) { return broadcast(x); }
INLINE lanes load_bf16_lanes(const uint16_t *p) { return load_bf16(p); }
INLINE lanes multiply_add_lanes(lanes a, lanes b, lanes sum) { return multiply_add(a, b, sum); }
INLINE void store_lanes(float *p, lanes x) { store(p, x); }
#endif

#ifndef HAS_AVX2
INLINE ints init_sums(int32_t bias, int bits) { return broadcast_int(BIAS(bits) / 8 * bias); }
INLINE ints finish_sums(ints sums, int32_t bias, int bits) {
    (void)bias, (void)bits;
    return sums;
}
#endif

/* The sum of the lanes of each of SUMS registers. */
INLINE void store_reduced(float *y, const lanes v[SUMS]) {
#if defined(HAS_AVX512)
    lanes pairs[8], fours[4];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]),
                                 _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
        fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                                 _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
#define FOLD(a, b) _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd))
    store(y, FOLD(FOLD(fours[0], fours[1]), FOLD(fours[2], fours[3])));
#undef FOLD
#elif defined(HAS_AVX2)
    lanes fours[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        fours[i] = _mm256_hadd_ps(_mm256_hadd_ps(v[4 * i], v[4 * i + 1]),
                                  _mm256_hadd_ps(v[4 * i + 2], v[4 * i + 3]));
    store_lanes(y, _mm256_add_ps(_mm256_permute2f128_ps(fours[0], fours[1], 0x20),
                                 _mm256_permute2f128_ps(fours[0], fours[1], 0x31)));
#else
    for (int i = 0; i < SUMS; i++) y[i] = reduce_add(v[i]);
#endif
}

#endif

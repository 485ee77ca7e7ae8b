/* SIMD operations for AVX-512, AVX2 and NEON, or as plain loops. The other sources are written in
   these terms.

   `lanes` is a register of LANES float32. SUMS of them can be accumulators at a time, which leaves
   registers for the factors. `int_lanes` has as many int32, `byte_lanes` 4 bytes for each of them.
   Each 16 bytes of a `byte_lanes` are a unit: a table fills one and is repeated in all, and `look_up`
   takes indices of 0 to 15; two registers are interleaved unit by unit, their first or last 8 bytes.

   `floats`, `ints` and `bytes` are REGISTERS of these, 16 lanes. An integer product begins with
   `init_sums`, goes on with `add_products` and ends with `finish_sums`; the two take the bias, -8
   times the sum of the inputs, since packed weights are stored with an offset of BIAS(bits). */

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
typedef __m512 lanes;
typedef __m512i int_lanes, byte_lanes;
#define LANES 16
#define SUMS 16
#define BIAS(bits) (bits == 8 ? 128 : 8)

INLINE lanes broadcast_lanes(float x) { return _mm512_set1_ps(x); }
INLINE lanes load_bf16_lanes(const uint16_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
INLINE lanes load_scales(const _Float16 *p, float factor) {
    __m512 scales = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_mul_ps(scales, _mm512_set1_ps(factor));
}
INLINE lanes multiply_add_lanes(lanes a, lanes b, lanes sum) { return _mm512_fmadd_ps(a, b, sum); }
INLINE float reduce_add(lanes x) { return _mm512_reduce_add_ps(x); }
INLINE int_lanes broadcast_ints(int32_t x) { return _mm512_set1_epi32(x); }
INLINE lanes ints_to_floats(int_lanes x) { return _mm512_cvtepi32_ps(x); }
INLINE byte_lanes low_nibbles_of(byte_lanes x) {
    return _mm512_and_si512(x, _mm512_set1_epi8(15));
}
INLINE byte_lanes high_nibbles_of(byte_lanes x) { return low_nibbles_of(_mm512_srli_epi16(x, 4)); }
INLINE byte_lanes broadcast_table(const uint8_t *p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)p));
}
INLINE byte_lanes look_up(byte_lanes table, byte_lanes index) {
    return _mm512_shuffle_epi8(table, index);
}
INLINE byte_lanes interleave_first(byte_lanes a, byte_lanes b) {
    return _mm512_unpacklo_epi8(a, b);
}
INLINE byte_lanes interleave_last(byte_lanes a, byte_lanes b) { return _mm512_unpackhi_epi8(a, b); }
INLINE int_lanes dot(int_lanes sums, byte_lanes w, int32_t q, int bits) {
    (void)bits;
    return _mm512_dpbusd_epi32(sums, w, _mm512_set1_epi32(q));
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#define HAS_AVX2
typedef __m256 lanes;
typedef __m256i int_lanes, byte_lanes;
#define LANES 8
#define SUMS 8

INLINE lanes broadcast_lanes(float x) { return _mm256_set1_ps(x); }
INLINE lanes load_bf16_lanes(const uint16_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
INLINE lanes load_scales(const _Float16 *p, float factor) {
    __m256 scales = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
    return _mm256_mul_ps(scales, _mm256_set1_ps(factor));
}
INLINE lanes multiply_add_lanes(lanes a, lanes b, lanes sum) { return _mm256_fmadd_ps(a, b, sum); }
INLINE float reduce_add(lanes x) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
INLINE int_lanes broadcast_ints(int32_t x) { return _mm256_set1_epi32(x); }
INLINE lanes ints_to_floats(int_lanes x) { return _mm256_cvtepi32_ps(x); }
INLINE byte_lanes low_nibbles_of(byte_lanes x) {
    return _mm256_and_si256(x, _mm256_set1_epi8(15));
}
INLINE byte_lanes high_nibbles_of(byte_lanes x) { return low_nibbles_of(_mm256_srli_epi16(x, 4)); }
INLINE byte_lanes broadcast_table(const uint8_t *p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
}
INLINE byte_lanes look_up(byte_lanes table, byte_lanes index) {
    return _mm256_shuffle_epi8(table, index);
}
INLINE byte_lanes interleave_first(byte_lanes a, byte_lanes b) {
    return _mm256_unpacklo_epi8(a, b);
}
INLINE byte_lanes interleave_last(byte_lanes a, byte_lanes b) { return _mm256_unpackhi_epi8(a, b); }
/* maddubs adds two products in 16 bits, saturated, of an unsigned and a signed factor: for int8 these
   are |w| and sign(w) q. The 16 products of an int4 group in a lane fit into 16 bits together. */
INLINE int_lanes dot(int_lanes sums, byte_lanes w, int32_t four, int bits) {
    __m256i q = _mm256_set1_epi32(four);
    if (bits == 8) {
        w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
        __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(q, w));
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    } else
        sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(w, q));
    __asm__("" : "+x"(sums)); /* else gcc computes all products first and spills registers */
    return sums;
}

#elif defined(__ARM_NEON) && defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
typedef float32x4_t lanes;
typedef int32x4_t int_lanes;
typedef int8x16_t byte_lanes;
#define LANES 4
#define SUMS 16
#define BIAS(bits) (bits == 8 ? 0 : 8)

INLINE lanes broadcast_lanes(float x) { return vdupq_n_f32(x); }
INLINE lanes load_bf16_lanes(const uint16_t *p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
INLINE lanes load_scales(const _Float16 *p, float factor) {
    return vmulq_n_f32(vcvt_f32_f16(vld1_f16((const float16_t *)p)), factor);
}
INLINE lanes multiply_add_lanes(lanes a, lanes b, lanes sum) { return vfmaq_f32(sum, a, b); }
INLINE float reduce_add(lanes x) { return vaddvq_f32(x); }
INLINE int_lanes broadcast_ints(int32_t x) { return vdupq_n_s32(x); }
INLINE lanes ints_to_floats(int_lanes x) { return vcvtq_f32_s32(x); }
INLINE byte_lanes low_nibbles_of(byte_lanes x) { return vandq_s8(x, vdupq_n_s8(15)); }
INLINE byte_lanes high_nibbles_of(byte_lanes x) {
    return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(x), 4));
}
INLINE byte_lanes broadcast_table(const uint8_t *p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }
INLINE byte_lanes look_up(byte_lanes table, byte_lanes index) {
    return vqtbl1q_s8(table, vreinterpretq_u8_s8(index));
}
INLINE byte_lanes interleave_first(byte_lanes a, byte_lanes b) { return vzip1q_s8(a, b); }
INLINE byte_lanes interleave_last(byte_lanes a, byte_lanes b) { return vzip2q_s8(a, b); }
INLINE int_lanes dot(int_lanes sums, byte_lanes w, int32_t q, int bits) {
    int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(q)), sign = vdupq_n_s8(bits == 8 ? -128 : 0);
    return vdotq_s32(sums, veorq_s8(w, sign), four);
}

#else
#define NO_SIMD
typedef struct {
    float lane[16];
} lanes;
typedef struct {
    int32_t lane[16];
} int_lanes;
typedef struct {
    uint8_t lane[64];
} byte_lanes;
#define LANES 16
#define SUMS 16
#define BIAS(bits) (bits == 8 ? 128 : 8)
#define RETURN_EACH(type, count, value)                                                              \
    type y;                                                                                          \
    for (int i = 0; i < count; i++) y.lane[i] = value;                                               \
    return y;

INLINE lanes broadcast_lanes(float x) { RETURN_EACH(lanes, 16, x) }
INLINE lanes load_bf16_lanes(const uint16_t *p) { RETURN_EACH(lanes, 16, from_bf16(p[i])) }
INLINE lanes load_scales(const _Float16 *p, float factor) {
    RETURN_EACH(lanes, 16, (float)p[i] * factor)
}
INLINE lanes multiply_add_lanes(lanes a, lanes b, lanes sum) {
    RETURN_EACH(lanes, 16, sum.lane[i] + a.lane[i] * b.lane[i])
}
INLINE float reduce_add(lanes x) {
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) x.lane[i] += x.lane[i + width];
    return x.lane[0];
}
INLINE int_lanes broadcast_ints(int32_t x) { RETURN_EACH(int_lanes, 16, x) }
INLINE lanes ints_to_floats(int_lanes x) { RETURN_EACH(lanes, 16, (float)x.lane[i]) }
INLINE byte_lanes low_nibbles_of(byte_lanes x) {
    for (int i = 0; i < 64; i++) x.lane[i] &= 15;
    return x;
}
INLINE byte_lanes high_nibbles_of(byte_lanes x) {
    for (int i = 0; i < 64; i++) x.lane[i] >>= 4;
    return x;
}
INLINE byte_lanes broadcast_table(const uint8_t *p) { RETURN_EACH(byte_lanes, 64, p[i % 16]) }
INLINE byte_lanes look_up(byte_lanes table, byte_lanes index) {
    RETURN_EACH(byte_lanes, 64, table.lane[index.lane[i]])
}
INLINE byte_lanes interleave(byte_lanes a, byte_lanes b, int first) {
    RETURN_EACH(byte_lanes, 64, (i % 2 ? &b : &a)->lane[i / 16 * 16 + first + i % 16 / 2])
}
INLINE byte_lanes interleave_first(byte_lanes a, byte_lanes b) { return interleave(a, b, 0); }
INLINE byte_lanes interleave_last(byte_lanes a, byte_lanes b) { return interleave(a, b, 8); }
INLINE int_lanes dot(int_lanes sums, byte_lanes w, int32_t q, int bits) {
    int8_t four[4];
    (void)bits;
    memcpy(four, &q, 4);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 4; j++) sums.lane[i] += w.lane[4 * i + j] * four[j];
    return sums;
}
#endif

INLINE lanes load_lanes(const float *p) {
    lanes x;
    memcpy(&x, p, sizeof x);
    return x;
}
INLINE byte_lanes load_byte_lanes(const uint8_t *p) {
    byte_lanes x;
    memcpy(&x, p, sizeof x);
    return x;
}
INLINE void store_lanes(float *p, lanes x) { memcpy(p, &x, sizeof x); }

#define BYTES_OF_LANES (4 * LANES)
#define REGISTERS (16 / LANES)
typedef struct {
    lanes of[REGISTERS];
} floats;
typedef struct {
    int_lanes of[REGISTERS];
} ints;
typedef struct {
    byte_lanes of[REGISTERS];
} bytes;
#define RETURN_REGISTERS(type, value)                                                                \
    type y;                                                                                          \
    _Pragma("GCC unroll 4") for (int i = 0; i < REGISTERS; i++) y.of[i] = value;                     \
    return y;

INLINE floats broadcast(float x) { RETURN_REGISTERS(floats, broadcast_lanes(x)) }
INLINE floats load(const float *p) { RETURN_REGISTERS(floats, load_lanes(p + LANES * i)) }
INLINE floats load_bf16(const uint16_t *p) {
    RETURN_REGISTERS(floats, load_bf16_lanes(p + LANES * i))
}
INLINE floats multiply_add(floats a, floats b, floats sum) {
    RETURN_REGISTERS(floats, multiply_add_lanes(a.of[i], b.of[i], sum.of[i]))
}
INLINE floats add(floats a, floats b) { return multiply_add(a, broadcast(1), b); }
INLINE void store(float *p, floats x) {
    for (int i = 0; i < REGISTERS; i++) store_lanes(p + LANES * i, x.of[i]);
}
INLINE bytes load_bytes(const uint8_t *p) {
    RETURN_REGISTERS(bytes, load_byte_lanes(p + 4 * LANES * i))
}
INLINE bytes low_nibbles(bytes x) { RETURN_REGISTERS(bytes, low_nibbles_of(x.of[i])) }
INLINE bytes high_nibbles(bytes x) { RETURN_REGISTERS(bytes, high_nibbles_of(x.of[i])) }
INLINE ints add_products(ints sums, bytes w, int32_t q, int bits) {
    RETURN_REGISTERS(ints, dot(sums.of[i], w.of[i], q, bits))
}
INLINE floats add_scaled(floats sums, ints x, const _Float16 *scales, float scale) {
    RETURN_REGISTERS(floats, multiply_add_lanes(ints_to_floats(x.of[i]),
                                                load_scales(scales + LANES * i, scale), sums.of[i]))
}
#ifdef HAS_AVX2
INLINE ints init_sums(int32_t bias, int bits) {
    (void)bias, (void)bits;
    RETURN_REGISTERS(ints, broadcast_ints(0))
}
INLINE ints finish_sums(ints sums, int32_t bias, int bits) {
    const __m256i ones = _mm256_set1_epi16(1), more = broadcast_ints(bias);
    if (bits == 8) return sums;
    RETURN_REGISTERS(ints, _mm256_add_epi32(_mm256_madd_epi16(sums.of[i], ones), more))
}
#else
INLINE ints init_sums(int32_t bias, int bits) {
    RETURN_REGISTERS(ints, broadcast_ints(BIAS(bits) / 8 * bias))
}
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
    store_lanes(y, FOLD(FOLD(fours[0], fours[1]), FOLD(fours[2], fours[3])));
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

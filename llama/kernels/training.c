/* What training does between matrix products besides attention: the norm, the gate and the loss, each
   in one pass over memory, and their gradients. Rows are float32 or bfloat16 and every sum is float32.
   How a row is computed depends neither on other rows nor on the number of threads. */

#include "training.h"

INLINE void widen_row(const void *x, int is_wide, int64_t b, int64_t dim, float *y) {
    if (is_wide)
        memcpy(y, (const float *)x + b * dim, dim * sizeof *y);
    else
        for (int64_t i = 0; i < dim; i++) y[i] = from_bf16(((const uint16_t *)x)[b * dim + i]);
}

INLINE float inverse_rms(const float *x, double eps, int64_t dim) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < dim; i++) sum += x[i] * x[i];
    return 1.0f / sqrtf(sum / (float)dim + (float)eps);
}

/* y (rows, dim) = x / rms(x) * weight; x float32 where it is wide. */
void norm_rows(const void *x, int is_wide, const float *weight, double eps, uint16_t *y, int64_t rows,
               int64_t dim) {
#pragma omp parallel
    {
        float wide[dim];
#pragma omp for schedule(static)
        for (int64_t b = 0; b < rows; b++) {
            widen_row(x, is_wide, b, dim, wide);
            float scale = inverse_rms(wide, eps, dim);
            for (int64_t i = 0; i < dim; i++) y[b * dim + i] = rounded(wide[i] * scale * weight[i]);
        }
    }
}

/* dx like x, and the weight's gradient in the first of `parts` rows of sums (parts, dim), unless that
   is NULL: as many stretches of rows are summed apart, then their sums. With r = 1 / rms(x):

       dx = r (dy weight - x r^2 mean(dy weight x))      d weight = sum of dy x r */
void norm_rows_back(const void *x, int is_wide, const float *weight, double eps, const uint16_t *dy,
                    void *dx, float *sums, int64_t parts, int64_t rows, int64_t dim) {
#pragma omp parallel
    {
        float wide[dim], d[dim];
#pragma omp for schedule(static)
        for (int64_t part = 0; part < parts; part++) {
            float *d_weight = sums ? sums + part * dim : NULL;
            if (d_weight) memset(d_weight, 0, dim * sizeof *d_weight);
            for (int64_t b = part * rows / parts; b < (part + 1) * rows / parts; b++) {
                widen_row(x, is_wide, b, dim, wide);
                widen_row(dy, 0, b, dim, d);
                float scale = inverse_rms(wide, eps, dim), sum = 0;
                if (d_weight)
                    for (int64_t i = 0; i < dim; i++) d_weight[i] += d[i] * wide[i] * scale;
#pragma omp simd reduction(+ : sum)
                for (int64_t i = 0; i < dim; i++) sum += d[i] * weight[i] * wide[i];
                float shift = sum / (float)dim * scale * scale * scale;
                for (int64_t i = 0; i < dim; i++) d[i] = d[i] * weight[i] * scale - wide[i] * shift;
                if (is_wide)
                    memcpy((float *)dx + b * dim, d, dim * sizeof *d);
                else
                    for (int64_t i = 0; i < dim; i++) ((uint16_t *)dx)[b * dim + i] = rounded(d[i]);
            }
        }
        if (sums)
#pragma omp for schedule(static)
            for (int64_t i = 0; i < dim; i++)
                for (int64_t part = 1; part < parts; part++) sums[i] += sums[part * dim + i];
    }
}

INLINE float sigmoid(float x) {
    float power = -LOG2_E * x;
    return 1.0f / (1.0f + power_of_two(power > 126.0f ? 126.0f : power));
}

/* y = silu(gates) * ups, over `count` numbers. */
void gate_numbers(const uint16_t *gates, const uint16_t *ups, uint16_t *y, int64_t count) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < count; i++) {
        float gate = from_bf16(gates[i]);
        y[i] = rounded(gate * sigmoid(gate) * from_bf16(ups[i]));
    }
}

void gate_numbers_back(const uint16_t *gates, const uint16_t *ups, const uint16_t *dy,
                       uint16_t *d_gates, uint16_t *d_ups, int64_t count) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < count; i++) {
        float gate = from_bf16(gates[i]), up = from_bf16(ups[i]), d = from_bf16(dy[i]);
        float open = sigmoid(gate);
        d_ups[i] = rounded(d * gate * open);
        d_gates[i] = rounded(d * up * open * (1.0f + gate * (1.0f - open)));
    }
}

/* Of each row of logits (rows, vocab) the loss at its target; the logits become their gradients,
   (softmax - one at the target) * scale. Targets of -100 count for nothing: loss and gradients are 0.
   2, and nothing is written, for a target that is no token. */
int loss_rows(uint16_t *logits, const int64_t *targets, float scale, float *losses, int64_t rows,
              int64_t vocab) {
    for (int64_t b = 0; b < rows; b++)
        if (targets[b] != -100 && (targets[b] < 0 || targets[b] >= vocab)) return 2;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < rows; b++) {
        uint16_t *x = logits + b * vocab;
        if (targets[b] == -100) {
            memset(x, 0, vocab * sizeof *x);
            losses[b] = 0;
            continue;
        }
        float most = -INFINITY, sum = 0, at_target = from_bf16(x[targets[b]]);
#pragma omp simd reduction(max : most)
        for (int64_t i = 0; i < vocab; i++) most = from_bf16(x[i]) > most ? from_bf16(x[i]) : most;
        float shift = most * LOG2_E;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < vocab; i++) sum += power_of_two(from_bf16(x[i]) * LOG2_E - shift);
        float share = scale / sum;
#pragma omp simd
        for (int64_t i = 0; i < vocab; i++)
            x[i] = rounded(power_of_two(from_bf16(x[i]) * LOG2_E - shift) * share);
        float weight = power_of_two(at_target * LOG2_E - shift) / sum;
        x[targets[b]] = rounded((weight - 1.0f) * scale);
        losses[b] = logf(sum) + (most - at_target);
    }
    return 0;
}

/* Norm, gate and loss of training, and their gradients, each in one pass over memory. Sums are float32.
   A row's result depends neither on other rows nor on the number of threads. */

#include "element_types.h"

enum { MAX_USES = 3 };

/* The norm of x + branch, (rows, dim). A gradient that is NULL is zero, or is not computed.
   training_ops.py has the same structure. */
typedef struct {
    int64_t rows, dim, is_float; /* is_float: x, sum and their gradients are float32, else elements */
    double eps;
    const float *weight;
    const void *x;
    const element *branch;
    void *sum; /* x + branch, or x without one: the backward pass reads only this */
    element *y;
    const element *dy[MAX_USES]; /* of each use of y */
    const void *d_sum;
    void *dx;
    element *d_branch;
    float *d_weight; /* (partial_sums, dim): of consecutive rows each; the total ends in the first */
    int64_t partial_sums;
} norm_pass;

/* Row b in float32: in place, or converted to `space`. */
INLINE const float *float_row(const void *x, int64_t is_float, int64_t b, int64_t dim, float *space) {
    if (is_float) return (const float *)x + b * dim;
    for (int64_t i = 0; i < dim; i++) space[i] = to_float(((const element *)x)[b * dim + i]);
    return space;
}

INLINE void store_row(const float *x, int64_t is_float, int64_t b, int64_t dim, void *y) {
    if (is_float)
        memcpy((float *)y + b * dim, x, dim * sizeof *x);
    else
        for (int64_t i = 0; i < dim; i++) ((element *)y)[b * dim + i] = from_float(x[i]);
}

INLINE float inverse_rms(const float *x, double eps, int64_t dim) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < dim; i++) sum += x[i] * x[i];
    return 1.0f / sqrtf(sum / (float)dim + (float)eps);
}

/* sum = x + branch, y = sum / rms(sum) * weight. */
void NAMED(rms_norm_forward)(const norm_pass *p) {
    const int64_t dim = p->dim;
#pragma omp parallel
    {
        float space[dim];
#pragma omp for schedule(static)
        for (int64_t b = 0; b < p->rows; b++) {
            const float *x = float_row(p->x, p->is_float, b, dim, space);
            if (p->branch) {
                const element *branch = p->branch + b * dim;
                for (int64_t i = 0; i < dim; i++) space[i] = x[i] + to_float(branch[i]);
                store_row(space, p->is_float, b, dim, p->sum);
                x = float_row(p->sum, p->is_float, b, dim, space);
            }
            const float scale = inverse_rms(x, p->eps, dim);
            element *y = p->y + b * dim;
            for (int64_t i = 0; i < dim; i++) y[i] = from_float(x[i] * scale * p->weight[i]);
        }
    }
}

/* With x the sum and r = 1 / rms(x):

       dx = r (dy weight - x r^2 mean(dy weight x)) + d_sum      d_weight = sum over rows of dy x r */
INLINE void rms_norm_row_backward(const norm_pass *p, int64_t b, float *space, float *d,
                                  float *d_weight) {
    const int64_t dim = p->dim;
    const float *x = float_row(p->sum, p->is_float, b, dim, space), *weight = p->weight;
    const float scale = inverse_rms(x, p->eps, dim);
    memset(d, 0, dim * sizeof *d);
    for (int use = 0; use < MAX_USES; use++)
        if (p->dy[use])
            for (int64_t i = 0; i < dim; i++) d[i] += to_float(p->dy[use][b * dim + i]);
    if (d_weight)
        for (int64_t i = 0; i < dim; i++) d_weight[i] += d[i] * x[i] * scale;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < dim; i++) sum += d[i] * weight[i] * x[i];
    const float shift = sum / (float)dim * scale * scale * scale;
    for (int64_t i = 0; i < dim; i++) d[i] = d[i] * weight[i] * scale - x[i] * shift;
    if (p->d_sum) {
        const float *added = float_row(p->d_sum, p->is_float, b, dim, space);
        for (int64_t i = 0; i < dim; i++) d[i] += added[i];
    }
    store_row(d, p->is_float, b, dim, p->dx);
    if (p->d_branch) store_row(d, 0, b, dim, p->d_branch);
}

void NAMED(rms_norm_backward)(const norm_pass *p) {
    const int64_t dim = p->dim, partial_sums = p->partial_sums;
#pragma omp parallel
    {
        float space[dim], d[dim];
#pragma omp for schedule(static)
        for (int64_t i_sum = 0; i_sum < partial_sums; i_sum++) {
            float *d_weight = p->d_weight ? p->d_weight + i_sum * dim : NULL;
            if (d_weight) memset(d_weight, 0, dim * sizeof *d_weight);
            for (int64_t b = i_sum * p->rows / partial_sums; b < (i_sum + 1) * p->rows / partial_sums;
                 b++)
                rms_norm_row_backward(p, b, space, d, d_weight);
        }
        if (p->d_weight)
#pragma omp for schedule(static)
            for (int64_t i = 0; i < dim; i++)
                for (int64_t i_sum = 1; i_sum < partial_sums; i_sum++)
                    p->d_weight[i] += p->d_weight[i_sum * dim + i];
    }
}

INLINE float sigmoid(float x) {
    const float power = fast_exp2(-LOG2_E * fabsf(x)), larger = 1.0f / (1.0f + power);
    return x < 0 ? power * larger : larger;
}

/* y = silu(gates) * ups, over `count` numbers. */
void NAMED(silu_mul_forward)(const element *gates, const element *ups, element *y, int64_t count) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < count; i++) {
        float gate = to_float(gates[i]);
        y[i] = from_float(gate * sigmoid(gate) * to_float(ups[i]));
    }
}

void NAMED(silu_mul_backward)(const element *gates, const element *ups, const element *dy,
                              element *d_gates, element *d_ups, int64_t count) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < count; i++) {
        float gate = to_float(gates[i]), up = to_float(ups[i]), d = to_float(dy[i]);
        float open = sigmoid(gate);
        d_ups[i] = from_float(d * gate * open);
        d_gates[i] = from_float(d * up * open * (1.0f + gate * (1.0f - open)));
    }
}

/* The loss of each row of logits (rows, vocab); the logits become their gradients, (softmax - one_hot)
   * scale. Rows with target -100 are ignored: loss and gradients are 0. Returns 2, and writes nothing,
   for a target that is no token. */
int NAMED(cross_entropy)(element *logits, const int64_t *targets, float scale, float *losses,
                         int64_t rows, int64_t vocab) {
    for (int64_t b = 0; b < rows; b++)
        if (targets[b] != -100 && (targets[b] < 0 || targets[b] >= vocab)) return 2;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < rows; b++) {
        element *x = logits + b * vocab;
        if (targets[b] == -100) {
            memset(x, 0, vocab * sizeof *x);
            losses[b] = 0;
            continue;
        }
        float max_logit = -INFINITY, sum = 0, at_target = to_float(x[targets[b]]);
#pragma omp simd reduction(max : max_logit)
        for (int64_t i = 0; i < vocab; i++)
            max_logit = to_float(x[i]) > max_logit ? to_float(x[i]) : max_logit;
        float shift = max_logit * LOG2_E;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < vocab; i++) sum += fast_exp2(to_float(x[i]) * LOG2_E - shift);
        float share = scale / sum;
#pragma omp simd
        for (int64_t i = 0; i < vocab; i++)
            x[i] = from_float(fast_exp2(to_float(x[i]) * LOG2_E - shift) * share);
        float weight = fast_exp2(at_target * LOG2_E - shift) / sum;
        x[targets[b]] = from_float((weight - 1.0f) * scale);
        losses[b] = logf(sum) + (max_logit - at_target);
    }
    return 0;
}

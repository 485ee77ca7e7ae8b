/* Attention within packed documents, and its gradients, for training.

   As in flash attention (Dao et al., 2022) no matrix of all scores is kept: queries and keys of a
   document are multiplied in blocks, and the backward pass recomputes the scores. Blocks are
   transposed, keys down and queries across, so that the largest score and the sum of exponentials of a
   query are a lane of a vector. With scores S, weights W = softmax(S), gradients d and transposes ':

       S' = K Q'   Y' = V' W'      dW' = V dY'   dQ' = K' dS'   dK = dS' Q   dV = W' dY

   One thread computes all of a document and a KV head, always in the same order, so that results do not
   depend on the number of threads. */

#include "block_matmul.h"

#include <stdlib.h>

enum { MAX_HEAD_DIM = 128 };
enum { PREFETCH_ROWS = 16 }; /* how many rows ahead of use */
#define MASKED -1e30f        /* the score of a key after its query */

/* training_ops.py has the same structure. */
typedef struct {
    int64_t batch, seq, heads, kv_heads, head_dim;
    const int64_t *positions; /* (batch, seq), 0 where a document begins; NULL: each row is one */
    const float *freqs_cis;   /* ([batch,] seq, head_dim / 2, 2): cosine, sine */
    int64_t freqs_cis_stride; /* floats from one row of the batch to the next */
    const element *q, *k, *v; /* (batch, seq, heads or kv_heads, head_dim), before rotation */
    element *y;
    float *sums; /* (heads, batch, seq), base 2: log2(sum of exp(scores)) */
    const element *dy;
    element *dq, *dk, *dv;
} attention_pass;

typedef struct {
    int64_t first, length; /* in tokens of the whole batch */
    const float *freqs_cis;
} document;

#define BY_DIM [BLOCK * MAX_HEAD_DIM] __attribute__((aligned(64)))
#define BY_BLOCK [BLOCK * BLOCK] __attribute__((aligned(64)))
#define OF_QUERIES [BLOCK] __attribute__((aligned(64)))

/* A thread's memory. Keys and values of a document and KV head are (length, head_dim). For each block
   `kv_transposed` has (head_dim, BLOCK): values, or in the backward pass keys. */
typedef struct {
    number *keys, *values, *kv_transposed;
    float *d_keys, *d_values;
    number q_rows BY_DIM, dy_rows BY_DIM; /* of a block of queries; transposed; as `b` of products */
    number q_across BY_DIM, dy_across BY_DIM, q_down BY_DIM, dy_down BY_DIM;
    float scores BY_BLOCK, d_weights BY_BLOCK;
    number as_a BY_BLOCK, as_b BY_BLOCK;
    float sums_across BY_DIM, sums BY_DIM;
    float max_score OF_QUERIES, sum_exp OF_QUERIES, rescale OF_QUERIES;
} workspace;

INLINE int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

static workspace *new_workspace(int64_t longest, int64_t head_dim) {
    const int64_t size = round_up(longest, BLOCK) * head_dim;
    workspace *w = aligned_alloc(64, sizeof *w + size * (3 * sizeof(number) + 2 * sizeof(float)));
    if (!w) return NULL;
    w->d_keys = (float *)(w + 1);
    w->d_values = w->d_keys + size;
    w->keys = (number *)(w->d_values + size);
    w->values = w->keys + size;
    w->kv_transposed = w->values + size;
    return w;
}

/* Rotates pairs of neighbours, 32 bits in bfloat16, by the angles of freqs_cis. */
INLINE void rotate(const element *x, const float *freqs_cis, int64_t head_dim, number *y) {
#pragma omp simd
    for (int64_t j = 0; j < head_dim / 2; j++) {
        float even, odd, c = freqs_cis[2 * j], s = freqs_cis[2 * j + 1];
#ifdef IN_FLOAT32
        even = x[2 * j];
        odd = x[2 * j + 1];
#else
        uint32_t pair, low, high;
        memcpy(&pair, x + 2 * j, 4);
        low = pair << 16;
        high = pair & 0xffff0000;
        memcpy(&even, &low, 4);
        memcpy(&odd, &high, 4);
#endif
#if WORD == 2
        pair = to_bf16(even * c - odd * s) | (uint32_t)to_bf16(even * s + odd * c) << 16;
        memcpy(y + 2 * j, &pair, 4);
#else
        y[2 * j] = even * c - odd * s;
        y[2 * j + 1] = even * s + odd * c;
#endif
    }
}

INLINE void copy_row(const element *x, int64_t head_dim, number *y) {
#if WORD == 2 || defined(IN_FLOAT32)
    memcpy(y, x, head_dim * sizeof *y);
#else
    for (int64_t d = 0; d < head_dim; d += 16) store(y + d, load_bf16(x + d));
#endif
}

INLINE void prefetch(const element *row, int64_t head_dim) {
    for (int64_t d = 0; d < head_dim; d += 64 / sizeof *row) __builtin_prefetch(row + d);
}

/* Rows of x to (rows, head_dim), rotated unless freqs_cis is NULL, with zeros to a multiple of 16. */
static void load_rows(const element *x, int64_t x_row, const float *freqs_cis, int64_t rows,
                      int64_t head_dim, number *y) {
    memset(y + rows * head_dim, 0, (round_up(rows, 16) - rows) * head_dim * sizeof *y);
    for (int64_t r = 0; r < rows; r++, x += x_row, y += head_dim) {
        prefetch(x + PREFETCH_ROWS * x_row, head_dim);
        if (freqs_cis)
            rotate(x, freqs_cis + r * head_dim, head_dim, y);
        else
            copy_row(x, head_dim, y);
    }
}

INLINE void rotate_back(const float *x, float scale, const float *freqs_cis, int64_t head_dim,
                        element *y) {
#pragma omp simd
    for (int64_t j = 0; j < head_dim / 2; j++) {
        float even = scale * x[2 * j], odd = scale * x[2 * j + 1], c = freqs_cis[2 * j],
              s = freqs_cis[2 * j + 1];
        y[2 * j] = from_float(even * c + odd * s);
        y[2 * j + 1] = from_float(odd * c - even * s);
    }
}

INLINE void store_scaled(const float *x, float scale, int64_t head_dim, element *y) {
#pragma omp simd
    for (int64_t d = 0; d < head_dim; d++) y[d] = from_float(scale * x[d]);
}

static void mask_future(float *scores, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < min_int(r, columns); c++) scores[r * BLOCK + c] = MASKED;
}

/* Scores of a block to weights exp(score - largest), and the factor for the sums of earlier blocks. */
static void softmax_block(workspace *w, int is_own, int is_first, int64_t rows, int64_t columns,
                          int64_t head_dim) {
    const float scale = LOG2_E / sqrtf((float)head_dim);
    for (int64_t c = 0; c < columns; c += 16) {
        const int64_t end = rows_in(is_own, c, rows);
        float max_score[16], sum_exp[16] = {0}, *scores = w->scores + c;
        for (int i = 0; i < 16; i++) max_score[i] = scores[i];
        for (int64_t r = 0; r < end; r += 4) /* by four: max_score is in memory, not in a register */
#pragma omp simd
            for (int i = 0; i < 16; i++) {
                const float *x = scores + r * BLOCK + i;
                float a = x[0] > x[BLOCK] ? x[0] : x[BLOCK];
                float b = x[2 * BLOCK] > x[3 * BLOCK] ? x[2 * BLOCK] : x[3 * BLOCK];
                float larger = a > b ? a : b;
                max_score[i] = larger > max_score[i] ? larger : max_score[i];
            }
#pragma omp simd
        for (int i = 0; i < 16; i++) {
            const float before = w->max_score[c + i];
            max_score[i] *= scale;
            if (!is_first) max_score[i] = before > max_score[i] ? before : max_score[i];
            w->max_score[c + i] = max_score[i];
            w->rescale[c + i] = is_first ? 0 : fast_exp2(before - max_score[i]);
        }
        for (int64_t r = 0; r < end; r += 2)
#pragma omp simd
            for (int i = 0; i < 16; i++) {
                float *x = scores + r * BLOCK + i;
                x[0] = fast_exp2(x[0] * scale - max_score[i]);
                x[BLOCK] = fast_exp2(x[BLOCK] * scale - max_score[i]);
                sum_exp[i] += x[0] + x[BLOCK];
            }
        for (int i = 0; i < 16; i++)
            w->sum_exp[c + i] =
                is_first ? sum_exp[i] : w->sum_exp[c + i] * w->rescale[c + i] + sum_exp[i];
    }
    if (!is_first)
        for (int64_t d = 0; d < head_dim; d++)
            for (int64_t c = 0; c < columns; c++) w->sums_across[d * BLOCK + c] *= w->rescale[c];
}

/* The same for recomputed scores; gradients of weights become those of scores. */
static void softmax_block_backward(workspace *w, int is_own, int64_t rows, int64_t columns,
                                   int64_t head_dim) {
    const float scale = LOG2_E / sqrtf((float)head_dim);
    for (int64_t c = 0; c < columns; c += 16)
        for (int64_t r = 0; r < rows_in(is_own, c, rows); r++)
#pragma omp simd
            for (int64_t i = c; i < c + 16; i++) {
                float *score = w->scores + r * BLOCK + i, *d = w->d_weights + r * BLOCK + i;
                *score = fast_exp2(*score * scale - w->max_score[i]);
                *d = *score * (*d - w->sum_exp[i]);
            }
}

/* A document's keys, rotated, its values, and the transposed ones. */
static void load_kv(const attention_pass *p, const document *doc, int64_t kv_head, workspace *w) {
    const int64_t hd = p->head_dim, row = p->kv_heads * hd;
    for (int64_t b = 0; b < doc->length; b += BLOCK) {
        const int64_t count = min_int(doc->length - b, BLOCK), rows = round_up(count, 16);
        const int64_t from = (doc->first + b) * row + kv_head * hd;
        number *keys = w->keys + b * hd, *values = w->values + b * hd;
        load_rows(p->k + from, row, doc->freqs_cis + b * hd, count, hd, keys);
        load_rows(p->v + from, row, NULL, count, hd, values);
        const number *down = rows_as_b(p->dy ? keys : values, rows, hd, w->q_down);
        transpose(down, hd, w->kv_transposed + b * hd, BLOCK / WORD, rows / WORD, hd);
    }
}

/* Attention of the block of a document's queries that begins at its token `first`. */
static void attend_block(const attention_pass *p, const document *doc, int64_t head, int64_t first,
                         workspace *w) {
    const int64_t hd = p->head_dim, row = p->heads * hd, token = doc->first + first;
    const int64_t count = min_int(doc->length - first, BLOCK), columns = round_up(count, 16);
    const int64_t from = token * row + head * hd;
    load_rows(p->q + from, row, doc->freqs_cis + first * hd, count, hd, w->q_rows);
    transpose(w->q_rows, hd / WORD, w->q_across, BLOCK, columns, hd / WORD);
    for (int64_t b = 0; b <= first; b += BLOCK) {
        const int is_own = b == first, is_first = b == 0;
        const int64_t rows = is_own ? columns : BLOCK;
        multiply(is_own ? SCORES : ALL, 1, w->scores, BLOCK, w->keys + b * hd, hd, w->q_across, BLOCK,
                 rows, columns, hd);
        if (is_own) mask_future(w->scores, rows, columns);
        softmax_block(w, is_own, is_first, rows, columns, hd);
        const number *weights = block_as_b(is_own, w->scores, rows, columns, w->as_b);
        multiply(is_own ? FOR_QUERIES : ALL, is_first, w->sums_across, BLOCK,
                 w->kv_transposed + b * hd, BLOCK, weights, BLOCK, hd, columns, rows);
    }
    transpose(w->sums_across, BLOCK, w->sums, hd, hd, columns);
    for (int64_t i = 0; i < count; i++) {
        p->sums[head * p->batch * p->seq + token + i] = w->max_score[i] + log2f(w->sum_exp[i]);
        store_scaled(w->sums + i * hd, 1 / w->sum_exp[i], hd, p->y + from + i * row);
    }
}

/* dY Y': the mean of the gradients of a query's weights, which the gradient of softmax subtracts. */
static float dot_dy_y(const element *dy, const element *y, int64_t head_dim) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < head_dim; d++) sum += to_float(dy[d]) * to_float(y[d]);
    return sum;
}

static void attend_block_backward(const attention_pass *p, const document *doc, int64_t head,
                                  int64_t first, workspace *w) {
    const int64_t hd = p->head_dim, row = p->heads * hd, token = doc->first + first;
    const int64_t count = min_int(doc->length - first, BLOCK), columns = round_up(count, 16);
    const int64_t from = token * row + head * hd;
    const float *freqs_cis = doc->freqs_cis + first * hd;
    load_rows(p->q + from, row, freqs_cis, count, hd, w->q_rows);
    load_rows(p->dy + from, row, NULL, count, hd, w->dy_rows);
    transpose(w->q_rows, hd / WORD, w->q_across, BLOCK, columns, hd / WORD);
    transpose(w->dy_rows, hd / WORD, w->dy_across, BLOCK, columns, hd / WORD);
    const number *q_down = rows_as_b(w->q_rows, columns, hd, w->q_down);
    const number *dy_down = rows_as_b(w->dy_rows, columns, hd, w->dy_down);
    for (int64_t i = 0; i < columns; i++) { /* 0 past the end, as dy is */
        const int64_t at = from + i * row;
        prefetch(p->y + at + PREFETCH_ROWS * row, hd);
        w->sum_exp[i] = i < count ? dot_dy_y(p->dy + at, p->y + at, hd) : 0;
        w->max_score[i] = i < count ? p->sums[head * p->batch * p->seq + token + i] : 0;
    }
    for (int64_t b = 0; b <= first; b += BLOCK) {
        const int is_own = b == first, is_new = is_own && head % (p->heads / p->kv_heads) == 0;
        const int64_t rows = is_own ? columns : BLOCK, at = b * hd;
        const triangle scores = is_own ? SCORES : ALL, for_keys = is_own ? FOR_KEYS : ALL;
        multiply(scores, 1, w->scores, BLOCK, w->keys + at, hd, w->q_across, BLOCK, rows, columns,
                 hd);
        multiply(scores, 1, w->d_weights, BLOCK, w->values + at, hd, w->dy_across, BLOCK, rows,
                 columns, hd);
        if (is_own) mask_future(w->scores, rows, columns);
        softmax_block_backward(w, is_own, rows, columns, hd);
        const number *weights = block_as_a(is_own, w->scores, rows, columns, w->as_a);
        multiply(for_keys, is_new, w->d_values + at, hd, weights, BLOCK, dy_down, hd, rows, hd,
                 columns);
        const number *d_scores = block_as_a(is_own, w->d_weights, rows, columns, w->as_a);
        multiply(for_keys, is_new, w->d_keys + at, hd, d_scores, BLOCK, q_down, hd, rows, hd,
                 columns);
        d_scores = block_as_b(is_own, w->d_weights, rows, columns, w->as_b);
        multiply(is_own ? FOR_QUERIES : ALL, b == 0, w->sums_across, BLOCK, w->kv_transposed + at,
                 BLOCK, d_scores, BLOCK, hd, columns, rows);
    }
    transpose(w->sums_across, BLOCK, w->sums, hd, hd, columns);
    for (int64_t i = 0; i < count; i++)
        rotate_back(w->sums + i * hd, 1 / sqrtf((float)hd), freqs_cis + i * hd, hd,
                    p->dq + from + i * row);
}

static void store_kv_gradients(const attention_pass *p, const document *doc, int64_t kv_head,
                               const workspace *w) {
    const int64_t hd = p->head_dim;
    for (int64_t i = 0; i < doc->length; i++) {
        const int64_t to = ((doc->first + i) * p->kv_heads + kv_head) * hd, at = i * hd;
        rotate_back(w->d_keys + at, 1 / sqrtf((float)hd), doc->freqs_cis + at, hd, p->dk + to);
        store_scaled(w->d_values + at, 1, hd, p->dv + to);
    }
}

static int by_length_descending(const void *a, const void *b) {
    const int64_t x = ((const document *)a)->length, y = ((const document *)b)->length;
    return (x < y) - (x > y);
}

INLINE int starts_document(const attention_pass *p, int64_t token) {
    return token % p->seq == 0 || (p->positions && p->positions[token] == 0);
}

static document *find_documents(const attention_pass *p, int64_t *count) {
    const int64_t tokens = p->batch * p->seq;
    *count = 0;
    for (int64_t i = 0; i < tokens; i++) *count += starts_document(p, i);
    document *found = malloc((*count + 1) * sizeof *found), *last = found;
    if (!found) return NULL;
    for (int64_t i = 0; i < tokens; i++) {
        if (starts_document(p, i)) {
            last += i > 0;
            last->first = i;
            last->length = 0;
            last->freqs_cis =
                p->freqs_cis + i / p->seq * p->freqs_cis_stride + i % p->seq * p->head_dim;
        }
        last->length++;
    }
    qsort(found, *count, sizeof *found, by_length_descending);
    return found;
}

/* Writes y and logsumexp, or with dy the gradients of q, k and v. Returns 1 without memory. */
int NAMED(packed_attention)(const attention_pass *p) {
    const int64_t group = p->heads / p->kv_heads;
    int64_t count;
    int failed = 0;
    document *documents = find_documents(p, &count);
    if (!documents) return 1;
#pragma omp parallel
    {
        workspace *w = new_workspace(documents[0].length, p->head_dim);
        if (!w) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < count * p->kv_heads; i++) {
            const document *doc = documents + i / p->kv_heads;
            const int64_t kv_head = i % p->kv_heads;
            if (!w) continue;
            load_kv(p, doc, kv_head, w);
            for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++)
                for (int64_t first = 0; first < doc->length; first += BLOCK)
                    (p->dy ? attend_block_backward : attend_block)(p, doc, head, first, w);
            if (p->dy) store_kv_gradients(p, doc, kv_head, w);
        }
        free(w);
    }
    free(documents);
    return failed;
}

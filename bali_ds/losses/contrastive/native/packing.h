/* A sweep, its memory, and how features are packed for it. */

#include "products.h"

#define PAIRS 2
#define GAP 8 /* columns between packed panels, lest all of them fall into the same sets of the first-level cache */

typedef struct {
    const void *rows, *columns;                /* [m, d] and [n, d], of unit length, float or bfloat16 */
    const int64_t *row_ids, *column_ids;       /* sorted */
    const float *row_factors, *column_factors; /* of `bali_gradients` */
    double *row_sums, *column_sums;            /* what `bali_sums` adds to; column_sums may be NULL */
    float *row_gradient, *column_gradient;     /* what `bali_gradients` adds to; column_gradient may be NULL */
    float *scratch;                            /* `bali_scratch` floats, at a multiple of 64 bytes */
    int64_t m, n, d, size;                     /* size: rows that stand still, a multiple of 64 */
    float scale, shift;
    int32_t bfloat16; /* whether the features are; PAIRS where they are multiplied so */
    int32_t triangle; /* rows and columns are the same views: the upper half is enough */
    int32_t threads;
} Sweep;

/* The memory of a sweep: packed rows for all threads, the rest for each of them. */
typedef struct {
    float *rows_across, *rows_along;     /* [rows / WIDE][d][WIDE], [d / WIDE][rows][WIDE] */
    float *tile, *columns_along, *lanes; /* [d / WIDE][columns + GAP][WIDE]; sums, 16 a column of a tile */
    uint16_t *edge;                      /* [LOW][d], the last columns of all, with zeros */
    double *sums;                        /* of a tile's rows */
    int64_t all;                         /* floats in all */
} Memory;

static Memory memory_of(const Sweep *s, int64_t thread) {
    int64_t size = s->size, tile = size / 2, wide = up(s->d, WIDE);
    int64_t shared = size * s->d + size * wide;
    int64_t sizes[] = {tile * size, wide * (tile + GAP), 16 * tile, 2 * size, LOW / 2 * wide};
    int64_t own = sizes[0] + sizes[1] + sizes[2] + sizes[3] + sizes[4];
    Memory memory = {.all = shared + own * s->threads};
    if (s->scratch) {
        float *at = s->scratch + shared + own * thread;
        memory.rows_across = s->scratch;
        memory.rows_along = s->scratch + size * s->d;
        memory.tile = at;
        memory.columns_along = at += sizes[0];
        memory.lanes = at += sizes[1];
        memory.sums = (double *)(at += sizes[2]);
        memory.edge = (uint16_t *)(at + sizes[3]);
    }
    return memory;
}

/* Floats of a packed panel of columns. */
static int64_t panel_of(int64_t count) { return (up(count, LOW) + GAP) * WIDE; }

/* The features from element `place` on, at most 16 of them. */
INLINE __m512 load(const Sweep *s, const void *features, int64_t place, int64_t count) {
    if (!s->bfloat16) return _mm512_maskz_loadu_ps(lanes(count), (const float *)features + place);
    __m256i halves = _mm256_maskz_loadu_epi16(lanes(count), (const uint16_t *)features + place);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

/* Pack views first to last - 1 of [all, d], from place `into` on, as [d / WIDE][padded][WIDE]; zeros beyond `all`. */
KERNEL void pack_along(const Sweep *s, float *into, const void *views, int64_t all, int64_t padded, int64_t first,
                       int64_t last) {
    for (int64_t start = 0; start < s->d; start += WIDE)
        for (int64_t view = first; view < last; view++) {
            int64_t count = view < all ? s->d - start : 0, place = view * s->d + start;
            float *to = into + start * padded + (view - first) * WIDE;
            _mm512_store_ps(to, load(s, views, place, count));
            _mm512_store_ps(to + 16, load(s, views, place + 16, count - 16));
        }
}

/* Pack views first to last - 1 of [all, d], both multiples of WIDE, as panels [d][WIDE]; zeros beyond `all`. */
KERNEL void pack_across(const Sweep *s, float *into, const void *views, int64_t all, int64_t first, int64_t last) {
    float lines[WIDE][16];
    for (int64_t start = first; start < last; start += WIDE, into += WIDE * s->d)
        for (int64_t depth = 0; depth < s->d; depth += 16) {
            for (int64_t view = start; view < start + WIDE; view++) {
                int64_t count = view < all ? s->d - depth : 0;
                _mm512_storeu_ps(lines[view - start], load(s, views, view * s->d + depth, count));
            }
            for (int64_t k = 0; k < least(16, s->d - depth); k++)
                for (int64_t view = 0; view < WIDE; view++) into[(depth + k) * WIDE + view] = lines[view][k];
        }
}

/* The same of features in bfloat16, two of a view in each element: panels [d / 2][WIDE], still d * WIDE apart. */
static void pack_pairs(const Sweep *s, float *into, const void *views, int64_t all, int64_t first, int64_t last) {
    for (int64_t start = first; start < last; start += WIDE, into += WIDE * s->d)
        for (int64_t depth = 0; depth < s->d; depth += 32) /* a cache line of each view at a time */
            for (int64_t view = start; view < start + WIDE; view++)
                for (int64_t k = depth; k < least(depth + 32, s->d); k += 2) {
                    float *to = into + k / 2 * WIDE + view - start;
                    *to = 0.0f;
                    if (view < all) memcpy(to, (const uint16_t *)views + view * s->d + k, sizeof *to);
                }
}

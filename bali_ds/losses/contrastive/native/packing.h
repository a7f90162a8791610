/* Arguments and workspace of a pass over all tiles, and the packing of features. */

#include "products.h"

#define BF16_PAIRS 2
#define GAP 8 /* columns between packed panels, so that they do not all map to the same sets of the first-level cache */

/* Arguments of a pass; native_tiles.py has the same fields. */
typedef struct {
    const void *rows, *columns;                /* [m, d] and [n, d], of unit length, float or bfloat16 */
    const int64_t *row_ids, *column_ids;       /* sorted */
    const float *row_factors, *column_factors; /* read by `bali_gradients` */
    double *row_sums, *column_sums;            /* `bali_sums` adds to them; column_sums may be NULL */
    float *row_gradient, *column_gradient;     /* `bali_gradients` adds to them; column_gradient may be NULL */
    float *workspace;                          /* `bali_workspace_floats` floats, at a multiple of 64 bytes */
    int64_t m, n, d, size;                     /* size: rows of a tile, a multiple of 64 */
    float scale, shift;
    int32_t bfloat16;  /* whether features are; BF16_PAIRS if they are also multiplied as such */
    int32_t symmetric; /* rows and columns are the same views, so tiles below the diagonal are skipped */
    int32_t threads;
} Pass;

/* Buffers of a pass: packed rows are shared by all threads, the others belong to one thread. */
typedef struct {
    float *row_panels, *row_feature_panels; /* [rows / NR][d][NR], [d / NR][rows][NR] */
    float *tile;                            /* see kernels.c */
    float *column_feature_panels;           /* [d / NR][columns + GAP][NR] */
    float *lane_sums;                       /* [columns of a tile][16] */
    uint16_t *edge;                         /* [MR][d], the last columns of the block, padded with zeros */
    double *sums;                           /* of a tile's rows */
    int64_t total;                          /* floats in all buffers */
} Workspace;

static Workspace workspace_of(const Pass *s, int64_t thread) {
    int64_t size = s->size, tile = size / 2, wide = round_up(s->d, NR);
    int64_t shared = size * s->d + size * wide;
    int64_t sizes[] = {tile * size, wide * (tile + GAP), 16 * tile, 2 * size, MR / 2 * wide};
    int64_t own = sizes[0] + sizes[1] + sizes[2] + sizes[3] + sizes[4];
    Workspace workspace = {.total = shared + own * s->threads};
    if (s->workspace) {
        float *at = s->workspace + shared + own * thread;
        workspace.row_panels = s->workspace;
        workspace.row_feature_panels = s->workspace + size * s->d;
        workspace.tile = at;
        workspace.column_feature_panels = at += sizes[0];
        workspace.lane_sums = at += sizes[1];
        workspace.sums = (double *)(at += sizes[2]);
        workspace.edge = (uint16_t *)(at + sizes[3]);
    }
    return workspace;
}

/* Size of a packed panel of columns, in floats. */
static int64_t panel_of(int64_t count) { return (round_up(count, MR) + GAP) * NR; }

/* At most 16 features from element `offset` on, as floats. */
INLINE __m512 load(const Pass *s, const void *features, int64_t offset, int64_t count) {
    if (!s->bfloat16) return _mm512_maskz_loadu_ps(lane_mask(count), (const float *)features + offset);
    __m256i halves = _mm256_maskz_loadu_epi16(lane_mask(count), (const uint16_t *)features + offset);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

/* Pack views first to last - 1 of [all, d] as [d / NR][padded][NR], with zeros for views beyond `all`. */
KERNEL void pack_features(const Pass *s, float *into, const void *views, int64_t all, int64_t padded, int64_t first,
                          int64_t last) {
    for (int64_t start = 0; start < s->d; start += NR)
        for (int64_t view = first; view < last; view++) {
            int64_t count = view < all ? s->d - start : 0, offset = view * s->d + start;
            float *to = into + start * padded + (view - first) * NR;
            _mm512_store_ps(to, load(s, views, offset, count));
            _mm512_store_ps(to + 16, load(s, views, offset + 16, count - 16));
        }
}

/* Pack views first to last - 1 of [all, d], both multiples of NR, as panels [d][NR], with zeros beyond `all`. */
KERNEL void pack_views(const Pass *s, float *into, const void *views, int64_t all, int64_t first, int64_t last) {
    float lines[NR][16];
    for (int64_t start = first; start < last; start += NR, into += NR * s->d)
        for (int64_t depth = 0; depth < s->d; depth += 16) {
            for (int64_t view = start; view < start + NR; view++) {
                int64_t count = view < all ? s->d - depth : 0;
                _mm512_storeu_ps(lines[view - start], load(s, views, view * s->d + depth, count));
            }
            for (int64_t k = 0; k < minimum(16, s->d - depth); k++)
                for (int64_t view = 0; view < NR; view++) into[(depth + k) * NR + view] = lines[view][k];
        }
}

/* The same for bfloat16, two features of a view in each element: panels [d / 2][NR], which start d * NR apart. */
static void pack_pairs(const Pass *s, float *into, const void *views, int64_t all, int64_t first, int64_t last) {
    for (int64_t start = first; start < last; start += NR, into += NR * s->d)
        for (int64_t depth = 0; depth < s->d; depth += 32) /* a cache line of each view at a time */
            for (int64_t view = start; view < start + NR; view++)
                for (int64_t k = depth; k < minimum(depth + 32, s->d); k += 2) {
                    float *to = into + k / 2 * NR + view - start;
                    *to = 0.0f;
                    if (view < all) memcpy(to, (const uint16_t *)views + view * s->d + k, sizeof *to);
                }
}

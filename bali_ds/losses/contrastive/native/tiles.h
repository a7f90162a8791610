/* Computation of one tile, and its products with features. */

#include "packing.h"

#define GROUP 4 /* packed panels that stay in the second-level cache while all left factors are read */

/* The rows of a tile, packed, as one thread sees them: `count` rows from row `first` on, in `panels` panels of NR. */
typedef struct {
    const Pass *pass;
    Workspace workspace;
    int64_t first, count, panels;
} RowBlock;

/* Mask of those of the first `count` of 16 ids that differ from `id`. */
INLINE __mmask16 others(const int64_t *ids, int64_t count, int64_t id) {
    __mmask8 low = (__mmask8)lane_mask(count), high = (__mmask8)lane_mask(count - 8);
    __m512i wanted = _mm512_set1_epi64(id);
    low = _mm512_mask_cmpneq_epi64_mask(low, _mm512_maskz_loadu_epi64(low, ids), wanted);
    high = _mm512_mask_cmpneq_epi64_mask(high, _mm512_maskz_loadu_epi64(high, ids + 8), wanted);
    return low | (__mmask16)(high << 8);
}

/* Mask of the rows of a panel that are negatives of a column. */
INLINE void negatives(__mmask16 mask[2], const RowBlock *at, int64_t panel, int64_t column) {
    const int64_t *ids = at->pass->row_ids + at->first + panel * NR, id = at->pass->column_ids[column];
    int64_t count = at->count - panel * NR;
    if (count >= NR && (id < ids[0] || id > ids[NR - 1])) {
        mask[0] = mask[1] = 0xffff;
    } else {
        mask[0] = others(ids, count, id);
        mask[1] = others(ids + 16, count - 16, id);
    }
}

/* Multiply exponentials by the sum of the factors of their row and column. */
INLINE void apply_factors(__m512 values[2], const RowBlock *at, int64_t panel, int64_t column) {
    const float *factors = at->pass->row_factors + at->first + panel * NR;
    int64_t count = at->count - panel * NR;
    __m512 own = _mm512_set1_ps(at->pass->column_factors[column]);
    __m512 low = _mm512_maskz_loadu_ps(lane_mask(count), factors);
    __m512 high = _mm512_maskz_loadu_ps(lane_mask(count - 16), factors + 16);
    values[0] = _mm512_mul_ps(values[0], _mm512_add_ps(own, low));
    values[1] = _mm512_mul_ps(values[1], _mm512_add_ps(own, high));
}

/* Add 16 floats to 16 doubles. */
INLINE void add_doubles(double *into, __m512 values) {
    __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(values), 1));
    _mm512_storeu_pd(into, _mm512_add_pd(_mm512_loadu_pd(into), _mm512_cvtps_pd(_mm512_castps512_ps256(values))));
    _mm512_storeu_pd(into + 8, _mm512_add_pd(_mm512_loadu_pd(into + 8), _mm512_cvtps_pd(high)));
}

/* Whether columns up to `last` of `count` can be read from the features, without packing. */
static int usable_unpacked(const Pass *s, int64_t last, int64_t count) { return !s->bfloat16 && last <= count; }

/* One micro-tile: with `sums` its exponentials, whose sums are added to those of the workspace, else its derivatives.
They are written to `tile` unless that is NULL. */
INLINE void compute_micro_tile(const RowBlock *at, float *tile, int64_t begin, int64_t column, int64_t count,
                               int64_t panel, int sums) {
    const Pass *s = at->pass;
    __m512 scale = _mm512_set1_ps(s->scale), shift = _mm512_set1_ps(s->shift), by_row[2], values[MR][2];
    by_row[0] = by_row[1] = _mm512_setzero_ps();
    const float *right = at->workspace.row_panels + panel * s->d * NR;
    int64_t offset = (begin + column) * s->d;
    if (s->bfloat16 == BF16_PAIRS) {
        const uint16_t *left = column + MR > count ? at->workspace.edge : (const uint16_t *)s->columns + offset;
        product_of_pairs(values, left, right, s->d);
    } else if (usable_unpacked(s, column + MR, count)) /* denser in memory than packed columns */
        product(values, (const float *)s->columns + offset, right, s->d, NR, NR, 1, s->d);
    else
        product(values, at->workspace.column_feature_panels + column * NR, right, s->d, NR, panel_of(count), 1, NR);
    FOR_MR {
        __mmask16 mask[2] = {0, 0};
        if (column + i < count) negatives(mask, at, panel, begin + column + i);
        for (int half = 0; half < 2; half++) {
            __m512 power = _mm512_fmsub_ps(values[i][half], scale, shift);
            values[i][half] = _mm512_maskz_mov_ps(mask[half], exponential(power));
        }
        if (!sums && column + i < count) apply_factors(values[i], at, panel, begin + column + i);
        if (tile) {
            _mm512_store_ps(tile + i * NR, values[i][0]);
            _mm512_store_ps(tile + i * NR + 16, values[i][1]);
        }
        if (sums) {
            float *lane = at->workspace.lane_sums + (column + i) * 16;
            by_row[0] = _mm512_add_ps(by_row[0], values[i][0]);
            by_row[1] = _mm512_add_ps(by_row[1], values[i][1]);
            _mm512_store_ps(lane, _mm512_add_ps(_mm512_load_ps(lane), _mm512_add_ps(values[i][0], values[i][1])));
        }
    }
    if (sums) {
        add_doubles(at->workspace.sums + panel * NR, by_row[0]);
        add_doubles(at->workspace.sums + panel * NR + 16, by_row[1]);
    }
}

/* The tile of all rows and of columns begin to begin + count - 1. */
KERNEL void compute_tile(const RowBlock *at, float *tile, int64_t begin, int64_t count, int sums) {
    const Pass *s = at->pass;
    if (s->bfloat16 == BF16_PAIRS && count % MR) {
        int64_t bytes = s->d * sizeof(uint16_t), left = count % MR;
        memset(at->workspace.edge, 0, MR * bytes);
        memcpy(at->workspace.edge, (const uint16_t *)s->columns + (begin + count - left) * s->d, left * bytes);
    }
    for (int64_t group = 0; group < at->panels; group += GROUP)
        for (int64_t column = 0; column < count; column += MR)
            for (int64_t panel = group; panel < minimum(group + GROUP, at->panels); panel++) {
                float *block = tile ? tile + column * at->panels * NR + panel * MICRO_TILE : NULL;
                if (sums)
                    compute_micro_tile(at, block, begin, column, count, panel, 1);
                else
                    compute_micro_tile(at, block, begin, column, count, panel, 0);
            }
}

/* Add a micro-tile to rows of [rows, d], at features start to start + NR - 1. */
INLINE void add_micro_tile(float *into, int64_t rows, int64_t d, int64_t start, __m512 values[MR][2]) {
    __mmask16 low = lane_mask(d - start), high = lane_mask(d - start - 16);
    FOR_MR if (i < rows) {
        float *at = into + i * d + start;
        _mm512_mask_storeu_ps(at, low, _mm512_add_ps(_mm512_maskz_loadu_ps(low, at), values[i][0]));
        _mm512_mask_storeu_ps(at + 16, high, _mm512_add_ps(_mm512_maskz_loadu_ps(high, at + 16), values[i][1]));
    }
}

/* into [count, d] += tile x rows. */
KERNEL void add_to_columns(const RowBlock *at, const float *tile, float *into, int64_t count) {
    int64_t d = at->pass->d, padded = at->panels * NR;
    for (int64_t group = 0; group < d; group += GROUP * NR)
        for (int64_t column = 0; column < count; column += MR)
            for (int64_t start = group; start < minimum(group + GROUP * NR, d); start += NR) {
                __m512 values[MR][2];
                const float *right = at->workspace.row_feature_panels + start * padded;
                product(values, tile + column * padded, right, padded, NR, MICRO_TILE, 1, NR);
                add_micro_tile(into + column * d, count - column, d, start, values);
            }
}

/* into [rows, d] += transposed tile x columns, for rows first to last - 1. */
KERNEL void add_to_rows(const RowBlock *at, const float *tile, const float *along, float *into, int64_t count,
                        int64_t first, int64_t last) {
    int64_t d = at->pass->d, padded = round_up(count, MR);
    for (int64_t group = 0; group < d; group += GROUP * NR)
        for (int64_t row = first; row < last; row += MR)
            for (int64_t start = group; start < minimum(group + GROUP * NR, d); start += NR) {
                __m512 values[MR][2];
                const float *left = tile + row / NR * MICRO_TILE + row % NR;
                const float *right = along + start / NR * panel_of(count);
                product(values, left, right, padded, MR, at->panels * MICRO_TILE, NR, 1);
                add_micro_tile(into + row * d, at->count - row, d, start, values);
            }
}

/* One tile: made, turned into derivatives, multiplied into gradients. */

#include "packing.h"

#define GROUP 4 /* packed panels that stay in the second-level cache while all left factors pass by */

/* Rows that stand still, and the thread that looks at them. */
typedef struct {
    const Sweep *sweep;
    Memory memory;
    int64_t first, count, panels;
} Station;

/* Of 16 sorted ids, of which `count` exist, those that exist and are not `id`. */
INLINE __mmask16 others(const int64_t *ids, int64_t count, int64_t id) {
    __mmask8 low = (__mmask8)lanes(count), high = (__mmask8)lanes(count - 8);
    __m512i wanted = _mm512_set1_epi64(id);
    low = _mm512_mask_cmpneq_epi64_mask(low, _mm512_maskz_loadu_epi64(low, ids), wanted);
    high = _mm512_mask_cmpneq_epi64_mask(high, _mm512_maskz_loadu_epi64(high, ids + 8), wanted);
    return low | (__mmask16)(high << 8);
}

/* Which rows of a panel are negatives of a column. */
INLINE void negatives(__mmask16 mask[2], const Station *at, int64_t panel, int64_t column) {
    const int64_t *ids = at->sweep->row_ids + at->first + panel * WIDE, id = at->sweep->column_ids[column];
    int64_t count = at->count - panel * WIDE;
    if (count >= WIDE && (id < ids[0] || id > ids[WIDE - 1])) {
        mask[0] = mask[1] = 0xffff;
    } else {
        mask[0] = others(ids, count, id);
        mask[1] = others(ids + 16, count - 16, id);
    }
}

/* Multiply exponentials by the sum of their row's and their column's factor. */
INLINE void weigh(__m512 values[2], const Station *at, int64_t panel, int64_t column) {
    const float *factors = at->sweep->row_factors + at->first + panel * WIDE;
    int64_t count = at->count - panel * WIDE;
    __m512 own = _mm512_set1_ps(at->sweep->column_factors[column]);
    values[0] = _mm512_mul_ps(values[0], _mm512_add_ps(own, _mm512_maskz_loadu_ps(lanes(count), factors)));
    values[1] = _mm512_mul_ps(values[1], _mm512_add_ps(own, _mm512_maskz_loadu_ps(lanes(count - 16), factors + 16)));
}

INLINE void add_doubles(double *into, __m512 values) {
    __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(values), 1));
    _mm512_storeu_pd(into, _mm512_add_pd(_mm512_loadu_pd(into), _mm512_cvtps_pd(_mm512_castps512_ps256(values))));
    _mm512_storeu_pd(into + 8, _mm512_add_pd(_mm512_loadu_pd(into + 8), _mm512_cvtps_pd(high)));
}

/* Whether columns up to `last` of `count` can be multiplied where they are. */
static int as_given(const Sweep *s, int64_t last, int64_t count) { return !s->bfloat16 && last <= count; }

/* One block: exponentials, whose sums are added to the memory's, or without `sums` derivatives; `tile` is where they go
or NULL. */
INLINE void make_block(const Station *at, float *tile, int64_t begin, int64_t column, int64_t count, int64_t panel,
                       int sums) {
    const Sweep *s = at->sweep;
    __m512 scale = _mm512_set1_ps(s->scale), shift = _mm512_set1_ps(s->shift), by_row[2], values[LOW][2];
    by_row[0] = by_row[1] = _mm512_setzero_ps();
    const float *right = at->memory.rows_across + panel * s->d * WIDE;
    int64_t place = (begin + column) * s->d;
    if (s->bfloat16 == PAIRS) {
        const uint16_t *left = column + LOW > count ? at->memory.edge : (const uint16_t *)s->columns + place;
        product_of_pairs(values, left, right, s->d);
    } else if (as_given(s, column + LOW, count)) /* their own memory is denser than the packed */
        product(values, (const float *)s->columns + place, right, s->d, WIDE, WIDE, 1, s->d);
    else
        product(values, at->memory.columns_along + column * WIDE, right, s->d, WIDE, panel_of(count), 1, WIDE);
    EACH_LOW {
        __mmask16 mask[2] = {0, 0};
        if (column + i < count) negatives(mask, at, panel, begin + column + i);
        for (int half = 0; half < 2; half++) {
            __m512 power = _mm512_fmsub_ps(values[i][half], scale, shift);
            values[i][half] = _mm512_maskz_mov_ps(mask[half], exponential(power));
        }
        if (!sums && column + i < count) weigh(values[i], at, panel, begin + column + i);
        if (tile) {
            _mm512_store_ps(tile + i * WIDE, values[i][0]);
            _mm512_store_ps(tile + i * WIDE + 16, values[i][1]);
        }
        if (sums) {
            float *lane = at->memory.lanes + (column + i) * 16;
            by_row[0] = _mm512_add_ps(by_row[0], values[i][0]);
            by_row[1] = _mm512_add_ps(by_row[1], values[i][1]);
            _mm512_store_ps(lane, _mm512_add_ps(_mm512_load_ps(lane), _mm512_add_ps(values[i][0], values[i][1])));
        }
    }
    if (sums) {
        add_doubles(at->memory.sums + panel * WIDE, by_row[0]);
        add_doubles(at->memory.sums + panel * WIDE + 16, by_row[1]);
    }
}

/* The tile of columns begin to begin + count - 1. */
KERNEL void make_tile(const Station *at, float *tile, int64_t begin, int64_t count, int sums) {
    const Sweep *s = at->sweep;
    if (s->bfloat16 == PAIRS && count % LOW) {
        int64_t bytes = s->d * sizeof(uint16_t), left = count % LOW;
        memset(at->memory.edge, 0, LOW * bytes);
        memcpy(at->memory.edge, (const uint16_t *)s->columns + (begin + count - left) * s->d, left * bytes);
    }
    for (int64_t group = 0; group < at->panels; group += GROUP)
        for (int64_t column = 0; column < count; column += LOW)
            for (int64_t panel = group; panel < least(group + GROUP, at->panels); panel++) {
                float *block = tile ? tile + column * at->panels * WIDE + panel * BLOCK : NULL;
                if (sums)
                    make_block(at, block, begin, column, count, panel, 1);
                else
                    make_block(at, block, begin, column, count, panel, 0);
            }
}

INLINE void add_block(float *into, int64_t rows, int64_t d, int64_t start, __m512 values[LOW][2]) {
    __mmask16 low = lanes(d - start), high = lanes(d - start - 16);
    EACH_LOW if (i < rows) {
        float *at = into + i * d + start;
        _mm512_mask_storeu_ps(at, low, _mm512_add_ps(_mm512_maskz_loadu_ps(low, at), values[i][0]));
        _mm512_mask_storeu_ps(at + 16, high, _mm512_add_ps(_mm512_maskz_loadu_ps(high, at + 16), values[i][1]));
    }
}

/* into [count, d] += tile x rows that stand still. */
KERNEL void add_to_columns(const Station *at, const float *tile, float *into, int64_t count) {
    int64_t d = at->sweep->d, padded = at->panels * WIDE;
    for (int64_t group = 0; group < d; group += GROUP * WIDE)
        for (int64_t column = 0; column < count; column += LOW)
            for (int64_t start = group; start < least(group + GROUP * WIDE, d); start += WIDE) {
                __m512 values[LOW][2];
                const float *right = at->memory.rows_along + start * padded;
                product(values, tile + column * padded, right, padded, WIDE, BLOCK, 1, WIDE);
                add_block(into + column * d, count - column, d, start, values);
            }
}

/* into [rows, d] += tile, transposed, x columns, for rows first to last - 1. */
KERNEL void add_to_rows(const Station *at, const float *tile, const float *along, float *into, int64_t count,
                        int64_t first, int64_t last) {
    int64_t d = at->sweep->d, padded = up(count, LOW);
    for (int64_t group = 0; group < d; group += GROUP * WIDE)
        for (int64_t row = first; row < last; row += LOW)
            for (int64_t start = group; start < least(group + GROUP * WIDE, d); start += WIDE) {
                __m512 values[LOW][2];
                const float *left = tile + row / WIDE * BLOCK + row % WIDE;
                const float *right = along + start / WIDE * panel_of(count);
                product(values, left, right, padded, LOW, at->panels * BLOCK, WIDE, 1);
                add_block(into + row * d, at->count - row, d, start, values);
            }
}

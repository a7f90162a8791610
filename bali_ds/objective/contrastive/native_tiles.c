/* Sweeps over tiles of exp(scale * cosine - shift) for processors with AVX-512; native_tiles.py calls them.

A block of rows stands still, packed, while tile after tile of columns passes by. What is elementwise (exponential,
equal ids, sums, factors) is done on the accumulators of a product before they are written, so a tile goes to memory
once, and not at all where sums alone are asked for.

A tile is stored transposed and in blocks of LOW x WIDE elements, LOW columns by WIDE rows: [columns / LOW][rows / WIDE]
[LOW][WIDE]. In this form it is a left factor of either product of the gradients as it stands. Right factors are packed
in panels of WIDE: [panel][depth][WIDE]. Features in bfloat16 are widened to float when packed; where the processor
multiplies them as they are, similarities are made so, of pairs along the depth, with the same sums in float.

Threads take a tile each; what these owe to the rows is then added up row by row in the order of the tiles, each thread
having rows of its own. Results repeat bit for bit. */

#include <stdint.h>

typedef struct {
    const void *rows, *columns;                /* [m, d] and [n, d], of unit length, float or bfloat16 */
    const int64_t *row_ids, *column_ids;       /* sorted */
    const float *row_factors, *column_factors; /* of `bali_gradients` */
    double *row_sums, *column_sums;            /* what `bali_sums` adds to; column_sums may be NULL */
    float *row_gradient, *column_gradient;     /* what `bali_gradients` adds to; column_gradient may be NULL */
    float *kept;                               /* memory of the sweep's first `num_kept` tiles */
    float *scratch;                            /* `bali_scratch` floats; like `kept` at a multiple of 64 bytes */
    int64_t m, n, d, size, num_kept;           /* size: rows that stand still, a multiple of 64 */
    float scale, shift;
    int32_t bfloat16; /* whether the features are; PAIRS where they are multiplied so */
    int32_t triangle; /* rows and columns are the same views: the upper half is enough */
    int32_t threads;
} Sweep;

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>
#include <pthread.h>
#include <string.h>

#define LOW 8    /* with WIDE makes 16 accumulators, which hide the latency of multiply-adds */
#define WIDE 32  /* two vectors */
#define BLOCK (LOW * WIDE)
#define DEPTH 128
#define GROUP 4  /* packed panels that stay in the second-level cache while all left factors pass by */
#define PAIRS 2
#define GAP 8    /* columns between packed panels, lest all of them fall into the same sets of the first-level cache */
#define KERNEL __attribute__((target("avx512f,avx512bw,avx512vl"))) static
#define INLINE KERNEL inline __attribute__((always_inline))
#define EACH_LOW _Pragma("GCC unroll 8") for (int i = 0; i < LOW; i++)

static int64_t up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t share(int64_t count, int64_t part, int64_t parts) { return count * part / parts; }

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

/* Rows that stand still, and the thread that looks at them. */
typedef struct {
    const Sweep *sweep;
    Memory memory;
    int64_t first, count, panels;
} Station;

/* 16 exponentials, within 2 units in the last place; below exp(-104) 0. Cody and Waite, polynomial of Cephes. */
INLINE __m512 exponential(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-104.0f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

/* total[i] = sum over `depth` of left[i * apart + ...] * the next WIDE of `right`; left goes on by `stretch`, and by
`stride` from one run of `steps` to the next.

Sums over DEPTH are made in registers and then added up: rounding grows with either number, not with their product. */
INLINE void product(__m512 total[LOW][2], const float *left, const float *right, int64_t depth, int64_t steps,
                    int64_t stride, int64_t stretch, int64_t apart) {
    __m512 part[LOW][2];
    int64_t summed = 0;
    EACH_LOW total[i][0] = total[i][1] = part[i][0] = part[i][1] = _mm512_setzero_ps();
    for (int64_t done = 0; done < depth; done += steps, left += stride) {
        const float *at = left;
        for (int64_t step = least(steps, depth - done); step > 0; step--, at += stretch, right += WIDE) {
            __m512 low = _mm512_load_ps(right), high = _mm512_load_ps(right + 16);
            EACH_LOW {
                __m512 factor = _mm512_set1_ps(at[i * apart]);
                part[i][0] = _mm512_fmadd_ps(factor, low, part[i][0]);
                part[i][1] = _mm512_fmadd_ps(factor, high, part[i][1]);
            }
        }
        if ((summed += steps) >= DEPTH || done + steps >= depth) {
            summed = 0;
            EACH_LOW for (int half = 0; half < 2; half++) {
                total[i][half] = _mm512_add_ps(total[i][half], part[i][half]);
                part[i][half] = _mm512_setzero_ps();
            }
        }
    }
}

/* The first `count` of 16 lanes. */
INLINE __mmask16 lanes(int64_t count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (1 << count) - 1; }

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
            for (int64_t view = start; view < start + WIDE; view++)
                _mm512_storeu_ps(lines[view - start], load(s, views, view * s->d + depth, view < all ? s->d - depth : 0));
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

/* Of 16 sorted ids, of which `count` exist, those that exist and are not `id`. */
INLINE __mmask16 others(const int64_t *ids, int64_t count, int64_t id) {
    __mmask16 exist = lanes(count);
    __m512i wanted = _mm512_set1_epi64(id);
    __mmask16 low = _mm512_mask_cmpneq_epi64_mask((__mmask8)exist, _mm512_maskz_loadu_epi64((__mmask8)exist, ids), wanted);
    __mmask8 above = (__mmask8)(exist >> 8);
    __mmask16 high = _mm512_mask_cmpneq_epi64_mask(above, _mm512_maskz_loadu_epi64(above, ids + 8), wanted);
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

/* The same of `d` features in bfloat16, an even number, their pairs along the depth being one element of `right`. */
__attribute__((target("avx512f,avx512bf16"))) static void product_of_pairs(__m512 total[LOW][2], const uint16_t *left,
                                                                          const float *right, int64_t d) {
    __m512 part[LOW][2];
    EACH_LOW total[i][0] = total[i][1] = _mm512_setzero_ps();
    for (int64_t done = 0; done < d; done += DEPTH) {
        EACH_LOW part[i][0] = part[i][1] = _mm512_setzero_ps();
        for (int64_t k = done; k < least(done + DEPTH, d); k += 2, right += WIDE) {
            __m512bh low = (__m512bh)_mm512_load_ps(right), high = (__m512bh)_mm512_load_ps(right + 16);
            EACH_LOW {
                int32_t pair;
                memcpy(&pair, left + i * d + k, sizeof pair);
                __m512bh factor = (__m512bh)_mm512_set1_epi32(pair);
                part[i][0] = _mm512_dpbf16_ps(part[i][0], factor, low);
                part[i][1] = _mm512_dpbf16_ps(part[i][1], factor, high);
            }
        }
        EACH_LOW {
            total[i][0] = _mm512_add_ps(total[i][0], part[i][0]);
            total[i][1] = _mm512_add_ps(total[i][1], part[i][1]);
        }
    }
}

/* Whether columns up to `last` of `count` can be multiplied where they are. */
static int as_given(const Sweep *s, int64_t last, int64_t count) { return !s->bfloat16 && last <= count; }

/* One block: `tile` is where it goes or NULL; with `sums` its sums are added to the memory's. */
INLINE void make_block(const Station *at, float *tile, int64_t begin, int64_t column, int64_t count, int64_t panel,
                       int sums, int weighed) {
    const Sweep *s = at->sweep;
    __m512 scale = _mm512_set1_ps(s->scale), shift = _mm512_set1_ps(s->shift), by_row[2], values[LOW][2];
    by_row[0] = by_row[1] = _mm512_setzero_ps();
    const float *right = at->memory.rows_across + panel * s->d * WIDE;
    int64_t place = (begin + column) * s->d;
    if (s->bfloat16 == PAIRS)
        product_of_pairs(values, column + LOW > count ? at->memory.edge : (const uint16_t *)s->columns + place, right, s->d);
    else if (as_given(s, column + LOW, count)) /* their own memory is denser than the packed */
        product(values, (const float *)s->columns + place, right, s->d, WIDE, WIDE, 1, s->d);
    else
        product(values, at->memory.columns_along + column * WIDE, right, s->d, WIDE, panel_of(count), 1, WIDE);
    EACH_LOW {
        __mmask16 mask[2] = {0, 0};
        if (column + i < count) negatives(mask, at, panel, begin + column + i);
        for (int half = 0; half < 2; half++)
            values[i][half] = _mm512_maskz_mov_ps(mask[half], exponential(_mm512_fmsub_ps(values[i][half], scale, shift)));
        if (weighed && column + i < count) weigh(values[i], at, panel, begin + column + i);
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

/* The tile of the packed columns begin to begin + count - 1. */
KERNEL void make_tile(const Station *at, float *tile, int64_t begin, int64_t count, int sums) {
    if (at->sweep->bfloat16 == PAIRS && count % LOW) {
        int64_t bytes = at->sweep->d * sizeof(uint16_t), whole = count / LOW * LOW;
        memset(at->memory.edge, 0, LOW * bytes);
        memcpy(at->memory.edge, (const uint16_t *)at->sweep->columns + (begin + whole) * at->sweep->d, (count - whole) * bytes);
    }
    for (int64_t group = 0; group < at->panels; group += GROUP)
        for (int64_t column = 0; column < count; column += LOW)
            for (int64_t panel = group; panel < least(group + GROUP, at->panels); panel++) {
                float *block = tile ? tile + column * at->panels * WIDE + panel * BLOCK : NULL;
                if (sums)
                    make_block(at, block, begin, column, count, panel, 1, 0);
                else
                    make_block(at, block, begin, column, count, panel, 0, 1);
            }
}

/* Turn exponentials into derivatives. */
KERNEL void weigh_tile(const Station *at, float *tile, int64_t begin, int64_t count) {
    for (int64_t column = 0; column < count; column++)
        for (int64_t panel = 0; panel < at->panels; panel++) {
            float *place = tile + (column / LOW * at->panels + panel) * BLOCK + column % LOW * WIDE;
            __m512 values[2] = {_mm512_load_ps(place), _mm512_load_ps(place + 16)};
            weigh(values, at, panel, begin + column);
            _mm512_store_ps(place, values[0]);
            _mm512_store_ps(place + 16, values[1]);
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
                const float *left = tile + row / WIDE * BLOCK + row % WIDE, *right = along + start / WIDE * panel_of(count);
                product(values, left, right, padded, LOW, at->panels * BLOCK, WIDE, 1);
                add_block(into + row * d, at->count - row, d, start, values);
            }
}

static void pack_columns(const Station *at, int64_t begin, int64_t count) {
    const Sweep *s = at->sweep;
    pack_along(s, at->memory.columns_along, s->columns, s->n, up(count, LOW) + GAP, begin, begin + up(count, LOW));
}

/* What a thread does to a tile alone, and what all threads then do together for the rows, first to last - 1 each. */
typedef struct {
    void (*alone)(const Station *, float *kept, int64_t begin, int64_t count, int same);
    void (*together)(const Station *, const Memory *, const float *kept, int64_t begin, int64_t count, int64_t first,
                     int64_t last);
} Steps;

KERNEL void sum_tile(const Station *at, float *kept, int64_t begin, int64_t count, int same) {
    double *into = at->sweep->column_sums;
    memset(at->memory.lanes, 0, 16 * up(count, LOW) * sizeof(float));
    memset(at->memory.sums, 0, at->panels * WIDE * sizeof(double));
    if (at->sweep->bfloat16 != PAIRS && !as_given(at->sweep, up(count, LOW), count)) pack_columns(at, begin, count);
    make_tile(at, kept, begin, count, 1);
    if (into && !same)
        for (int64_t column = 0; column < count; column++) {
            double total[16] = {0}, sum = 0;
            add_doubles(total, _mm512_load_ps(at->memory.lanes + 16 * column));
            for (int lane = 0; lane < 16; lane++) sum += total[lane];
            into[begin + column] += sum;
        }
}

static void sum_rows(const Station *at, const Memory *memory, const float *kept, int64_t begin, int64_t count,
                     int64_t first, int64_t last) {
    (void)kept, (void)begin, (void)count;
    for (int64_t row = first; row < least(last, at->count); row++)
        at->sweep->row_sums[at->first + row] += memory->sums[row];
}

static void derive_tile(const Station *at, float *kept, int64_t begin, int64_t count, int same) {
    const Sweep *s = at->sweep;
    pack_columns(at, begin, count);
    if (kept)
        weigh_tile(at, kept, begin, count);
    else
        make_tile(at, at->memory.tile, begin, count, 0);
    if (s->column_gradient && !same)
        add_to_columns(at, kept ? kept : at->memory.tile, s->column_gradient + begin * s->d, count);
}

static void derive_rows(const Station *at, const Memory *memory, const float *kept, int64_t begin, int64_t count,
                        int64_t first, int64_t last) {
    (void)begin;
    float *into = at->sweep->row_gradient + at->first * at->sweep->d;
    add_to_rows(at, kept ? kept : memory->tile, memory->columns_along, into, count, first, last);
}

/* Threads */

typedef struct {
    Sweep *sweep;
    const Steps *steps;
    pthread_mutex_t start;
    pthread_barrier_t barrier;
} Team;

typedef struct {
    Team *team;
    int64_t thread;
    pthread_t handle;
} Member;

static void pack_rows(const Station *at, int64_t thread) {
    const Sweep *s = at->sweep;
    int64_t padded = at->panels * WIDE;
    int64_t first = share(at->panels, thread, s->threads) * WIDE, last = share(at->panels, thread + 1, s->threads) * WIDE;
    float *across = at->memory.rows_across + first * s->d;
    (s->bfloat16 == PAIRS ? pack_pairs : pack_across)(s, across, s->rows, s->m, at->first + first, at->first + last);
    if (s->row_gradient) pack_along(s, at->memory.rows_along + first * WIDE, s->rows, s->m, padded, at->first + first, at->first + last);
}

static void *work(void *given) {
    Member *self = given;
    Team *team = self->team;
    pthread_mutex_lock(&team->start);
    pthread_mutex_unlock(&team->start);
    const Sweep *s = team->sweep;
    int64_t tile = s->size / 2, number = 0;
    for (int64_t first = 0; first < s->m; first += s->size) {
        int64_t count = least(s->size, s->m - first);
        Station at = {s, memory_of(s, self->thread), first, count, up(count, WIDE) / WIDE};
        int64_t rows = at.panels * (WIDE / LOW);
        int64_t low = share(rows, self->thread, s->threads) * LOW, high = share(rows, self->thread + 1, s->threads) * LOW;
        pack_rows(&at, self->thread);
        pthread_barrier_wait(&team->barrier);
        for (int64_t start = s->triangle ? first : 0; start < s->n; start += tile * s->threads) {
            int64_t tiles = least(s->threads, up(s->n - start, tile) / tile);
            for (int64_t each = 0, begin = start; each < tiles; each++, begin += tile) {
                float *kept = number + each < s->num_kept ? s->kept + (number + each) * tile * s->size : NULL;
                if (each == self->thread)
                    team->steps->alone(&at, kept, begin, least(tile, s->n - begin), s->triangle && begin < first + count);
            }
            pthread_barrier_wait(&team->barrier);
            for (int64_t each = 0, begin = start; each < tiles; each++, begin += tile) {
                float *kept = number + each < s->num_kept ? s->kept + (number + each) * tile * s->size : NULL;
                Memory memory = memory_of(s, each);
                team->steps->together(&at, &memory, kept, begin, least(tile, s->n - begin), low, high);
            }
            pthread_barrier_wait(&team->barrier);
            number += tiles;
        }
    }
    return NULL;
}

static void run(Sweep *sweep, const Steps *steps) {
    if (sweep->bfloat16 && sweep->d % 2 == 0 && __builtin_cpu_supports("avx512bf16")) sweep->bfloat16 = PAIRS;
    Team team = {.sweep = sweep, .steps = steps, .start = PTHREAD_MUTEX_INITIALIZER};
    Member members[sweep->threads];
    int started = 1;
    members[0] = (Member){&team, 0, 0};
    pthread_mutex_lock(&team.start);
    for (; started < sweep->threads; started++) {
        members[started] = (Member){&team, started, 0};
        if (pthread_create(&members[started].handle, NULL, work, &members[started])) break;
    }
    sweep->threads = started; /* fewer where the system gives no more */
    pthread_barrier_init(&team.barrier, NULL, started);
    pthread_mutex_unlock(&team.start);
    work(&members[0]);
    for (int each = 1; each < started; each++) pthread_join(members[each].handle, NULL);
    pthread_barrier_destroy(&team.barrier);
}

int bali_supported(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

/* Floats of scratch memory that a sweep needs. */
int64_t bali_scratch(const Sweep *sweep) { return memory_of(sweep, 0).all; }

/* Add the sums of exponentials of every row and column; tiles are kept while there is memory for them. */
void bali_sums(Sweep *sweep) { run(sweep, &(Steps){sum_tile, sum_rows}); }

/* Add exponential * (row factor + column factor), times the other side's features, to the gradients. */
void bali_gradients(Sweep *sweep) { run(sweep, &(Steps){derive_tile, derive_rows}); }

#else

int bali_supported(void) { return 0; }
int64_t bali_scratch(const Sweep *sweep) { return 0; }
void bali_sums(Sweep *sweep) { (void)sweep; }
void bali_gradients(Sweep *sweep) { (void)sweep; }

#endif

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

#if defined(__x86_64__) && defined(__GNUC__)

#include <pthread.h>

#include "tiles.h"

static void pack_columns(const Station *at, int64_t begin, int64_t count) {
    const Sweep *s = at->sweep;
    pack_along(s, at->memory.columns_along, s->columns, s->n, up(count, LOW) + GAP, begin, begin + up(count, LOW));
}

/* What a thread does to a tile alone, and what all threads then do together for the rows, first to last - 1 each. */
typedef struct {
    void (*alone)(const Station *, int64_t begin, int64_t count, int same);
    void (*together)(const Station *, const Memory *, int64_t count, int64_t first, int64_t last);
} Steps;

KERNEL void sum_tile(const Station *at, int64_t begin, int64_t count, int same) {
    double *into = at->sweep->column_sums;
    memset(at->memory.lanes, 0, 16 * up(count, LOW) * sizeof(float));
    memset(at->memory.sums, 0, at->panels * WIDE * sizeof(double));
    if (at->sweep->bfloat16 != PAIRS && !as_given(at->sweep, up(count, LOW), count)) pack_columns(at, begin, count);
    make_tile(at, NULL, begin, count, 1);
    if (into && !same)
        for (int64_t column = 0; column < count; column++) {
            double total[16] = {0}, sum = 0;
            add_doubles(total, _mm512_load_ps(at->memory.lanes + 16 * column));
            for (int lane = 0; lane < 16; lane++) sum += total[lane];
            into[begin + column] += sum;
        }
}

static void sum_rows(const Station *at, const Memory *memory, int64_t count, int64_t first, int64_t last) {
    (void)count;
    for (int64_t row = first; row < least(last, at->count); row++)
        at->sweep->row_sums[at->first + row] += memory->sums[row];
}

static void derive_tile(const Station *at, int64_t begin, int64_t count, int same) {
    const Sweep *s = at->sweep;
    pack_columns(at, begin, count);
    make_tile(at, at->memory.tile, begin, count, 0);
    if (s->column_gradient && !same) add_to_columns(at, at->memory.tile, s->column_gradient + begin * s->d, count);
}

static void derive_rows(const Station *at, const Memory *memory, int64_t count, int64_t first, int64_t last) {
    float *into = at->sweep->row_gradient + at->first * at->sweep->d;
    add_to_rows(at, memory->tile, memory->columns_along, into, count, first, last);
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
    int64_t skipped = share(at->panels, thread, s->threads) * WIDE, first = at->first + skipped;
    int64_t last = at->first + share(at->panels, thread + 1, s->threads) * WIDE;
    float *across = at->memory.rows_across + skipped * s->d, *along = at->memory.rows_along + skipped * WIDE;
    (s->bfloat16 == PAIRS ? pack_pairs : pack_across)(s, across, s->rows, s->m, first, last);
    if (s->row_gradient) pack_along(s, along, s->rows, s->m, at->panels * WIDE, first, last);
}

static void *work(void *given) {
    Member *self = given;
    Team *team = self->team;
    pthread_mutex_lock(&team->start);
    pthread_mutex_unlock(&team->start);
    const Sweep *s = team->sweep;
    int64_t tile = s->size / 2;
    for (int64_t first = 0; first < s->m; first += s->size) {
        int64_t count = least(s->size, s->m - first);
        Station at = {s, memory_of(s, self->thread), first, count, up(count, WIDE) / WIDE};
        int64_t parts = at.panels * (WIDE / LOW);
        int64_t low = share(parts, self->thread, s->threads) * LOW;
        int64_t high = share(parts, self->thread + 1, s->threads) * LOW;
        pack_rows(&at, self->thread);
        pthread_barrier_wait(&team->barrier);
        for (int64_t start = s->triangle ? first : 0; start < s->n; start += tile * s->threads) {
            int64_t tiles = least(s->threads, up(s->n - start, tile) / tile), own = start + self->thread * tile;
            if (self->thread < tiles) {
                int same = s->triangle && own < first + count;
                team->steps->alone(&at, own, least(tile, s->n - own), same);
            }
            pthread_barrier_wait(&team->barrier);
            for (int64_t each = 0, begin = start; each < tiles; each++, begin += tile) {
                Memory memory = memory_of(s, each);
                team->steps->together(&at, &memory, least(tile, s->n - begin), low, high);
            }
            pthread_barrier_wait(&team->barrier);
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
    int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    return wide && __builtin_cpu_supports("avx512vl");
}

/* Floats of scratch memory that a sweep needs. */
int64_t bali_scratch(const Sweep *sweep) { return memory_of(sweep, 0).all; }

/* Add the sums of exponentials of every row and column. */
void bali_sums(Sweep *sweep) { run(sweep, &(Steps){sum_tile, sum_rows}); }

/* Add exponential * (row factor + column factor), times the other side's features, to the gradients. */
void bali_gradients(Sweep *sweep) { run(sweep, &(Steps){derive_tile, derive_rows}); }

#else

int bali_supported(void) { return 0; }

#endif

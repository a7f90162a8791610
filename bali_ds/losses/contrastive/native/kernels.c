/* Passes over tiles of exp(scale * cosine - shift) for CPUs with AVX-512, called by native_tiles.py.

A tile has `size` rows and half as many columns. Its rows are packed once and stay in cache while tile after tile of
columns is processed. Elementwise arithmetic (exponential, mask of equal ids, sums, factors) is done on the accumulators
of a product before they are stored, so a tile is written once, and not at all if only sums are needed.

A tile is stored transposed, in micro-tiles of MR columns by NR rows: [columns / MR][rows / NR][MR][NR]. That is the
layout of the left factor in both products of the gradients. Right factors are packed in panels of NR:
[panel][depth][NR]. bfloat16 features are converted to float when packed; on CPUs with AVX512_BF16 similarities are
computed from bfloat16 pairs, with the same sums in float.

Each thread computes one tile at a time. The results for rows are then added in the order of the tiles, each thread
adding those of its own part of the rows, so any number of threads gives the same bits. */

#if defined(__x86_64__) && defined(__GNUC__)

#include <pthread.h>

#include "tiles.h"

static void pack_columns(const RowBlock *at, int64_t begin, int64_t count) {
    const Pass *s = at->pass;
    int64_t padded = round_up(count, MR);
    pack_features(s, at->workspace.column_feature_panels, s->columns, s->n, padded + GAP, begin, begin + padded);
}

/* The two phases of a pass: each thread processes a tile of its own; then for each of these tiles all threads add to
the results of rows, each to rows first to last - 1. */
typedef struct {
    void (*process_tile)(const RowBlock *, int64_t begin, int64_t count, int same);
    void (*add_to_row_results)(const RowBlock *, const Workspace *, int64_t count, int64_t first, int64_t last);
} PassFunctions;

KERNEL void sum_tile(const RowBlock *at, int64_t begin, int64_t count, int same) {
    const Pass *s = at->pass;
    double *into = s->column_sums;
    memset(at->workspace.lane_sums, 0, 16 * round_up(count, MR) * sizeof(float));
    memset(at->workspace.sums, 0, at->panels * NR * sizeof(double));
    if (s->bfloat16 != BF16_PAIRS && !usable_unpacked(s, round_up(count, MR), count)) pack_columns(at, begin, count);
    compute_tile(at, NULL, begin, count, 1);
    if (into && !same)
        for (int64_t column = 0; column < count; column++) {
            double total[16] = {0}, sum = 0;
            add_doubles(total, _mm512_load_ps(at->workspace.lane_sums + 16 * column));
            for (int lane = 0; lane < 16; lane++) sum += total[lane];
            into[begin + column] += sum;
        }
}

static void add_row_sums(const RowBlock *at, const Workspace *workspace, int64_t count, int64_t first, int64_t last) {
    (void)count;
    for (int64_t row = first; row < minimum(last, at->count); row++)
        at->pass->row_sums[at->first + row] += workspace->sums[row];
}

static void compute_tile_gradients(const RowBlock *at, int64_t begin, int64_t count, int same) {
    const Pass *s = at->pass;
    pack_columns(at, begin, count);
    compute_tile(at, at->workspace.tile, begin, count, 0);
    if (s->column_gradient && !same) add_to_columns(at, at->workspace.tile, s->column_gradient + begin * s->d, count);
}

static void add_row_gradients(const RowBlock *at, const Workspace *workspace, int64_t count, int64_t first,
                              int64_t last) {
    float *into = at->pass->row_gradient + at->first * at->pass->d;
    add_to_rows(at, workspace->tile, workspace->column_feature_panels, into, count, first, last);
}

/* Threads */

typedef struct {
    Pass *pass;
    const PassFunctions *functions;
    pthread_mutex_t start;
    pthread_barrier_t barrier;
} ThreadTeam;

typedef struct {
    ThreadTeam *team;
    int64_t thread;
    pthread_t handle;
} Worker;

static void pack_rows(const RowBlock *at, int64_t thread) {
    const Pass *s = at->pass;
    int64_t skipped = partition(at->panels, thread, s->threads) * NR, first = at->first + skipped;
    int64_t last = at->first + partition(at->panels, thread + 1, s->threads) * NR;
    float *views = at->workspace.row_panels + skipped * s->d;
    float *features = at->workspace.row_feature_panels + skipped * NR;
    (s->bfloat16 == BF16_PAIRS ? pack_pairs : pack_views)(s, views, s->rows, s->m, first, last);
    if (s->row_gradient) pack_features(s, features, s->rows, s->m, at->panels * NR, first, last);
}

static void *run_worker(void *given) {
    Worker *self = given;
    ThreadTeam *team = self->team;
    pthread_mutex_lock(&team->start);
    pthread_mutex_unlock(&team->start);
    const Pass *s = team->pass;
    int64_t tile = s->size / 2;
    for (int64_t first = 0; first < s->m; first += s->size) {
        int64_t count = minimum(s->size, s->m - first);
        RowBlock at = {s, workspace_of(s, self->thread), first, count, round_up(count, NR) / NR};
        int64_t parts = at.panels * (NR / MR);
        int64_t low = partition(parts, self->thread, s->threads) * MR;
        int64_t high = partition(parts, self->thread + 1, s->threads) * MR;
        pack_rows(&at, self->thread);
        pthread_barrier_wait(&team->barrier);
        for (int64_t start = s->symmetric ? first : 0; start < s->n; start += tile * s->threads) {
            int64_t tiles = minimum(s->threads, round_up(s->n - start, tile) / tile), own = start + self->thread * tile;
            if (self->thread < tiles) {
                int same = s->symmetric && own < first + count;
                team->functions->process_tile(&at, own, minimum(tile, s->n - own), same);
            }
            pthread_barrier_wait(&team->barrier);
            for (int64_t each = 0, begin = start; each < tiles; each++, begin += tile) {
                Workspace workspace = workspace_of(s, each);
                team->functions->add_to_row_results(&at, &workspace, minimum(tile, s->n - begin), low, high);
            }
            pthread_barrier_wait(&team->barrier);
        }
    }
    return NULL;
}

static void run(Pass *pass, const PassFunctions *functions) {
    if (pass->bfloat16 && pass->d % 2 == 0 && __builtin_cpu_supports("avx512bf16")) pass->bfloat16 = BF16_PAIRS;
    ThreadTeam team = {.pass = pass, .functions = functions, .start = PTHREAD_MUTEX_INITIALIZER};
    Worker workers[pass->threads];
    int started = 1;
    workers[0] = (Worker){&team, 0, 0};
    pthread_mutex_lock(&team.start);
    for (; started < pass->threads; started++) {
        workers[started] = (Worker){&team, started, 0};
        if (pthread_create(&workers[started].handle, NULL, run_worker, &workers[started])) break;
    }
    pass->threads = started; /* fewer if the system refuses more */
    pthread_barrier_init(&team.barrier, NULL, started);
    pthread_mutex_unlock(&team.start);
    run_worker(&workers[0]);
    for (int each = 1; each < started; each++) pthread_join(workers[each].handle, NULL);
    pthread_barrier_destroy(&team.barrier);
}

int bali_supported(void) {
    __builtin_cpu_init();
    int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    return wide && __builtin_cpu_supports("avx512vl");
}

/* Size of the arguments, by which the caller checks that it was built from the same sources. */
int64_t bali_pass_bytes(void) { return sizeof(Pass); }

/* Size of the workspace of a pass, in floats. */
int64_t bali_workspace_floats(const Pass *pass) { return workspace_of(pass, 0).total; }

/* Add the sums of exponentials of each row and column. */
void bali_sums(Pass *pass) { run(pass, &(PassFunctions){sum_tile, add_row_sums}); }

/* Add the products of exponential * (row factor + column factor) with the other side's features to the gradients. */
void bali_gradients(Pass *pass) { run(pass, &(PassFunctions){compute_tile_gradients, add_row_gradients}); }

#else

int bali_supported(void) { return 0; }

#endif

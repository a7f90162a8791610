/* Micro-kernels in AVX-512 registers: products of packed matrices, and exponentials. */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define MR 8  /* a micro-tile of MR x NR takes 16 accumulators, enough to hide the latency of multiply-adds */
#define NR 32 /* two vectors */
#define MICRO_TILE (MR * NR)
#define KC 128 /* steps in depth between additions of partial sums */
#define KERNEL __attribute__((target("avx512f,avx512bw,avx512vl"))) static
#define INLINE KERNEL inline __attribute__((always_inline))
#define FOR_MR _Pragma("GCC unroll 8") for (int i = 0; i < MR; i++)

static int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
static int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t partition(int64_t count, int64_t part, int64_t parts) { return count * part / parts; }

/* 16 exponentials, within 2 units in the last place; 0 below exp(-104). Cody-Waite reduction, polynomial of Cephes. */
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

/* total[i] = sum over k < depth of left[i, k] * right[k, 0:NR], for MR rows of `left` and a packed panel `right`.

Row i of `left` starts at `i * row_stride`. One step in k advances by `step_stride`; groups of `group` steps start
`group_stride` apart. Partial sums over KC steps are added up, so that rounding errors grow with KC + depth / KC instead
of depth. */
INLINE void product(__m512 total[MR][2], const float *left, const float *right, int64_t depth, int64_t group,
                    int64_t group_stride, int64_t step_stride, int64_t row_stride) {
    __m512 part[MR][2];
    int64_t summed = 0;
    FOR_MR total[i][0] = total[i][1] = part[i][0] = part[i][1] = _mm512_setzero_ps();
    for (int64_t done = 0; done < depth; done += group, left += group_stride) {
        const float *at = left;
        for (int64_t step = minimum(group, depth - done); step > 0; step--, at += step_stride, right += NR) {
            __m512 low = _mm512_load_ps(right), high = _mm512_load_ps(right + 16);
            FOR_MR {
                __m512 factor = _mm512_set1_ps(at[i * row_stride]);
                part[i][0] = _mm512_fmadd_ps(factor, low, part[i][0]);
                part[i][1] = _mm512_fmadd_ps(factor, high, part[i][1]);
            }
        }
        if ((summed += group) >= KC || done + group >= depth) {
            summed = 0;
            FOR_MR for (int half = 0; half < 2; half++) {
                total[i][half] = _mm512_add_ps(total[i][half], part[i][half]);
                part[i][half] = _mm512_setzero_ps();
            }
        }
    }
}

/* The same for `d` bfloat16 features, d even; an element of `right` holds a pair that is adjacent in depth. */
__attribute__((target("avx512f,avx512bf16"))) static void product_of_pairs(__m512 total[MR][2], const uint16_t *left,
                                                                          const float *right, int64_t d) {
    __m512 part[MR][2];
    FOR_MR total[i][0] = total[i][1] = _mm512_setzero_ps();
    for (int64_t done = 0; done < d; done += KC) {
        FOR_MR part[i][0] = part[i][1] = _mm512_setzero_ps();
        for (int64_t k = done; k < minimum(done + KC, d); k += 2, right += NR) {
            __m512bh low = (__m512bh)_mm512_load_ps(right), high = (__m512bh)_mm512_load_ps(right + 16);
            FOR_MR {
                int32_t pair;
                memcpy(&pair, left + i * d + k, sizeof pair);
                __m512bh factor = (__m512bh)_mm512_set1_epi32(pair);
                part[i][0] = _mm512_dpbf16_ps(part[i][0], factor, low);
                part[i][1] = _mm512_dpbf16_ps(part[i][1], factor, high);
            }
        }
        FOR_MR {
            total[i][0] = _mm512_add_ps(total[i][0], part[i][0]);
            total[i][1] = _mm512_add_ps(total[i][1], part[i][1]);
        }
    }
}

/* Mask of the first `count` of 16 lanes. */
INLINE __mmask16 lane_mask(int64_t count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (1 << count) - 1; }

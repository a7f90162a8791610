/* Products of packed matrices, and exponentials, in the registers of a processor with AVX-512. */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define LOW 8    /* with WIDE makes 16 accumulators, which hide the latency of multiply-adds */
#define WIDE 32  /* two vectors */
#define BLOCK (LOW * WIDE)
#define DEPTH 128
#define KERNEL __attribute__((target("avx512f,avx512bw,avx512vl"))) static
#define INLINE KERNEL inline __attribute__((always_inline))
#define EACH_LOW _Pragma("GCC unroll 8") for (int i = 0; i < LOW; i++)

static int64_t up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t share(int64_t count, int64_t part, int64_t parts) { return count * part / parts; }

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

/* The first `count` of 16 lanes. */
INLINE __mmask16 lanes(int64_t count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (1 << count) - 1; }

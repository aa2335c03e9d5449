/* See sha256_lanes.h. */
#include "sha256_lanes.h"

#if defined(__x86_64__) && !defined(CAFS_PORTABLE)

#include <cpuid.h>
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LANES = 16, BLOCK = 64 };

static const uint32_t ROUND[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
    0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
    0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
    0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
    0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
    0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
    0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
    0xc67178f2,
};

static const uint32_t INITIAL[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

#define KERNEL compress_avx2
#define KERNEL_TARGET "avx2"
#define LANES 8
#include "sha256_lanes_kernel.h"
#undef KERNEL
#undef KERNEL_TARGET

#define KERNEL compress_avx512
#define KERNEL_TARGET "avx2,avx512f,avx512vl"
#include "sha256_lanes_kernel.h"
#undef KERNEL
#undef KERNEL_TARGET
#undef LANES

#define KERNEL compress_avx512_wide
#define KERNEL_TARGET "avx2,avx512f"
#define LANES 16
#include "sha256_lanes_kernel.h"
#undef KERNEL
#undef KERNEL_TARGET
#undef LANES

struct kernel {
    void (*compress)(uint32_t *state, const uint8_t *const *at, size_t blocks);
    size_t lanes;
};

static struct kernel kernel_of(enum sha256_kernel name)
{
    if (name == SHA256_AVX512_WIDE)
        return (struct kernel){compress_avx512_wide, 16};
    return (struct kernel){name == SHA256_AVX512 ? compress_avx512 : compress_avx2, 8};
}

/* One slice on its way: whole blocks from the data, then the padded rest from `tail`. */
struct lane {
    const uint8_t *at;
    size_t blocks;      /* left at `at` */
    size_t tail_blocks; /* left in `tail`, 0 once `at` points there */
    size_t place;
    uint8_t tail[2 * BLOCK];
};

/* A slice and its place.  The longest are taken first: one long slice taken last would leave
 * all other lanes idle. */
struct job {
    struct bytes slice;
    size_t place;
};

static int longest_first(const void *a, const void *b)
{
    const size_t size_a = ((const struct job *)a)->slice.size;
    const size_t size_b = ((const struct job *)b)->slice.size;
    return (size_a < size_b) - (size_a > size_b);
}

/* Word i of the lane's state is state[i * lanes]. */
static void lane_begin(struct lane *lane, uint32_t *state, size_t lanes, const struct job *job)
{
    const size_t size = job->slice.size;
    const size_t rest = size % BLOCK;
    const uint64_t bits = (uint64_t)size * 8;

    lane->at = job->slice.at;
    lane->blocks = size / BLOCK;
    lane->tail_blocks = rest + 9 > BLOCK ? 2 : 1; /* one bit and eight bytes of length */
    lane->place = job->place;
    memset(lane->tail, 0, sizeof lane->tail);
    memcpy(lane->tail, lane->at + size - rest, rest);
    lane->tail[rest] = 0x80;
    for (size_t i = 0; i < 8; i++) {
        lane->tail[lane->tail_blocks * BLOCK - 1 - i] = (uint8_t)(bits >> 8 * i);
        state[i * lanes] = INITIAL[i];
    }
}

static void lane_digest(const uint32_t *state, size_t lanes, uint8_t *out)
{
    for (size_t i = 0; i < 8; i++) {
        const uint32_t word = __builtin_bswap32(state[i * lanes]);
        memcpy(out + 4 * i, &word, 4);
    }
}

/* Turns a lane from its data to its tail when the data are used up. */
static void lane_turn(struct lane *lane)
{
    if (lane->blocks == 0 && lane->tail_blocks != 0) {
        lane->at = lane->tail;
        lane->blocks = lane->tail_blocks;
        lane->tail_blocks = 0;
    }
}

static void run_jobs(struct kernel kernel, const struct job *jobs, size_t count, uint8_t *out)
{
    _Alignas(64) uint32_t state[8 * MAX_LANES] = {0};
    struct lane lanes[MAX_LANES];
    const uint8_t *at[MAX_LANES];
    size_t taken = 0;

    memset(lanes, 0, sizeof lanes);
    for (size_t i = 0; i < kernel.lanes && taken < count; i++)
        lane_begin(&lanes[i], state + i, kernel.lanes, &jobs[taken++]);
    for (;;) {
        size_t step = SIZE_MAX;
        const uint8_t *readable = NULL;
        for (size_t i = 0; i < kernel.lanes; i++) {
            lane_turn(&lanes[i]);
            if (lanes[i].blocks != 0 && lanes[i].blocks < step) {
                step = lanes[i].blocks;
                readable = lanes[i].at;
            }
        }
        if (readable == NULL)
            return;
        for (size_t i = 0; i < kernel.lanes; i++) /* an idle lane works on a neighbour's bytes */
            at[i] = lanes[i].blocks != 0 ? lanes[i].at : readable;
        kernel.compress(state, at, step);
        for (size_t i = 0; i < kernel.lanes; i++) {
            struct lane *lane = &lanes[i];
            if (lane->blocks == 0)
                continue;
            lane->at += step * BLOCK;
            lane->blocks -= step;
            if (lane->blocks != 0 || lane->tail_blocks != 0)
                continue;
            lane_digest(state + i, kernel.lanes, out + lane->place * SHA256_SIZE);
            if (taken < count)
                lane_begin(lane, state + i, kernel.lanes, &jobs[taken++]);
        }
    }
}

bool sha256_lanes_each(enum sha256_kernel kernel, const struct bytes *slices, size_t count,
                         uint8_t *out)
{
    struct job *jobs = malloc((count != 0 ? count : 1) * sizeof *jobs);

    if (jobs == NULL)
        return false;
    for (size_t i = 0; i < count; i++)
        jobs[i] = (struct job){slices[i], i};
    qsort(jobs, count, sizeof *jobs, longest_first);
    run_jobs(kernel_of(kernel), jobs, count, out);
    free(jobs);
    return true;
}

bool sha256_lanes_can(enum sha256_kernel kernel)
{
    __builtin_cpu_init();
    if (kernel == SHA256_AVX512 || kernel == SHA256_AVX512_WIDE)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("avx512vl");
    return kernel == SHA256_AVX2 && __builtin_cpu_supports("avx2");
}

bool sha256_lanes_needless(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (ebx & bit_SHA) != 0;
}

#else

bool sha256_lanes_can(enum sha256_kernel kernel)
{
    (void)kernel;
    return false;
}

bool sha256_lanes_needless(void)
{
    return true;
}

bool sha256_lanes_each(enum sha256_kernel kernel, const struct bytes *slices, size_t count,
                         uint8_t *out)
{
    (void)kernel, (void)slices, (void)count, (void)out;
    return false;
}

#endif

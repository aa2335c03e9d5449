/* The compression function of SHA-256 (FIPS 180-4, 6.2.2) on LANES lanes, as a template.
 *
 * Included by sha256_lanes.c once for each kernel, with KERNEL, the function's name,
 * KERNEL_TARGET, the compiler's words for the instruction set, and LANES, 8 or 16.
 * Word i of lane j is state[i * LANES + j].  Reads `blocks` times 64 bytes at each pointer.
 */

#define INLINE static inline __attribute__((always_inline, target(KERNEL_TARGET)))
#define NAME2(a, b) a##_##b
#define NAME1(a, b) NAME2(a, b)
#define NAME(part) NAME1(KERNEL, part)
#define words NAME(vector)

typedef uint32_t words __attribute__((vector_size(LANES * sizeof(uint32_t)), may_alias));

INLINE words NAME(rotate)(words x, int n)
{
    return x >> n | x << (32 - n);
}

/* Half a block of eight lanes, words turned to the machine's byte order: out[i] gets word i of
 * all of them. */
INLINE void NAME(load_eight)(__m256i out[8], const uint8_t *const at[8], size_t offset)
{
    const __m256i swap = _mm256_broadcastsi128_si256(
        _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3));
    __m256i row[8], pair[8];

    for (int i = 0; i < 8; i++) {
        const void *from = at[i] + offset;
        row[i] = _mm256_shuffle_epi8(_mm256_loadu_si256(from), swap);
    }
    for (int i = 0; i < 8; i += 2) {
        pair[i] = _mm256_unpacklo_epi32(row[i], row[i + 1]);
        pair[i + 1] = _mm256_unpackhi_epi32(row[i], row[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        row[i] = _mm256_unpacklo_epi64(pair[i], pair[i + 2]);
        row[i + 1] = _mm256_unpackhi_epi64(pair[i], pair[i + 2]);
        row[i + 2] = _mm256_unpacklo_epi64(pair[i + 1], pair[i + 3]);
        row[i + 3] = _mm256_unpackhi_epi64(pair[i + 1], pair[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        out[i] = _mm256_permute2x128_si256(row[i], row[i + 4], 0x20);
        out[i + 4] = _mm256_permute2x128_si256(row[i], row[i + 4], 0x31);
    }
}

/* Half a block of each lane, as eight words. */
INLINE void NAME(load)(words *out, const uint8_t *const at[LANES], size_t offset)
{
    __m256i low[8];

    NAME(load_eight)(low, at, offset);
#if LANES == 16
    __m256i high[8];
    NAME(load_eight)(high, at + 8, offset);
    for (int i = 0; i < 8; i++)
        out[i] = (words)_mm512_inserti64x4(_mm512_castsi256_si512(low[i]), high[i], 1);
#else
    for (int i = 0; i < 8; i++)
        out[i] = (words)low[i];
#endif
}

INLINE words NAME(schedule)(const words w[16], int t)
{
    const words w2 = w[(t + 14) & 15], w15 = w[(t + 1) & 15];
    const words s0 = NAME(rotate)(w15, 7) ^ NAME(rotate)(w15, 18) ^ (w15 >> 3);
    const words s1 = NAME(rotate)(w2, 17) ^ NAME(rotate)(w2, 19) ^ (w2 >> 10);
    return w[t & 15] + s0 + w[(t + 9) & 15] + s1;
}

/* Round t; instead of moving eight words on, their names turn: s[(k - t) & 7] is word k. */
INLINE void NAME(round)(words s[8], words w, int t)
{
    const words a = s[(0 - t) & 7], b = s[(1 - t) & 7], c = s[(2 - t) & 7];
    const words e = s[(4 - t) & 7], f = s[(5 - t) & 7], g = s[(6 - t) & 7];
    const words sum1 = NAME(rotate)(e, 6) ^ NAME(rotate)(e, 11) ^ NAME(rotate)(e, 25);
    const words sum0 = NAME(rotate)(a, 2) ^ NAME(rotate)(a, 13) ^ NAME(rotate)(a, 22);
    const words choice = g ^ (e & (f ^ g));
    const words majority = (a & b) | (c & (a | b));
    const words t1 = s[(7 - t) & 7] + sum1 + choice + (w + ROUND[t]);
    s[(3 - t) & 7] += t1;
    s[(7 - t) & 7] = t1 + sum0 + majority;
}

__attribute__((target(KERNEL_TARGET))) static void
KERNEL(uint32_t *words_of_lanes, const uint8_t *const *at, size_t blocks)
{
    words *state = (words *)words_of_lanes;
    words s[8], w[16];

    for (int i = 0; i < 8; i++)
        s[i] = state[i];
    for (size_t block = 0; block < blocks; block++) {
        NAME(load)(w, at, block * BLOCK);
        NAME(load)(w + 8, at, block * BLOCK + BLOCK / 2);
#pragma GCC unroll 16
        for (int t = 0; t < 16; t++)
            NAME(round)(s, w[t], t);
#pragma GCC unroll 48
        for (int t = 16; t < 64; t++) {
            w[t & 15] = NAME(schedule)(w, t);
            NAME(round)(s, w[t & 15], t);
        }
        for (int i = 0; i < 8; i++)
            s[i] = state[i] += s[i];
    }
}

#undef INLINE
#undef words
#undef NAME
#undef NAME1
#undef NAME2

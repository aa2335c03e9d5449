/* See zip_marks.h. */
#include "zip_marks.h"

#include <string.h>

#if defined(__SSE2__) && !defined(CAFS_PORTABLE)
#include <emmintrin.h>
#endif

enum {
    LOCAL_HEADER_SIZE = 30,
    MAX_VERSION_NEEDED = 63, /* 6.3, the highest that APPNOTE knows */
    MAX_NAME_SIZE = 4095,
    RESERVED_FLAGS = 0xc000,
};

static unsigned u16(const uint8_t *at)
{
    return (unsigned)at[0] | (unsigned)at[1] << 8;
}

static bool known_method(unsigned method)
{
    /* 0..20 without the reserved ones; 93 zstd, 94 mp3, 95 xz, 96 jpeg, 97 wavpack,
     * 98 PPMd, 99 AES around another method. */
    static const uint32_t low_methods = 0x1d577f;
    if (method < 32)
        return (low_methods >> method & 1) != 0;
    return method >= 93 && method <= 99;
}

/* The length of the local header at `at` (at least 30 bytes there), 0 if not plausible. */
static size_t local_header_size(const uint8_t *at, size_t max_header)
{
    const unsigned name_size = u16(at + 26);
    const size_t size = (size_t)LOCAL_HEADER_SIZE + name_size + u16(at + 28);
    /* The high byte of the version is the host system with some writers. */
    if (at[4] > MAX_VERSION_NEEDED || (u16(at + 6) & RESERVED_FLAGS) != 0)
        return 0;
    if (!known_method(u16(at + 8)) || name_size == 0 || name_size > MAX_NAME_SIZE)
        return 0;
    return size <= max_header ? size : 0;
}

enum zip_mark zip_mark_at(const uint8_t *at, size_t avail, bool final, size_t max_header,
                          size_t *header_size)
{
    static const struct {
        uint8_t signature[4];
        enum zip_mark mark;
    } marks[] = {
        {{'P', 'K', 3, 4}, ZIP_LOCAL},
        {{'P', 'K', 1, 2}, ZIP_DIRECTORY},
        {{'P', 'K', 7, 8}, ZIP_DESCRIPTOR},
    };
    const size_t compared = avail < 4 ? avail : 4;

    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
        if (memcmp(at, marks[i].signature, compared) != 0)
            continue;
        if (compared < 4)
            return final ? ZIP_NONE : ZIP_UNDECIDED;
        if (marks[i].mark != ZIP_LOCAL)
            return marks[i].mark;
        if (avail < LOCAL_HEADER_SIZE)
            return final ? ZIP_NONE : ZIP_UNDECIDED;
        *header_size = local_header_size(at, max_header);
        return *header_size != 0 ? ZIP_LOCAL : ZIP_NONE;
    }
    return ZIP_NONE;
}

size_t zip_find_pk(const uint8_t *data, size_t from, size_t size)
{
    size_t i = from;

#if defined(__SSE2__) && !defined(CAFS_PORTABLE)
    /* Random bytes hold a 'P' every 256 bytes: memchr would stop far too often.  Comparing
     * both letters at once stops only every 64 KiB. */
    const __m128i p = _mm_set1_epi8('P');
    const __m128i k = _mm_set1_epi8('K');
    while (size - i > 64) {
        __m128i hit[4];
        for (size_t j = 0; j < 4; j++) {
            const uint8_t *at = data + i + 16 * j;
            const __m128i first = _mm_loadu_si128((const __m128i *)(const void *)at);
            const __m128i second = _mm_loadu_si128((const __m128i *)(const void *)(at + 1));
            hit[j] = _mm_and_si128(_mm_cmpeq_epi8(first, p), _mm_cmpeq_epi8(second, k));
        }
        const __m128i any =
            _mm_or_si128(_mm_or_si128(hit[0], hit[1]), _mm_or_si128(hit[2], hit[3]));
        if (_mm_movemask_epi8(any) != 0)
            break; /* the loop below finds it within 64 steps */
        i += 64;
    }
#endif
    for (; i < size; i++) {
        if (data[i] == 'P' && (i + 1 == size || data[i + 1] == 'K'))
            return i;
    }
    return size;
}

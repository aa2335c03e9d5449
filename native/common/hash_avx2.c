/* XXH3 compiled for AVX2; hash.c calls it where the processor has that. */
#if defined(__x86_64__)

#pragma GCC target("avx2")

#include <stddef.h>
#include <stdint.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

uint64_t cafs_hash_avx2(const void *bytes, size_t length);

uint64_t cafs_hash_avx2(const void *bytes, size_t length)
{
    return XXH3_64bits(bytes, length);
}

#else

typedef int cafs_hash_has_no_avx2;

#endif

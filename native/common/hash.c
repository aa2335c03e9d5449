#include "hash.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#if defined(__x86_64__)

uint64_t cafs_hash_avx2(const void *bytes, size_t length);

uint64_t cafs_hash(const void *bytes, size_t length)
{
    return __builtin_cpu_supports("avx2") ? cafs_hash_avx2(bytes, length) : XXH3_64bits(bytes, length);
}

#else

uint64_t cafs_hash(const void *bytes, size_t length)
{
    return XXH3_64bits(bytes, length);
}

#endif

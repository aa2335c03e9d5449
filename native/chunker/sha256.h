/* SHA-256 of many slices, by the fastest means that the processor has. */
#ifndef CAFS_SHA256_H
#define CAFS_SHA256_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bytes.h"

enum { SHA256_SIZE = 32 };

enum sha256_kernel {
    SHA256_AUTO, /* whichever of the others suits the processor and the slices */
    SHA256_OPENSSL,
    SHA256_AVX2,
    SHA256_AVX512,
    SHA256_AVX512_WIDE,
    SHA256_KERNELS /* how many there are */
};

/* Finds out what there is; call before anything else, from one thread.  False if OpenSSL
 * offers no SHA-256. */
bool sha256_setup(void);

/* Whether this machine can run the kernel. */
bool sha256_can(enum sha256_kernel kernel);

/* Digests of the slices, in their order, to out[count * SHA256_SIZE].  The kernel must be one
 * that can run.  Thread-safe.  False if memory ran out; out is undefined then. */
bool sha256_each(enum sha256_kernel kernel, const struct bytes *slices, size_t count,
                   uint8_t *out);

#endif

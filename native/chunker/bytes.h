/* A piece of memory that belongs to somebody else. */
#ifndef CAFS_BYTES_H
#define CAFS_BYTES_H

#include <stddef.h>
#include <stdint.h>

/* `at` is not NULL, also where the size is 0. */
struct bytes {
    const uint8_t *at;
    size_t size;
};

#endif

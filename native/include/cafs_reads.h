/* The reads file: by which other processes tell the daemon whose content they have sent.
 *
 * docs/format.md, "Reads file", states the bytes.  Anybody who has it mapped may note at any time;
 * nothing is waited for, and what was not drained in time is overwritten.
 */
#ifndef CAFS_READS_H
#define CAFS_READS_H

#include "cafs_format.h"

#define CAFS_READS_MAGIC "CAFSREAD"
#define CAFS_READS_VERSION 1
#define CAFS_READS_HEADER 64
#define CAFS_READS_BITS_MIN 4
#define CAFS_READS_BITS_MAX 24
#define CAFS_READS_SUFFIX ".reads" /* behind the pending file's name */

/* Where the bytes came from; in a place, above the inode's number. */
enum cafs_reads_from {
    CAFS_READS_PACKS = 0,
    CAFS_READS_CACHED = 1,       /* a file of the cache, from its first byte on */
    CAFS_READS_CACHED_INSIDE = 2 /* a file of the cache, from another byte on */
};

/* A reads file as it is mapped. */
struct cafs_reads {
    uint8_t *base; /* NULL: there is none */
    size_t length;
    unsigned bits; /* log2 of the places */
};

static inline size_t cafs_reads_file_bytes(unsigned bits)
{
    return CAFS_READS_HEADER + ((size_t)8 << bits);
}

/* Whether *length* mapped bytes are a reads file of this version. */
static inline bool cafs_reads_open(struct cafs_reads *reads, void *base, size_t length)
{
    uint8_t *at = base;
    if (length < CAFS_READS_HEADER || memcmp(at, CAFS_READS_MAGIC, 8) != 0 ||
        cafs_le32(at + 8) != CAFS_READS_VERSION)
        return false;
    const uint32_t bits = cafs_le32(at + 12);
    if (bits < CAFS_READS_BITS_MIN || bits > CAFS_READS_BITS_MAX || length != cafs_reads_file_bytes(bits))
        return false;
    reads->base = at;
    reads->length = length;
    reads->bits = bits;
    return true;
}

/* Bytes of this inode's content went to a client.  *bits* is the one that was checked: the file's
 * may be anything by now.  No order is promised, so none is asked for. */
static inline void cafs_reads_note(const struct cafs_reads *reads, uint64_t ino, enum cafs_reads_from from)
{
    uint64_t *const head = (uint64_t *)(void *)(reads->base + 16);
    uint64_t *const places = (uint64_t *)(void *)(reads->base + CAFS_READS_HEADER);
    const uint64_t number = __atomic_fetch_add(head, 1, __ATOMIC_RELAXED);

    __atomic_store_n(&places[number & ((UINT64_C(1) << reads->bits) - 1)],
                     (uint64_t)from << 48 | ino, __ATOMIC_RELAXED);
}

#endif

/* A blob's recipe, as the list of where its bytes come from.
 *
 * Read whole, at one commit, before the first byte is sent: afterwards the blob may be deleted and
 * swept while a slow client still gets it.  Pure, as lookup.h; allocates with malloc(3).
 */
#ifndef CAFS_RECIPE_H
#define CAFS_RECIPE_H

#include "lookup.h"

/* No part of a store may have more raw bytes (its `chunk_max` is at most 8 MiB). */
#define CAFS_RAW_MAX (64U << 20)

struct cafs_extent {
    uint64_t start; /* its first byte in the blob */
    uint64_t chunk; /* CAFS_PART_CHUNK: number of the record, to look it up again */
    uint64_t identity; /* the same: of its content; after a rebuild the number may be another's */
    union {
        uint64_t xxh3;    /* CAFS_PART_CHUNK: of the stored bytes */
        uint64_t literal; /* CAFS_PART_LITERAL: where it begins in `literals` */
    } u;
    uint32_t pack;
    uint32_t offset;
    uint32_t stored;
    uint8_t kind;
    uint8_t codec;
    bool damaged;
};

struct cafs_recipe {
    struct cafs_extent *extents;
    size_t count;
    size_t space;
    uint8_t *literals;
    size_t literal_bytes;
    size_t literal_space;
    uint64_t size; /* of the blob */
};

/* The recipe of a blob of *size* bytes (as its inode has it); 0: it is empty.  Whatever the
 * outcome, *recipe is to be freed by cafs_recipe_free. */
enum cafs_outcome cafs_recipe_read(struct cafs_view *view, uint64_t blob, uint64_t size,
                                   struct cafs_recipe *recipe);

enum cafs_whereabouts {
    CAFS_STAYED, /* or nobody can say */
    CAFS_MOVED,
    CAFS_GONE /* nothing in the store has its content by this number any more */
};

/* Look up again where a chunk lies.  If that is elsewhere than *extent* says, it is put right. */
enum cafs_whereabouts cafs_extent_find(struct cafs_view *view, struct cafs_extent *extent, uint64_t length);

void cafs_recipe_free(struct cafs_recipe *recipe);

/* The part that has a byte of the blob; *at* is below its size. */
size_t cafs_recipe_find(const struct cafs_recipe *recipe, uint64_t at);

/* Where a part ends. */
static inline uint64_t cafs_extent_end(const struct cafs_recipe *recipe, size_t part)
{
    return part + 1 < recipe->count ? recipe->extents[part + 1].start : recipe->size;
}

#endif

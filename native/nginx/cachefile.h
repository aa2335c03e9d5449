/* A file of the cache: the bytes of a blob that was taken apart, as the daemon has rebuilt them.
 *
 * docs/format.md, "Cache file", states the bytes.  Anybody may have cut, replaced or removed the file
 * at any time, and nothing of it was synced: it is worth what it proves.  So it becomes a recipe of
 * one part for each block, with the block's checksum, and a window reads and verifies it as it does
 * packs.  Invariant: there is no such recipe unless footer and table match, and the footer names this
 * store and this content.  No nginx.
 */
#ifndef CAFS_CACHEFILE_H
#define CAFS_CACHEFILE_H

#include "window.h"

#define CAFS_CACHED_MAGIC "CAFSCACH"
#define CAFS_CACHED_VERSION 1
#define CAFS_CACHED_BLOCK 131072U
#define CAFS_CACHED_FOOTER 64U

/* In a recipe, the file itself: no pack has this number. */
#define CAFS_CACHED_PACK 0U

/* Larger blobs are the daemon's: an extent's offset has 32 bits. */
#define CAFS_CACHED_MAX UINT32_MAX

/* Whose bytes a file must hold to be believed. */
struct cafs_cached {
    uint64_t blob;
    uint64_t size; /* above 0 */
    uint8_t store_id[CAFS_STORE_ID];
    uint8_t sha256[16]; /* the first bytes of the blob's */
};

/* Whether a blob of *size* bytes (as its inode has it) was taken apart, and may lie in the cache;
 * fills *cached, all but its store_id. */
bool cafs_cached_find(struct cafs_view *view, uint64_t blob, uint64_t size, struct cafs_cached *cached);

/* Open the file in the store's directory; -1 with errno. */
int cafs_cached_open(const char *store, uint64_t blob);

/* Bytes of table and footer behind a content of *size* bytes. */
static inline size_t cafs_cached_ending(uint64_t size)
{
    return (size_t)((size + CAFS_CACHED_BLOCK - 1) / CAFS_CACHED_BLOCK * 8 + CAFS_CACHED_FOOTER);
}

/* What is wrong with *length* bytes of table and footer; NULL: nothing. */
const char *cafs_cached_fault(const struct cafs_cached *cached, const uint8_t *ending, size_t length);

/* Read table and footer and make the recipe, whose extents lie in CAFS_CACHED_PACK.  With
 * *cached_only* nothing is waited for.  CAFS_BAD_CHUNK sets *why, CAFS_SYSTEM *error.  Whatever the
 * result, *recipe is to be freed by cafs_recipe_free. */
enum cafs_fill cafs_cached_read(int fd, const struct cafs_cached *cached, bool cached_only,
                                struct cafs_recipe *recipe, const char **why, int *error);

#endif

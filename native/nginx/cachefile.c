#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "cachefile.h"

#include "hash.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define CHECKED (CAFS_CACHED_FOOTER - 8) /* of the footer, what its own check covers */

bool cafs_cached_find(struct cafs_view *view, uint64_t blob, uint64_t size, struct cafs_cached *cached)
{
    uint8_t key[CAFS_NUMBER_KEY];
    struct cafs_value value;
    struct cafs_blob record;

    cafs_number_key(key, blob);
    if (cafs_fetch(view, CAFS_BLOBS, blob, key, sizeof key, &value) != CAFS_OK ||
        !cafs_read_blob(&record, value.data, value.length))
        return false;
    if (!(record.flags & CAFS_BLOB_AGED) || record.flags & CAFS_BLOB_UNHASHED || record.size != size ||
        size == 0 || size > CAFS_CACHED_MAX)
        return false;
    cached->blob = blob;
    cached->size = size;
    memcpy(cached->sha256, record.sha256, sizeof cached->sha256);
    return true;
}

int cafs_cached_open(const char *store, uint64_t blob)
{
    char path[4096 + sizeof "/cache/0123456789ab"];

    const int length = snprintf(path, sizeof path, "%s/cache/%012llx", store, (unsigned long long)blob);
    if (length < 0 || (size_t)length >= sizeof path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    /* Whatever else may lie there: to open a FIFO would wait. */
    return open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
}

const char *cafs_cached_fault(const struct cafs_cached *cached, const uint8_t *ending, size_t length)
{
    if (length != cafs_cached_ending(cached->size))
        return "it has a wrong length";
    const uint8_t *footer = ending + length - CAFS_CACHED_FOOTER;
    if (memcmp(footer, CAFS_CACHED_MAGIC, 8) != 0)
        return "it has no footer";
    if (cafs_le32(footer + 8) != CAFS_CACHED_VERSION || cafs_le32(footer + 12) != CAFS_CACHED_BLOCK)
        return "it is of another version";
    if (memcmp(footer + 16, cached->store_id, sizeof cached->store_id) != 0)
        return "it is another store's";
    if (memcmp(footer + 32, cached->sha256, sizeof cached->sha256) != 0 ||
        cafs_le64(footer + 48) != cached->size)
        return "it is another blob's";
    if (cafs_hash(ending, length - CAFS_CACHED_FOOTER + CHECKED) != cafs_le64(footer + CHECKED))
        return "its table does not match its check";
    return NULL;
}

static enum cafs_fill read_ending(int fd, uint64_t at, uint8_t *target, size_t length, bool cached_only,
                                  const char **why, int *error)
{
    size_t done = 0;

    while (done < length) {
        struct iovec piece = {target + done, length - done};
        const ssize_t got = preadv2(fd, &piece, 1, (off_t)(at + done), cached_only ? RWF_NOWAIT : 0);
        if (got > 0) {
            done += (size_t)got;
            continue;
        }
        if (got == 0) {
            *why = "it is too short";
            return CAFS_BAD_CHUNK;
        }
        if (errno == EINTR)
            continue;
        if (cached_only)
            return CAFS_NOT_CACHED;
        *error = errno;
        return CAFS_SYSTEM;
    }
    return CAFS_FILLED;
}

static bool make_recipe(const struct cafs_cached *cached, const uint8_t *table, struct cafs_recipe *recipe)
{
    const size_t count = (size_t)((cached->size + CAFS_CACHED_BLOCK - 1) / CAFS_CACHED_BLOCK);

    recipe->extents = calloc(count, sizeof *recipe->extents);
    if (recipe->extents == NULL)
        return false;
    recipe->count = recipe->space = count;
    recipe->size = cached->size;
    for (size_t block = 0; block < count; block++) {
        struct cafs_extent *extent = &recipe->extents[block];
        const uint64_t start = (uint64_t)block * CAFS_CACHED_BLOCK;
        const uint64_t left = cached->size - start;
        extent->start = start;
        extent->offset = (uint32_t)start;
        extent->stored = left < CAFS_CACHED_BLOCK ? (uint32_t)left : CAFS_CACHED_BLOCK;
        extent->u.xxh3 = cafs_le64(table + 8 * block);
        extent->pack = CAFS_CACHED_PACK;
        extent->kind = CAFS_PART_CHUNK;
        extent->codec = CAFS_CODEC_RAW;
    }
    return true;
}

enum cafs_fill cafs_cached_read(int fd, const struct cafs_cached *cached, bool cached_only,
                                struct cafs_recipe *recipe, const char **why, int *error)
{
    const size_t length = cafs_cached_ending(cached->size);
    enum cafs_fill result;
    struct stat found;

    memset(recipe, 0, sizeof *recipe);
    recipe->size = cached->size;
    if (fstat(fd, &found) != 0) {
        *error = errno;
        return CAFS_SYSTEM;
    }
    if (!S_ISREG(found.st_mode) || found.st_size < 0 || (uint64_t)found.st_size != cached->size + length) {
        *why = "it has a wrong length";
        return CAFS_BAD_CHUNK;
    }
    uint8_t *ending = malloc(length);
    if (ending == NULL) {
        *error = ENOMEM;
        return CAFS_SYSTEM;
    }
    result = read_ending(fd, cached->size, ending, length, cached_only, why, error);
    if (result == CAFS_FILLED) {
        *why = cafs_cached_fault(cached, ending, length);
        if (*why != NULL) {
            result = CAFS_BAD_CHUNK;
        } else if (!make_recipe(cached, ending, recipe)) {
            *error = ENOMEM;
            result = CAFS_SYSTEM;
        }
    }
    free(ending);
    return result;
}

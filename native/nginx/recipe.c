#include "recipe.h"

#include "unfold.h"

#include <stdlib.h>

static enum cafs_outcome damaged(struct cafs_view *view, unsigned database, uint64_t number, const char *what)
{
    view->fault = (struct cafs_fault){database, number, what};
    return CAFS_DAMAGED;
}

/* Room for one more item of a growing array. */
static bool reserve(void **array, size_t *space, size_t wanted, size_t item)
{
    size_t more = *space ? *space * 2 : 16;

    if (wanted <= *space)
        return true;
    if (more < wanted)
        more = wanted;
    void *grown = more > SIZE_MAX / item ? NULL : realloc(*array, more * item);
    if (grown == NULL)
        return false;
    *array = grown;
    *space = more;
    return true;
}

static enum cafs_outcome read_chunk(struct cafs_view *view, uint64_t number, uint64_t length,
                                    struct cafs_extent *extent)
{
    uint8_t key[CAFS_NUMBER_KEY];
    struct cafs_value value;
    struct cafs_chunk chunk;

    cafs_number_key(key, number);
    const enum cafs_outcome outcome = cafs_fetch(view, CAFS_CHUNKS, number, key, sizeof key, &value);
    if (outcome == CAFS_NOT_FOUND)
        return damaged(view, CAFS_CHUNKS, number, "a recipe has a chunk that is not there");
    if (outcome != CAFS_OK)
        return outcome;
    if (!cafs_read_chunk(&chunk, value.data, value.length) || chunk.raw_length != length ||
        chunk.stored_length == 0 || chunk.offset < CAFS_FILE_HEADER || chunk.pack == 0)
        return damaged(view, CAFS_CHUNKS, number, "a chunk's record does not fit its part");
    if (chunk.codec == CAFS_CODEC_RAW && chunk.stored_length != chunk.raw_length)
        return damaged(view, CAFS_CHUNKS, number, "a chunk that is stored raw has two lengths");
    if (chunk.codec > CAFS_CODEC_ZSTD || length > CAFS_RAW_MAX)
        return CAFS_FOREIGN;
    extent->identity = cafs_le64(chunk.sha256);
    extent->u.xxh3 = chunk.xxh3;
    extent->pack = chunk.pack;
    extent->offset = chunk.offset;
    extent->stored = chunk.stored_length;
    extent->codec = chunk.codec;
    extent->damaged = chunk.damaged;
    return CAFS_OK;
}

static enum cafs_outcome add_part(struct cafs_view *view, struct cafs_recipe *recipe,
                                  const struct cafs_part *part, uint64_t start)
{
    if (!reserve((void **)&recipe->extents, &recipe->space, recipe->count + 1, sizeof *recipe->extents))
        return CAFS_NO_MEMORY;
    struct cafs_extent *extent = &recipe->extents[recipe->count];
    memset(extent, 0, sizeof *extent);
    extent->start = start;
    extent->kind = part->kind;
    extent->chunk = part->chunk;
    if (part->kind == CAFS_PART_CHUNK) {
        const enum cafs_outcome outcome = read_chunk(view, part->chunk, part->length, extent);
        if (outcome != CAFS_OK)
            return outcome;
    } else if (part->kind == CAFS_PART_LITERAL) {
        const size_t length = (size_t)part->length;
        if (!reserve((void **)&recipe->literals, &recipe->literal_space, recipe->literal_bytes + length, 1))
            return CAFS_NO_MEMORY;
        memcpy(recipe->literals + recipe->literal_bytes, part->data, length);
        extent->u.literal = recipe->literal_bytes;
        recipe->literal_bytes += length;
    }
    recipe->count++;
    return CAFS_OK;
}

/* What takes more than reading chunks whole is the daemon's: slices, what has to be made, and kinds
 * that this version does not know.  Other bytes that are no part are damage. */
static bool is_foreign(const uint8_t *row, size_t length, size_t at)
{
    return at < length && row[at] > CAFS_PART_HOLE && row[at] != CAFS_ROW_PACKED;
}

static enum cafs_outcome add_plain(struct cafs_view *view, struct cafs_recipe *recipe, uint64_t blob,
                                   const uint8_t *row, size_t length, uint64_t *start)
{
    size_t at = 0;
    struct cafs_part part;

    while (at < length) {
        if (is_foreign(row, length, at))
            return CAFS_FOREIGN;
        if (!cafs_next_part(&part, row, length, &at))
            return damaged(view, CAFS_RECIPES, blob, "a recipe has a part that is none");
        if (part.length > recipe->size - *start)
            return damaged(view, CAFS_RECIPES, blob, "a recipe is longer than its blob");
        const enum cafs_outcome outcome = add_part(view, recipe, &part, *start);
        if (outcome != CAFS_OK)
            return outcome;
        *start += part.length;
    }
    return CAFS_OK;
}

static enum cafs_outcome add_row(struct cafs_view *view, struct cafs_recipe *recipe, uint64_t blob,
                                 const uint8_t *row, size_t length, uint64_t *start)
{
    size_t unfolded;
    size_t frame_length;
    const uint8_t *frame;

    if (!cafs_row_is_packed(row, length))
        return add_plain(view, recipe, blob, row, length, start);
    if (!cafs_read_packed_row(row, length, &unfolded, &frame, &frame_length))
        return damaged(view, CAFS_RECIPES, blob, "a packed row has an impossible length");
    uint8_t *plain = malloc(unfolded);
    if (plain == NULL)
        return CAFS_NO_MEMORY;
    enum cafs_outcome outcome;
    if (!cafs_unfold(plain, unfolded, frame, frame_length) || cafs_row_is_packed(plain, unfolded))
        outcome = damaged(view, CAFS_RECIPES, blob, "a packed row does not unfold");
    else
        outcome = add_plain(view, recipe, blob, plain, unfolded, start);
    free(plain);
    return outcome;
}

static enum cafs_outcome add_rows(struct cafs_view *view, struct cafs_recipe *recipe, uint64_t blob,
                                  uint64_t *start)
{
    uint8_t key[CAFS_RECIPE_KEY];
    struct cafs_value row;

    while (*start < recipe->size) {
        const uint64_t before = *start;
        cafs_recipe_key(key, blob, before);
        enum cafs_outcome outcome = cafs_fetch(view, CAFS_RECIPES, blob, key, sizeof key, &row);
        if (outcome == CAFS_NOT_FOUND)
            return damaged(view, CAFS_RECIPES, blob, "a recipe lacks a row");
        if (outcome == CAFS_OK)
            outcome = add_row(view, recipe, blob, row.data, row.length, start);
        if (outcome != CAFS_OK)
            return outcome;
        if (*start == before)
            return damaged(view, CAFS_RECIPES, blob, "a row has no parts");
    }
    return CAFS_OK;
}

enum cafs_outcome cafs_recipe_read(struct cafs_view *view, uint64_t number, uint64_t size,
                                   struct cafs_recipe *recipe)
{
    uint8_t key[CAFS_NUMBER_KEY];
    struct cafs_value value;
    struct cafs_blob blob;
    uint64_t start = 0;

    memset(recipe, 0, sizeof *recipe);
    recipe->size = size;
    if (number == 0)
        return size == 0 ? CAFS_OK : damaged(view, CAFS_BLOBS, 0, "a file with bytes has no blob");
    if (view->pending != NULL && cafs_pending_test(view->pending, CAFS_PENDING_BLOB, number, 0))
        return CAFS_PENDING;
    cafs_number_key(key, number);
    enum cafs_outcome outcome = cafs_fetch(view, CAFS_BLOBS, number, key, sizeof key, &value);
    if (outcome == CAFS_NOT_FOUND)
        return damaged(view, CAFS_BLOBS, number, "an inode has a blob that is not there");
    if (outcome != CAFS_OK)
        return outcome;
    if (!cafs_read_blob(&blob, value.data, value.length) || blob.size != size)
        return damaged(view, CAFS_BLOBS, number, "a blob's record does not fit its inode");
    if (blob.flags & ~(CAFS_BLOB_UNHASHED | CAFS_BLOB_ROWS | CAFS_BLOB_HOLES | CAFS_BLOB_LEFT))
        return CAFS_FOREIGN;
    if (blob.flags & CAFS_BLOB_ROWS)
        outcome = add_rows(view, recipe, number, &start);
    else
        outcome = add_row(view, recipe, number, blob.recipe, blob.recipe_length, &start);
    if (outcome == CAFS_OK && start != size)
        return damaged(view, CAFS_RECIPES, number, "a recipe is shorter than its blob");
    return outcome;
}

/* Whether the record of this number is missing, or was made for other content since. */
static bool is_gone(struct cafs_view *view, const struct cafs_extent *extent)
{
    uint8_t key[CAFS_NUMBER_KEY];
    struct cafs_value value;
    struct cafs_chunk chunk;

    cafs_number_key(key, extent->chunk);
    switch (cafs_fetch(view, CAFS_CHUNKS, extent->chunk, key, sizeof key, &value)) {
    case CAFS_OK:
        return cafs_read_chunk(&chunk, value.data, value.length) && cafs_le64(chunk.sha256) != extent->identity;
    case CAFS_NOT_FOUND:
        return true;
    default:
        return false;
    }
}

enum cafs_whereabouts cafs_extent_find(struct cafs_view *view, struct cafs_extent *extent, uint64_t length)
{
    struct cafs_extent now = *extent;

    if (extent->kind != CAFS_PART_CHUNK)
        return CAFS_STAYED;
    if (is_gone(view, extent))
        return CAFS_GONE;
    if (read_chunk(view, extent->chunk, length, &now) != CAFS_OK)
        return CAFS_STAYED;
    if (now.pack == extent->pack && now.offset == extent->offset && now.damaged == extent->damaged)
        return CAFS_STAYED;
    *extent = now;
    return now.damaged ? CAFS_STAYED : CAFS_MOVED;
}

void cafs_recipe_free(struct cafs_recipe *recipe)
{
    free(recipe->extents);
    free(recipe->literals);
    memset(recipe, 0, sizeof *recipe);
}

size_t cafs_recipe_find(const struct cafs_recipe *recipe, uint64_t at)
{
    size_t low = 0;
    size_t high = recipe->count;

    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        if (recipe->extents[middle].start <= at)
            low = middle;
        else
            high = middle;
    }
    return low;
}

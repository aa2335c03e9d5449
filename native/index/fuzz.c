/* Fuzz target for cafs_format.h: any bytes as a value, a row of a recipe, and a pending file.
 *
 * Whatever is read stays within the bytes that were given, and a row that is read to its end was
 * read once.  Built with libFuzzer:
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -I../include fuzz.c
 * or with ../chunker/fuzz_main.c, which brings its own inputs, by any compiler.
 */
#include <stdio.h>
#include <stdlib.h>

#include <cafs_format.h>

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);

#define REQUIRE(condition)                                                                           \
    do {                                                                                             \
        if (!(condition)) {                                                                          \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                  \
            abort();                                                                                 \
        }                                                                                            \
    } while (0)

/* Reads every byte, so that a sanitizer sees one that is not there. */
static unsigned touch(const uint8_t *at, size_t length)
{
    unsigned sum = 0;

    for (size_t i = 0; i < length; i++)
        sum += at[i];
    return sum;
}

static unsigned read_row(const uint8_t *row, size_t length)
{
    struct cafs_part part;
    unsigned sum = 0;
    size_t at = 0;

    while (at < length && cafs_next_part(&part, row, length, &at)) {
        REQUIRE(at <= length && part.length > 0);
        if (part.kind == CAFS_PART_LITERAL)
            sum += touch(part.data, (size_t)part.length);
        if (part.kind == CAFS_PART_MADE)
            sum += touch(part.data, 36);
    }
    return sum;
}

static unsigned read_value(const uint8_t *value, size_t length)
{
    struct cafs_entry entry;
    struct cafs_inode inode;
    struct cafs_blob blob;
    struct cafs_chunk chunk;
    struct cafs_pack pack;
    uint64_t generation;
    const uint8_t *frame;
    size_t unfolded, frame_length;
    unsigned sum = 0;

    if (cafs_read_entry(&entry, value, length))
        sum += touch(entry.name, entry.name_length);
    if (cafs_read_inode(&inode, value, length))
        sum += inode.flags;
    if (cafs_read_blob(&blob, value, length)) {
        sum += touch(blob.sha256, 32) + touch(blob.sha1, 20);
        sum += read_row(blob.recipe, blob.recipe_length);
    }
    if (cafs_read_chunk(&chunk, value, length))
        sum += touch(chunk.sha256, 32) + chunk.codec;
    if (cafs_read_pack(&pack, value, length))
        sum += pack.flags;
    if (cafs_read_generation(&generation, value, length))
        sum += (unsigned)(generation & 1);
    if (cafs_row_is_packed(value, length)) {
        if (cafs_read_packed_row(value, length, &unfolded, &frame, &frame_length)) {
            REQUIRE(unfolded > 0 && unfolded <= CAFS_ROW_UNFOLDED_MAX);
            sum += touch(frame, frame_length);
        }
    } else {
        sum += read_row(value, length);
    }
    return sum;
}

static unsigned read_pending(uint8_t *file, size_t length, unsigned bits)
{
    struct cafs_pending pending;
    unsigned marked = 0;

    if (length >= CAFS_PENDING_HEADER) {
        /* Else next to nothing would come this far. */
        memcpy(file, CAFS_PENDING_MAGIC "\1\0\0\0", 12);
        memset(file + 12, 0, 4);
        file[12] = (uint8_t)bits;
    }
    if (!cafs_pending_open(&pending, file, length))
        return 0;
    for (uint64_t number = 0; number < 64; number++)
        marked += cafs_pending_test(&pending, CAFS_PENDING_INODE, number << 40, number);
    return marked + (unsigned)(cafs_pending_clears(&pending) & 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    static const size_t lengths[] = {CAFS_INODE_LENGTH, CAFS_CHUNK_LENGTH, CAFS_PACK_RECORD,
                                     CAFS_COUNTERS_LENGTH, CAFS_BLOB_HEADER, 320};
    volatile unsigned sum = 0;

    if (size == 0)
        return 0;
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths + 1; i++) {
        const size_t length = i < sizeof lengths / sizeof *lengths && lengths[i] < size ? lengths[i] : size;
        /* A copy in memory of exactly its size, so that a sanitizer sees any byte read too far. */
        uint8_t *copy = malloc(length);
        REQUIRE(copy != NULL);
        memcpy(copy, input, length);
        size_t rest = length;
        if (cafs_unseal(input[0] % CAFS_DATABASES, copy, 6 < length ? 6 : length, copy, &rest))
            REQUIRE(rest + CAFS_CHECK == length);
        sum += read_value(copy, length);
        sum += read_pending(copy, length, input[0] & 15U);
        free(copy);
    }
    return 0;
}

/* Fuzz targets of what reads the index: paths, recipes, the pending file. */
#include "fuzz.h"

#include "recipe.h"

#include <stdlib.h>
#include <sys/stat.h>

void put(struct table *table, unsigned database, const void *key, size_t key_length, const void *value,
         size_t length)
{
    if (table->count == TABLE_RECORDS || length + CAFS_CHECK > sizeof table->records->value)
        return;
    struct record *record = &table->records[table->count++];
    record->database = database;
    record->key_length = key_length;
    memcpy(record->key, key, key_length);
    if (length > 0)
        memcpy(record->value, value, length);
    const uint32_t check = cafs_check(database, key, key_length, value, length);
    for (unsigned i = 0; i < CAFS_CHECK; i++)
        record->value[length + i] = (uint8_t)(check >> (8 * i) & 0xff);
    record->length = length + CAFS_CHECK;
}

static enum cafs_get get(void *of, unsigned database, const void *key, size_t key_length,
                         struct cafs_value *value)
{
    struct table *table = of;

    for (size_t i = table->count; i-- > 0;) {
        struct record *record = &table->records[i];
        if (record->database != database || record->key_length != key_length ||
            memcmp(record->key, key, key_length) != 0)
            continue;
        value->data = record->value;
        value->length = record->length;
        return CAFS_GOT;
    }
    return CAFS_ABSENT;
}

void show(struct table *table, struct cafs_view *view)
{
    memset(view, 0, sizeof *view);
    view->get = get;
    view->of = table;
    view->commit = 1;
}

static void put_le(uint8_t *at, uint64_t number, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++, number >>= 8)
        at[i] = (uint8_t)(number & 0xff);
}

/* -- paths ----------------------------------------------------------------------------------- */

static const char *const names[] = {
    "a", "b", "cc", "..", ".", "", "dd/..", "../a", "/x", "b/", "a-rather-long-name-that-no-memo-has-room-for",
};
#define NAMES (sizeof names / sizeof *names)

static void make_inode(struct table *table, uint64_t ino, uint32_t mode, struct bytes *choices)
{
    uint8_t key[CAFS_NUMBER_KEY];
    uint8_t value[CAFS_INODE_LENGTH] = {0};

    put_le(value, mode | (take(choices) * 3U & 0777U), 4);
    put_le(value + 4, take(choices) & 1U, 4);
    put_le(value + 56, take(choices) & 7U, 8);
    put_le(value + 64, take(choices) & 1U, 4);
    cafs_number_key(key, ino);
    put(table, CAFS_INODES, key, sizeof key, value, sizeof value - (take(choices) == 7));
}

static void make_entry(struct table *table, uint64_t parent, uint64_t ino, uint32_t mode, struct bytes *choices)
{
    const char *name = names[take(choices) % NAMES];
    const size_t length = strlen(name);
    uint8_t key[CAFS_ENTRY_KEY];
    uint8_t value[7 + 64] = {0};

    put_le(value, ino, 6);
    value[6] = (uint8_t)(mode >> 12);
    memcpy(value + 7, name, length);
    cafs_entry_key(key, parent, cafs_name_cookie(name, length) + (take(choices) == 3));
    put(table, CAFS_ENTRIES, key, sizeof key, value, 7 + length);
}

static void make_tree(struct table *table, struct bytes *choices)
{
    static const uint32_t modes[] = {S_IFDIR, S_IFDIR, S_IFREG, S_IFLNK, S_IFIFO};

    table->count = 0;
    make_inode(table, CAFS_ROOT, S_IFDIR, choices);
    for (uint64_t ino = 2; ino < 9; ino++) {
        const uint32_t mode = modes[take(choices) % 5];
        make_inode(table, ino, mode, choices);
        make_entry(table, 1 + take(choices) % ino, ino, mode, choices);
        if (mode == S_IFLNK) {
            const char *target = names[take(choices) % NAMES];
            uint8_t key[CAFS_NUMBER_KEY];
            cafs_number_key(key, ino);
            put(table, CAFS_SYMLINKS, key, sizeof key, target, strlen(target));
        }
    }
    /* A value that its check does not fit. */
    if (take(choices) < 40)
        table->records[take(choices) % table->count].value[take(choices) % 8] ^= 1;
}

void fuzz_lookup(const uint8_t *data, size_t size)
{
    static struct table table;
    static struct cafs_memo memo;
    struct bytes choices = {data, size};
    struct cafs_view view;
    struct cafs_node plain = {0};
    struct cafs_node kept = {0};
    char path[256] = "";

    make_tree(&table, &choices);
    show(&table, &view);
    const struct cafs_caller caller = {take(&choices) & 1U, 0, NULL, 0};
    memset(&memo, 0, sizeof memo);
    for (int round = 0; round < 4; round++) {
        path[0] = '\0';
        for (unsigned parts = take(&choices) % 6; parts > 0; parts--) {
            strcat(path, names[take(&choices) % NAMES]);
            strcat(path, "/");
        }
        const size_t length = strlen(path) - (path[0] != '\0' && (take(&choices) & 1U));
        view.memo = NULL;
        const enum cafs_outcome first =
            cafs_lookup(&view, &caller, (const uint8_t *)path, length, &plain);
        /* What is remembered must not change any answer. */
        view.memo = &memo;
        if (cafs_lookup(&view, &caller, (const uint8_t *)path, length, &kept) != first)
            abort();
        if (first == CAFS_OK && kept.ino != plain.ino)
            abort();
    }
}

/* -- recipes --------------------------------------------------------------------------------- */

static size_t make_row(uint8_t *row, struct bytes *choices, uint64_t *length)
{
    size_t made = 0;

    for (unsigned parts = take(choices) % 6; parts > 0; parts--) {
        uint64_t bytes = take(choices);
        row[made++] = (uint8_t)(1 + take(choices) % 6 - (take(choices) == 9));
        switch (row[made - 1]) {
        case CAFS_PART_CHUNK:
            put_le(row + made, bytes, 4);
            put_le(row + made + 4, 1 + (take(choices) & 3U), 6);
            made += 10;
            break;
        case CAFS_PART_LITERAL:
            put_le(row + made, bytes, 2);
            memset(row + made + 2, 'x', bytes);
            made += 2 + (size_t)bytes;
            break;
        case CAFS_PART_MADE:
            memset(row + made, 0, 40);
            put_le(row + made, bytes, 4);
            row[made + 12] = take(choices) & 1U;
            made += 40;
            break;
        case CAFS_PART_SLICE:
            put_le(row + made, bytes, 4);
            put_le(row + made + 4, take(choices) & 3U, 6);
            put_le(row + made + 10, take(choices), 4);
            made += 14;
            break;
        default:
            if (take(choices) == 1)
                bytes = UINT64_MAX - 5;
            put_le(row + made, bytes, 8);
            made += 8;
        }
        *length += bytes;
    }
    if (take(choices) == 5 && made > 0)
        made--;
    if (take(choices) == 6 && made > 6)
        row[0] = CAFS_ROW_PACKED;
    return made;
}

static void make_chunks(struct table *table, struct bytes *choices)
{
    for (uint64_t number = 1; number < 5; number++) {
        uint8_t key[CAFS_NUMBER_KEY];
        uint8_t value[CAFS_CHUNK_LENGTH] = {0};
        const uint8_t raw = take(choices);
        put_le(value + 32, take(choices) & 3U, 4);
        put_le(value + 36, 32U + take(choices), 4);
        put_le(value + 40, raw | (uint32_t)(take(choices) & 3U) << 24 | (uint32_t)(take(choices) == 1) << 31, 4);
        put_le(value + 44, raw, 4);
        cafs_number_key(key, number);
        put(table, CAFS_CHUNKS, key, sizeof key, value, sizeof value);
    }
}

/* A chunk is found again by its number, wherever it is, if it is the same chunk. */
static void check_find(void)
{
    static struct table table;
    struct cafs_view view;
    struct cafs_extent extent = {
        .chunk = 6, .identity = 7, .pack = 3, .offset = 32, .stored = 9, .kind = CAFS_PART_CHUNK};
    uint8_t key[CAFS_NUMBER_KEY];
    uint8_t value[CAFS_CHUNK_LENGTH] = {7};

    table.count = 0;
    show(&table, &view);
    put_le(value + 32, 3, 4);
    put_le(value + 36, 64, 4);
    put_le(value + 40, 9, 4);
    put_le(value + 44, 9, 4);
    cafs_number_key(key, 6);
    put(&table, CAFS_CHUNKS, key, sizeof key, value, sizeof value);
    if (cafs_extent_find(&view, &extent, 9) != CAFS_MOVED || extent.offset != 64)
        abort();
    if (cafs_extent_find(&view, &extent, 9) != CAFS_STAYED)
        abort();
    extent.identity = 8;
    if (cafs_extent_find(&view, &extent, 9) != CAFS_GONE)
        abort();
    extent.identity = 7;
    extent.chunk = 5;
    if (cafs_extent_find(&view, &extent, 9) != CAFS_GONE)
        abort();
}

void fuzz_recipe(const uint8_t *data, size_t size)
{
    static struct table table;
    static uint8_t row[2048];
    struct bytes choices = {data, size};
    struct cafs_recipe recipe;
    struct cafs_view view;
    uint8_t blob[CAFS_BLOB_HEADER + 2048] = {0};
    uint8_t key[CAFS_RECIPE_KEY];
    uint64_t length = 0;
    size_t made;

    check_find();
    table.count = 0;
    show(&table, &view);
    make_chunks(&table, &choices);
    const unsigned flags = take(&choices) & (take(&choices) == 2 ? 63U : 3U);
    if (flags & CAFS_BLOB_ROWS) {
        for (unsigned rows = take(&choices) % 4; rows > 0; rows--) {
            cafs_recipe_key(key, 9, length);
            made = make_row(row, &choices, &length);
            put(&table, CAFS_RECIPES, key, sizeof key, row, made);
        }
        made = 0;
    } else {
        made = make_row(blob + CAFS_BLOB_HEADER, &choices, &length);
    }
    if (take(&choices) == 4)
        length++;
    put_le(blob, length, 8);
    put_le(blob + 12, flags, 4);
    cafs_number_key(key, 9);
    put(&table, CAFS_BLOBS, key, CAFS_NUMBER_KEY, blob, CAFS_BLOB_HEADER + made);
    const enum cafs_outcome outcome = cafs_recipe_read(&view, 9, length, &recipe);
    if (outcome == CAFS_OK) {
        uint64_t start = 0;
        for (size_t part = 0; part < recipe.count; part++) {
            if (recipe.extents[part].start != start || cafs_extent_end(&recipe, part) <= start)
                abort();
            start = cafs_extent_end(&recipe, part);
        }
        if (start != length)
            abort();
        for (unsigned i = 0; i < 8 && length > 0; i++) {
            const uint64_t at = take32(&choices) % length;
            const size_t part = cafs_recipe_find(&recipe, at);
            if (recipe.extents[part].start > at || cafs_extent_end(&recipe, part) <= at)
                abort();
        }
    }
    cafs_recipe_free(&recipe);
}

/* -- the pending file ------------------------------------------------------------------------ */

void fuzz_pending(const uint8_t *data, size_t size)
{
    struct bytes choices = {data, size};
    struct cafs_pending pending;
    const unsigned bits = 9U + take(&choices) % 4;
    const size_t length = cafs_pending_file_bytes(bits) - (take(&choices) == 1);
    /* As mapped: aligned, and not a byte longer than the file. */
    uint64_t *words = malloc(length + 8);
    if (words == NULL)
        return;
    uint8_t *file = (uint8_t *)words;
    memset(file, take(&choices), length);
    memcpy(file, CAFS_PENDING_MAGIC, 8);
    put_le(file + 8, 1U + (take(&choices) == 2), 4);
    put_le(file + 12, take(&choices) == 3 ? take32(&choices) : bits, 4);
    if (cafs_pending_open(&pending, file, length)) {
        for (unsigned kind = 1; kind < 4; kind++)
            (void)cafs_pending_test(&pending, kind, take32(&choices), (uint64_t)take32(&choices) << 31);
        (void)cafs_pending_clears(&pending);
    }
    free(words);
}

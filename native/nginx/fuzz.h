/* Fuzz targets: each reads its choices from bytes, so libFuzzer or the seeded driver in fuzz_main.c
 * can feed it.  A broken promise ends the process (abort, or a sanitizer).
 */
#ifndef CAFS_FUZZ_H
#define CAFS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

void fuzz_lookup(const uint8_t *data, size_t size);
void fuzz_recipe(const uint8_t *data, size_t size);
void fuzz_window(const uint8_t *data, size_t size);
void fuzz_link(const uint8_t *data, size_t size);
void fuzz_pending(const uint8_t *data, size_t size);
void fuzz_cachefile(const uint8_t *data, size_t size);

/* -- what the targets share ------------------------------------------------------------------ */

struct bytes {
    const uint8_t *at;
    size_t left;
};

static inline uint8_t take(struct bytes *bytes)
{
    if (bytes->left == 0)
        return 0;
    bytes->left--;
    return *bytes->at++;
}

static inline uint32_t take32(struct bytes *bytes)
{
    uint32_t number = 0;
    for (int i = 0; i < 4; i++)
        number = number << 8 | take(bytes);
    return number;
}

/* An index in memory; keys and values are given without a check, which put() appends. */
#define TABLE_RECORDS 64

struct record {
    unsigned database;
    uint8_t key[64];
    size_t key_length;
    uint8_t value[2048];
    size_t length;
};

struct table {
    struct record records[TABLE_RECORDS];
    size_t count;
};

struct cafs_view;

void put(struct table *table, unsigned database, const void *key, size_t key_length, const void *value,
         size_t length);
void show(struct table *table, struct cafs_view *view);

#endif

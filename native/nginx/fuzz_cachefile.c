/* Fuzz target of the cache's files: right bytes or none, whatever was done to the file. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "fuzz.h"

#include "cachefile.h"
#include "hash.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define CONTENT_MAX (2U * CAFS_CACHED_BLOCK + 300U)
#define ENDING_MAX (3U * 8U + CAFS_CACHED_FOOTER)

static void put_le(uint8_t *at, uint64_t number, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++, number >>= 8)
        at[i] = (uint8_t)(number & 0xff);
}

/* The ending of *content* as the daemon writes it; its length. */
static size_t make_ending(const struct cafs_cached *cached, const uint8_t *content, uint8_t *ending)
{
    size_t made = 0;

    for (uint64_t start = 0; start < cached->size; start += CAFS_CACHED_BLOCK, made += 8) {
        const uint64_t left = cached->size - start;
        const size_t length = left < CAFS_CACHED_BLOCK ? (size_t)left : CAFS_CACHED_BLOCK;
        put_le(ending + made, cafs_hash(content + start, length), 8);
    }
    uint8_t *footer = ending + made;
    memcpy(footer, CAFS_CACHED_MAGIC, 8);
    put_le(footer + 8, CAFS_CACHED_VERSION, 4);
    put_le(footer + 12, CAFS_CACHED_BLOCK, 4);
    memcpy(footer + 16, cached->store_id, CAFS_STORE_ID);
    memcpy(footer + 32, cached->sha256, sizeof cached->sha256);
    put_le(footer + 48, cached->size, 8);
    put_le(footer + 56, cafs_hash(ending, made + 56), 8);
    return made + CAFS_CACHED_FOOTER;
}

/* Bytes that are no file, in a buffer of their very size. */
static void judge_noise(struct cafs_cached cached, const uint8_t *data, size_t size)
{
    uint8_t *ending = malloc(size);

    if (ending == NULL)
        return;
    memcpy(ending, data, size);
    if (size >= CAFS_CACHED_FOOTER)
        cached.size = (size - CAFS_CACHED_FOOTER) / 8 * CAFS_CACHED_BLOCK;
    if (cafs_cached_fault(&cached, ending, size) == NULL)
        abort();
    /* The beginning of a footer that is right. */
    if (size >= CAFS_CACHED_FOOTER) {
        memcpy(ending + size - CAFS_CACHED_FOOTER, CAFS_CACHED_MAGIC, 8);
        put_le(ending + size - CAFS_CACHED_FOOTER + 8, CAFS_CACHED_VERSION, 4);
        put_le(ending + size - CAFS_CACHED_FOOTER + 12, CAFS_CACHED_BLOCK, 4);
        if (cafs_cached_fault(&cached, ending, size) == NULL)
            abort();
    }
    free(ending);
}

static void read_all(struct cafs_recipe *recipe, int fd, const uint8_t *content, struct bytes *choices, int damaged)
{
    struct cafs_window window = {.verify = true};
    uint64_t at = take32(choices) % recipe->size;
    struct cafs_packs packs;

    cafs_packs_init(&packs, -1);
    cafs_packs_adopt(&packs, CAFS_CACHED_PACK, fd);
    while (at < recipe->size) {
        if (!cafs_window_plan(&window, recipe, at, recipe->size, 2 * (size_t)CAFS_CACHED_BLOCK))
            abort();
        const enum cafs_fill filled = cafs_window_fill(&window, recipe, &packs, false);
        if (filled != CAFS_FILLED && (!damaged || filled != CAFS_BAD_CHUNK))
            abort();
        if (filled == CAFS_FILLED &&
            memcmp(window.bytes, content + window.start, (size_t)(window.end - window.start)) != 0)
            abort();
        at = window.end;
    }
    cafs_window_free(&window);
    cafs_packs_close(&packs);
}

void fuzz_cachefile(const uint8_t *data, size_t size)
{
    static uint8_t content[CONTENT_MAX];
    uint8_t ending[ENDING_MAX];
    struct bytes choices = {data, size};
    struct cafs_cached cached = {.blob = 7};
    struct cafs_recipe recipe;
    const char *why = NULL;
    int error = 0;

    /* Mostly small ones; some that end where a block does, or near it. */
    cached.size = 1U + take(&choices);
    if (take(&choices) < 32)
        cached.size += (take(&choices) & 1U) * CAFS_CACHED_BLOCK + CAFS_CACHED_BLOCK - 128U;
    for (size_t i = 0; i < cached.size; i += 61)
        content[i] = take(&choices);
    for (size_t i = 0; i < 16; i++)
        cached.store_id[i] = cached.sha256[15 - i] = take(&choices);
    const size_t length = make_ending(&cached, content, ending);
    const int fd = memfd_create("cached", MFD_CLOEXEC);
    if (fd < 0 || pwrite(fd, content, (size_t)cached.size, 0) != (ssize_t)cached.size ||
        pwrite(fd, ending, length, (off_t)cached.size) != (ssize_t)length)
        abort();
    const uint64_t whole = cached.size + length;
    const uint64_t place = take32(&choices) % whole;
    const unsigned change = take(&choices) % 6;
    const uint8_t byte = (uint8_t)((place < cached.size ? content[place] : ending[place - cached.size]) ^
                                   1U << (take(&choices) & 7U));
    struct cafs_cached asked = cached;
    switch (change) {
    case 0:
        break;
    case 1:
        if (pwrite(fd, &byte, 1, (off_t)place) != 1)
            abort();
        break;
    case 2:
        if (ftruncate(fd, (off_t)place) != 0)
            abort();
        break;
    case 3:
        if (ftruncate(fd, (off_t)(whole + 1 + take(&choices))) != 0)
            abort();
        break;
    case 4:
        asked.sha256[take(&choices) & 15U] ^= 1;
        break;
    default:
        asked.size += 1 + take(&choices);
    }
    enum cafs_fill filled = cafs_cached_read(fd, &asked, true, &recipe, &why, &error);
    if (filled == CAFS_NOT_CACHED) {
        cafs_recipe_free(&recipe);
        filled = cafs_cached_read(fd, &asked, false, &recipe, &why, &error);
    }
    if (filled == CAFS_FILLED) {
        /* What lies about the file as a whole must have been found out. */
        if (change > 1 || (change == 1 && place >= cached.size))
            abort();
        read_all(&recipe, fd, content, &choices, change == 1);
    } else {
        if (filled != CAFS_BAD_CHUNK || why == NULL || change == 0 || recipe.count != 0)
            abort();
        close(fd);
    }
    cafs_recipe_free(&recipe);
    judge_noise(asked, data, size);
}

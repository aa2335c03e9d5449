/* Fuzz targets of what is sent and of what comes from the network: windows, links. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "fuzz.h"

#include "hash.h"
#include "link.h"
#include "window.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zstd.h>

/* -- windows --------------------------------------------------------------------------------- */

#define BLOB_MAX 8192U
#define PARTS_MAX 24U

struct sample {
    struct cafs_extent extents[PARTS_MAX];
    uint8_t blob[BLOB_MAX];
    uint8_t pack[2 * BLOB_MAX];
    size_t pack_length;
    struct cafs_recipe recipe;
};

static void add_chunk(struct sample *sample, struct cafs_extent *extent, const uint8_t *raw, size_t length,
                      struct bytes *choices)
{
    uint8_t *stored = sample->pack + sample->pack_length;
    const size_t room = sizeof sample->pack - sample->pack_length;
    size_t bytes = length;

    extent->kind = CAFS_PART_CHUNK;
    extent->pack = 1;
    extent->offset = (uint32_t)sample->pack_length;
    extent->codec = take(choices) & 1U;
    if (extent->codec == CAFS_CODEC_ZSTD) {
        bytes = ZSTD_compress(stored, room, raw, length, 1);
        if (ZSTD_isError(bytes))
            abort();
    } else {
        memcpy(stored, raw, length);
    }
    extent->stored = (uint32_t)bytes;
    extent->u.xxh3 = cafs_hash(stored, bytes);
    /* A gap keeps two extents from being neighbours. */
    sample->pack_length += bytes + (take(choices) & 1U);
}

static void make_sample(struct sample *sample, struct bytes *choices)
{
    memset(sample, 0, sizeof *sample);
    sample->pack_length = CAFS_FILE_HEADER;
    sample->recipe.extents = sample->extents;
    sample->recipe.literals = sample->blob;
    for (unsigned parts = 1 + take(choices) % (PARTS_MAX - 1); parts > 0; parts--) {
        struct cafs_extent *extent = &sample->extents[sample->recipe.count++];
        const size_t length = 1 + take(choices);
        uint8_t *raw = sample->blob + sample->recipe.size;
        for (size_t i = 0; i < length; i++)
            raw[i] = (uint8_t)(i * take(choices));
        extent->start = sample->recipe.size;
        switch (take(choices) % 4) {
        case 0:
            extent->kind = CAFS_PART_HOLE;
            memset(raw, 0, length);
            break;
        case 1:
            extent->kind = CAFS_PART_LITERAL;
            extent->u.literal = sample->recipe.size;
            break;
        default:
            add_chunk(sample, extent, raw, length, choices);
        }
        sample->recipe.size += length;
    }
}

static void read_all(struct sample *sample, struct cafs_packs *packs, struct bytes *choices, int damaged)
{
    struct cafs_window window = {.verify = true};
    uint64_t at = take32(choices) % sample->recipe.size;

    while (at < sample->recipe.size) {
        if (!cafs_window_plan(&window, &sample->recipe, at, sample->recipe.size, 1 + take(choices) * 4U))
            abort();
        if (window.start > at || window.end <= at)
            abort();
        const enum cafs_fill filled = cafs_window_fill(&window, &sample->recipe, packs, false);
        if (filled != CAFS_FILLED && (!damaged || filled != CAFS_BAD_CHUNK))
            abort();
        if (filled == CAFS_BAD_CHUNK &&
            (window.bad < window.first || window.bad >= window.last || window.why == NULL))
            abort();
        /* Right bytes or none, also of a pack that is not what it was. */
        if (filled == CAFS_FILLED && memcmp(window.bytes, sample->blob + window.start,
                                            (size_t)(window.end - window.start)) != 0)
            abort();
        cafs_window_ahead(&window, &sample->recipe, packs, 1000);
        at = window.end;
    }
    cafs_window_free(&window);
}

void fuzz_window(const uint8_t *data, size_t size)
{
    static struct sample sample;
    struct bytes choices = {data, size};
    char directory[] = "/tmp/cafs-fuzz-XXXXXX";
    char name[sizeof directory + sizeof "/00000001.pack"];
    struct cafs_packs packs;

    make_sample(&sample, &choices);
    if (mkdtemp(directory) == NULL)
        abort();
    snprintf(name, sizeof name, "%s/00000001.pack", directory);
    const int damaged = take(&choices) & 1;
    if (damaged) {
        sample.pack[take32(&choices) % sample.pack_length] ^= 1;
        if (take(&choices) & 1)
            sample.pack_length -= take32(&choices) % sample.pack_length;
    }
    const int fd = open(name, O_WRONLY | O_CREAT | O_EXCL, 0600);
    if (fd < 0 || write(fd, sample.pack, sample.pack_length) != (ssize_t)sample.pack_length)
        abort();
    close(fd);
    const int packs_fd = open(directory, O_RDONLY | O_DIRECTORY);
    cafs_packs_init(&packs, packs_fd);
    read_all(&sample, &packs, &choices, damaged);
    cafs_packs_close(&packs);
    close(packs_fd);
    unlink(name);
    rmdir(directory);
}

/* -- links ----------------------------------------------------------------------------------- */

static struct cafs_text text(const char *from)
{
    return (struct cafs_text){(const uint8_t *)from, strlen(from)};
}

static struct cafs_text piece(struct bytes *choices, size_t most)
{
    size_t length = take(choices) % (most + 1);
    if (length > choices->left)
        length = choices->left;
    const struct cafs_text made = {choices->at, length};
    choices->at += length;
    choices->left -= length;
    return made;
}

void fuzz_link(const uint8_t *data, size_t size)
{
    struct bytes choices = {data, size};
    struct cafs_link link = {
        text("GET"),        text("cc-droplets/ab/cd/abcd1234-0000/deadbeef"),
        text("X0fNmzwnl-Xt3ks3IwsWP2gZ1cB9hbaz8dD5nBwnfUs"),
        text("1700000000"), text("3600"),
    };
    const struct cafs_text secret = text("s3cr3t");

    if (!cafs_link_is_good(&link, secret, 1700003600) || cafs_link_is_good(&link, secret, 1700003601))
        abort();
    /* Any change makes it worthless. */
    switch (take(&choices) % 5) {
    case 0:
        link.verb = piece(&choices, 2);
        break;
    case 1:
        link.path = piece(&choices, 39);
        break;
    case 2:
        link.signature = piece(&choices, 60);
        break;
    case 3:
        link.signed_at = piece(&choices, 9);
        break;
    default:
        link.lifetime = piece(&choices, 3);
    }
    if (cafs_link_is_good(&link, secret, 1700000000))
        abort();
}

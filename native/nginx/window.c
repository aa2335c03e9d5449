#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "window.h"

#include "hash.h"
#include "unfold.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

void cafs_packs_init(struct cafs_packs *packs, int directory)
{
    packs->directory = directory;
    packs->used = 0;
    packs->next = 0;
}

void cafs_packs_close(struct cafs_packs *packs)
{
    for (unsigned i = 0; i < packs->used; i++)
        close(packs->fds[i]);
    packs->used = 0;
}

void cafs_packs_adopt(struct cafs_packs *packs, uint32_t number, int fd)
{
    packs->numbers[0] = number;
    packs->fds[0] = fd;
    packs->used = 1;
}

int cafs_packs_open(struct cafs_packs *packs, uint32_t number)
{
    char name[sizeof "01234567.pack"];

    for (unsigned i = 0; i < packs->used; i++) {
        if (packs->numbers[i] == number)
            return packs->fds[i];
    }
    snprintf(name, sizeof name, "%08x.pack", number);
    const int fd = openat(packs->directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return -1;
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    unsigned place = packs->used;
    if (place < CAFS_OPEN_PACKS) {
        packs->used++;
    } else {
        place = packs->next;
        packs->next = (place + 1) % CAFS_OPEN_PACKS;
        close(packs->fds[place]);
    }
    packs->numbers[place] = number;
    packs->fds[place] = fd;
    return fd;
}

void cafs_packs_hold(struct cafs_packs *packs, const struct cafs_recipe *recipe)
{
    uint32_t last = 0;

    for (size_t part = 0; part < recipe->count && packs->used < CAFS_OPEN_PACKS; part++) {
        const struct cafs_extent *extent = &recipe->extents[part];
        if (extent->kind != CAFS_PART_CHUNK || extent->pack == last)
            continue;
        last = extent->pack;
        (void)cafs_packs_open(packs, last);
    }
}

static bool grow(uint8_t **bytes, size_t *space, size_t wanted)
{
    if (wanted <= *space)
        return true;
    /* What was there before is not needed any more. */
    free(*bytes);
    *bytes = malloc(wanted);
    *space = *bytes == NULL ? 0 : wanted;
    return *bytes != NULL;
}

bool cafs_window_plan(struct cafs_window *window, const struct cafs_recipe *recipe, uint64_t at, uint64_t end,
                      size_t wanted)
{
    size_t part = cafs_recipe_find(recipe, at);
    const struct cafs_extent *extent = &recipe->extents[part];

    window->first = part;
    window->last = part + 1;
    window->start = extent->start;
    window->end = cafs_extent_end(recipe, part);
    if (extent->kind == CAFS_PART_HOLE) {
        /* A hole may be longer than all memory: only a piece of it, which begins where it is wanted. */
        window->start = at;
        if (window->end - at > wanted)
            window->end = at + wanted;
    }
    for (part++; part < recipe->count && recipe->extents[part].start < end; part++) {
        const uint64_t next = cafs_extent_end(recipe, part);
        if (window->end != recipe->extents[part].start || next - window->start > wanted)
            break;
        window->end = next;
        window->last = part + 1;
    }
    /* At once what the windows after it will want, too. */
    uint64_t space = recipe->size < wanted ? recipe->size : wanted;
    if (space < window->end - window->start)
        space = window->end - window->start;
    return grow(&window->bytes, &window->space, (size_t)space);
}

/* Read exactly so many bytes of a pack. */
static enum cafs_fill read_stored(struct cafs_window *window, size_t part, struct cafs_packs *packs,
                                  const struct cafs_extent *extent, uint8_t *target, size_t length,
                                  bool cached_only)
{
    size_t done = 0;
    const int fd = cafs_packs_open(packs, extent->pack);

    window->bad = part;
    if (fd < 0) {
        window->error = errno;
        if (errno != ENOENT)
            return CAFS_SYSTEM;
        window->why = "its pack is not there";
        return CAFS_BAD_CHUNK;
    }
    while (done < length) {
        struct iovec piece = {target + done, length - done};
        const ssize_t got =
            preadv2(fd, &piece, 1, (off_t)(extent->offset + done), cached_only ? RWF_NOWAIT : 0);
        if (got > 0) {
            done += (size_t)got;
            continue;
        }
        if (got == 0) {
            window->why = "its pack ends before it does";
            return CAFS_BAD_CHUNK;
        }
        if (errno == EINTR)
            continue;
        /* EOPNOTSUPP, ENOSYS: a filesystem or kernel that cannot tell. */
        if (cached_only)
            return CAFS_NOT_CACHED;
        window->error = errno;
        if (errno != EIO)
            return CAFS_SYSTEM;
        window->why = "the disk cannot read it";
        return CAFS_BAD_CHUNK;
    }
    return CAFS_FILLED;
}

/* Chunks that follow one another in a pack: one read. */
struct run {
    size_t first; /* parts [first, next) */
    size_t next;
    size_t stored;
    bool raw; /* all of them are stored raw, so they lie in the blob as they do in the pack */
};

static struct run find_run(const struct cafs_window *window, const struct cafs_recipe *recipe, size_t part)
{
    const struct cafs_extent *extents = recipe->extents;
    struct run run = {part, part + 1, extents[part].stored, extents[part].codec == CAFS_CODEC_RAW};

    while (run.next < window->last) {
        const struct cafs_extent *follower = &extents[run.next];
        if (follower->kind != CAFS_PART_CHUNK || follower->damaged ||
            follower->pack != extents[part].pack ||
            follower->offset != (uint64_t)extents[part].offset + run.stored)
            break;
        run.stored += follower->stored;
        run.raw = run.raw && follower->codec == CAFS_CODEC_RAW;
        run.next++;
    }
    return run;
}

static enum cafs_fill fill_run(struct cafs_window *window, const struct cafs_recipe *recipe, struct run run,
                               struct cafs_packs *packs, uint8_t *target, bool cached_only)
{
    const struct cafs_extent *extents = recipe->extents;
    uint8_t *stored = target;

    if (!run.raw) {
        if (!grow(&window->scratch, &window->scratch_space, run.stored)) {
            window->error = ENOMEM;
            return CAFS_SYSTEM;
        }
        stored = window->scratch;
    }
    enum cafs_fill result =
        read_stored(window, run.first, packs, &extents[run.first], stored, run.stored, cached_only);
    if (result == CAFS_BAD_CHUNK && run.next - run.first > 1) {
        /* One of them is to blame: name that one. */
        for (size_t part = run.first; part < run.next; part++) {
            const bool raw = extents[part].codec == CAFS_CODEC_RAW;
            const struct run single = {part, part + 1, extents[part].stored, raw};
            result = fill_run(window, recipe, single, packs, target, cached_only);
            if (result != CAFS_FILLED)
                return result;
            target += cafs_extent_end(recipe, part) - extents[part].start;
        }
        return result;
    }
    if (result != CAFS_FILLED)
        return result;
    for (size_t part = run.first; part < run.next; part++) {
        const struct cafs_extent *extent = &extents[part];
        const size_t length = (size_t)(cafs_extent_end(recipe, part) - extent->start);
        window->bad = part;
        if (window->verify && cafs_hash(stored, extent->stored) != extent->u.xxh3) {
            window->why = "its bytes do not match their checksum";
            return CAFS_BAD_CHUNK;
        }
        if (extent->codec == CAFS_CODEC_ZSTD) {
            if (!cafs_unfold(target, length, stored, extent->stored)) {
                window->why = "its bytes do not unfold";
                return CAFS_BAD_CHUNK;
            }
        } else if (!run.raw) {
            memcpy(target, stored, length);
        }
        stored += extent->stored;
        target += length;
    }
    return CAFS_FILLED;
}

enum cafs_fill cafs_window_fill(struct cafs_window *window, const struct cafs_recipe *recipe,
                                struct cafs_packs *packs, bool cached_only)
{
    uint8_t *target = window->bytes;
    enum cafs_fill result;
    size_t next;

    for (size_t part = window->first; part < window->last; part = next) {
        const struct cafs_extent *extent = &recipe->extents[part];
        uint64_t from = extent->start > window->start ? extent->start : window->start;
        uint64_t to = cafs_extent_end(recipe, part);
        if (to > window->end)
            to = window->end;
        next = part + 1;
        if (extent->kind == CAFS_PART_LITERAL) {
            memcpy(target, recipe->literals + extent->u.literal, (size_t)(to - from));
            result = CAFS_FILLED;
        } else if (extent->kind == CAFS_PART_HOLE) {
            memset(target, 0, (size_t)(to - from));
            result = CAFS_FILLED;
        } else if (extent->damaged) {
            window->bad = part;
            window->why = "it is known to be damaged";
            result = CAFS_BAD_CHUNK;
        } else {
            const struct run run = find_run(window, recipe, part);
            next = run.next;
            to = cafs_extent_end(recipe, next - 1);
            result = fill_run(window, recipe, run, packs, target, cached_only);
        }
        if (result != CAFS_FILLED)
            return result;
        target += to - from;
    }
    return CAFS_FILLED;
}

bool cafs_packs_have(struct cafs_packs *packs, const struct cafs_recipe *recipe, size_t part)
{
    const uint64_t start = recipe->extents[part].start;
    struct cafs_window window = {.verify = true};

    const bool are_right = cafs_window_plan(&window, recipe, start, start + 1, 0) &&
                           cafs_window_fill(&window, recipe, packs, false) == CAFS_FILLED;
    cafs_window_free(&window);
    return are_right;
}

void cafs_window_ahead(const struct cafs_window *window, const struct cafs_recipe *recipe,
                       struct cafs_packs *packs, uint64_t bytes)
{
    const struct cafs_extent *last = &recipe->extents[window->last - 1];
    size_t part = window->last;

    while (part < recipe->count && recipe->extents[part].start < window->end + bytes) {
        const struct cafs_extent *first = &recipe->extents[part++];
        uint64_t length = first->stored;
        if (first->kind != CAFS_PART_CHUNK)
            continue;
        const bool follows = last->kind == CAFS_PART_CHUNK && last->pack == first->pack &&
                             (uint64_t)last->offset + last->stored == first->offset;
        for (last = first; part < recipe->count; last = &recipe->extents[part++]) {
            const struct cafs_extent *follower = &recipe->extents[part];
            if (follower->kind != CAFS_PART_CHUNK || follower->pack != first->pack ||
                follower->offset != first->offset + length || length > bytes)
                break;
            length += follower->stored;
        }
        if (follows)
            continue;
        const int fd = cafs_packs_open(packs, first->pack);
        if (fd >= 0)
            (void)posix_fadvise(fd, (off_t)first->offset, (off_t)length, POSIX_FADV_WILLNEED);
    }
}

void cafs_window_free(struct cafs_window *window)
{
    free(window->bytes);
    free(window->scratch);
    window->bytes = window->scratch = NULL;
    window->space = window->scratch_space = 0;
}

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#define RETRY_MS 2000U   /* between two attempts at a store that cannot be opened */
#define COMPARE_MS 1000U /* how long a replaced index or an unannounced daemon may go unnoticed */

bool cafs_store_init(struct cafs_store *store, const char *path, const char *pending_path)
{
    memset(store, 0, sizeof *store);
    store->pending_fd = store->lock_fd = store->packs_fd = -1;
    const int first = snprintf(store->path, sizeof store->path, "%s", path);
    const int second = snprintf(store->pending_path, sizeof store->pending_path, "%s", pending_path);
    store->pending_given = second > 0;
    return first > 0 && (size_t)first < sizeof store->path && second >= 0 &&
           (size_t)second < sizeof store->pending_path && cafs_index_init(&store->index, path);
}

static int open_below(const char *directory, const char *name, int flags)
{
    char path[4096 + 16];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return open(path, flags | O_CLOEXEC);
}

static void forget_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* The reads file beside the pending file.  Without it, or without the right to write to it, reads
 * are not told, and that is all. */
static void open_reads(struct cafs_store *store)
{
    char path[sizeof store->pending_path + sizeof CAFS_READS_SUFFIX];
    struct stat found;

    snprintf(path, sizeof path, "%s" CAFS_READS_SUFFIX, store->pending_path);
    const int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return;
    if (fstat(fd, &found) == 0 && found.st_size >= CAFS_READS_HEADER) {
        const size_t length = (size_t)found.st_size;
        void *map = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (map != MAP_FAILED && !cafs_reads_open(&store->reads, map, length))
            munmap(map, length);
    }
    close(fd);
}

static void close_reads(struct cafs_store *store)
{
    if (store->reads.base != NULL)
        munmap(store->reads.base, store->reads.length);
    store->reads.base = NULL;
}

void cafs_store_note_read(struct cafs_store *store, uint64_t ino, enum cafs_reads_from from)
{
    if (store->reads.base != NULL)
        cafs_reads_note(&store->reads, ino, from);
}

static void close_pending(struct cafs_store *store)
{
    close_reads(store);
    if (store->map != NULL)
        munmap(store->map, store->map_length);
    store->map = NULL;
    forget_fd(&store->pending_fd);
}

static void close_index(struct cafs_store *store)
{
    cafs_index_close(&store->index);
    forget_fd(&store->lock_fd);
    forget_fd(&store->packs_fd);
}

void cafs_store_close(struct cafs_store *store)
{
    close_pending(store);
    close_index(store);
}

/* The bytes of 32 hexadecimal digits, which were looked at before. */
static void parse_id(uint8_t id[CAFS_STORE_ID], const char *digits)
{
    for (size_t i = 0; i < 2 * (size_t)CAFS_STORE_ID; i++) {
        const unsigned digit = (unsigned)(digits[i] <= '9' ? digits[i] - '0' : digits[i] - 'a' + 10);
        id[i / 2] = (uint8_t)((id[i / 2] << 4 | digit) & 0xff);
    }
}

/* Read `store.toml`: its version, and its id, also for the name of the pending file. */
static bool identify(struct cafs_store *store)
{
    char text[4096];
    char id[33] = "";
    unsigned version = 0;
    const char *line;
    ssize_t length = -1;
    const int fd = open_below(store->path, "store.toml", O_RDONLY);

    if (fd >= 0) {
        length = read(fd, text, sizeof text - 1);
        close(fd);
    }
    if (length < 0) {
        snprintf(store->index.error, sizeof store->index.error, "store.toml: %s", strerror(errno));
        return false;
    }
    text[length] = '\0';
    for (line = text; line != NULL && *line != '['; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (*line == '[')
            break;
        (void)(sscanf(line, "format_version = %9u", &version) == 1 ||
               sscanf(line, "id = \"%32[0-9a-f]\"", id) == 1);
    }
    if (version == 0 || version > CAFS_FORMAT_VERSION || strlen(id) != 32) {
        snprintf(store->index.error, sizeof store->index.error,
                 version > CAFS_FORMAT_VERSION ? "it has a newer format than this module"
                                               : "store.toml cannot be understood");
        return false;
    }
    parse_id(store->id, id);
    if (!store->pending_given)
        snprintf(store->pending_path, sizeof store->pending_path, "/dev/shm/cafs-%s.pending", id);
    store->identified = true;
    return true;
}

/* A file that is not whole, or of another version, counts as none: then the lock decides. */
static bool open_pending(struct cafs_store *store)
{
    struct stat found;

    store->pending_fd = open(store->pending_path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (store->pending_fd < 0)
        return false;
    if (fstat(store->pending_fd, &found) == 0 && found.st_size >= CAFS_PENDING_HEADER) {
        store->map_length = (size_t)found.st_size;
        void *map = mmap(NULL, store->map_length, PROT_READ, MAP_SHARED, store->pending_fd, 0);
        if (map != MAP_FAILED) {
            store->map = map;
            store->abandoned = false;
            if (cafs_pending_open(&store->pending, map, store->map_length) &&
                cafs_pending_alive(&store->pending)) {
                open_reads(store);
                return true;
            }
        }
    }
    close_pending(store);
    return false;
}

/* A daemon makes a new file at each start, after telling those who have the old one; so it does at
 * a clean stop.  Whoever takes the file away by hand is noticed with the next comparison. */
static bool pending_is_current(const struct cafs_store *store, bool compare)
{
    struct stat found;

    if (store->map == NULL || !cafs_pending_alive(&store->pending))
        return false;
    return !compare || (fstat(store->pending_fd, &found) == 0 && found.st_nlink > 0);
}

static bool is_locked(const struct cafs_store *store)
{
    if (flock(store->lock_fd, LOCK_SH | LOCK_NB) != 0)
        return true;
    (void)flock(store->lock_fd, LOCK_UN);
    return false;
}

/* Without a pending file: whether a daemon may have come since the lock was last found free.  It
 * writes its name into the lock's file as soon as it has it.  To ask for the lock at each request
 * could keep a daemon from starting, which wants it for itself. */
static bool must_ask(struct cafs_store *store, uint64_t now_ms)
{
    struct stat found;

    if (fstat(store->lock_fd, &found) != 0)
        return true;
    const bool written = found.st_mtim.tv_sec != store->lock_mtime.tv_sec ||
                         found.st_mtim.tv_nsec != store->lock_mtime.tv_nsec;
    store->lock_mtime = found.st_mtim;
    return written || store->asked_ms == 0 || now_ms - store->asked_ms >= COMPARE_MS;
}

static bool open_index(struct cafs_store *store, uint64_t now_ms)
{
    store->lock_fd = open_below(store->path, "lock", O_RDONLY);
    store->packs_fd = open_below(store->path, "packs", O_RDONLY | O_DIRECTORY);
    store->compared_ms = now_ms;
    if (store->lock_fd >= 0 && store->packs_fd >= 0) {
        if (cafs_index_open(&store->index))
            return true;
    } else {
        snprintf(store->index.error, sizeof store->index.error, "%s", strerror(errno));
    }
    close_index(store);
    return false;
}

/* The index as it is named now, open; false if that is not possible. */
static bool have_index(struct cafs_store *store, uint64_t now_ms, bool compare)
{
    if (store->index.env != NULL) {
        if (!compare)
            return true;
        store->compared_ms = now_ms;
        if (!cafs_index_replaced(&store->index))
            return true;
        /* Shrunk; or it is another store that lies here now, with a pending file of its own. */
        close_index(store);
        close_pending(store);
        store->asked_ms = 0;
        if (!identify(store))
            return false;
    }
    return open_index(store, now_ms);
}

static enum cafs_ready failed(struct cafs_store *store, uint64_t now_ms)
{
    const bool before = store->failed;

    store->failed = true;
    store->identified = false;
    store->tried_ms = now_ms;
    return before ? CAFS_UNAVAILABLE : CAFS_JUST_FAILED;
}

enum cafs_ready cafs_store_begin(struct cafs_store *store, uint64_t now_ms, struct cafs_view *view)
{
    bool compare = now_ms - store->compared_ms >= COMPARE_MS;

    if (store->failed && now_ms - store->tried_ms < RETRY_MS)
        return CAFS_UNAVAILABLE;
    if (!store->identified && !identify(store))
        return failed(store, now_ms);
    if (!pending_is_current(store, compare)) {
        close_pending(store);
        /* Another daemon, or none any more: the store may have been rebuilt in between. */
        compare = true;
        if (open_pending(store))
            store->asked_ms = 0;
    }
    for (unsigned attempt = 0; attempt < 3; attempt++) {
        if (!have_index(store, now_ms, compare))
            break;
        if (store->map == NULL && must_ask(store, now_ms)) {
            store->asked_ms = 0;
            if (is_locked(store))
                return CAFS_DAEMON_ONLY;
            store->asked_ms = now_ms;
        }
        view->pending = store->map != NULL && !store->abandoned ? &store->pending : NULL;
        if (view->pending != NULL) {
            store->clears = cafs_pending_clears(view->pending);
            if (store->clears & 1)
                return cafs_store_is_abandoned(store) ? cafs_store_begin(store, now_ms, view)
                                                      : CAFS_DAEMON_ONLY;
        }
        switch (cafs_index_begin(&store->index, view)) {
        case CAFS_BEGUN:
            store->failed = false;
            return CAFS_READY;
        case CAFS_NEWER:
            if (!cafs_index_replaced(&store->index)) {
                store->failed = false;
                return CAFS_READY;
            }
            cafs_index_end(&store->index);
            compare = true;
            continue;
        case CAFS_FAILED:
            close_index(store);
            continue;
        }
    }
    return failed(store, now_ms);
}

bool cafs_store_end(struct cafs_store *store, struct cafs_view *view)
{
    cafs_index_end(&store->index);
    return view->pending == NULL || cafs_pending_clears(view->pending) == store->clears;
}

bool cafs_store_is_abandoned(struct cafs_store *store)
{
    /* Once without an owner, this file never has one again: the next daemon makes its own.  So the
     * lock, which a starting daemon wants for itself, is taken for a moment only once. */
    if (!store->abandoned && store->lock_fd >= 0 && !is_locked(store))
        store->abandoned = true;
    return store->abandoned;
}

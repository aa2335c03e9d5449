/* A store that others write to, read by one process: its index, what is pending, and who writes.
 *
 * The invariant of a view: what it answers was true at one moment while it lasted.  A view begins
 * with cafs_store_begin and counts only if cafs_store_end says so; see "Other readers" in
 * docs/format.md.  One thread.  No nginx.
 */
#ifndef CAFS_STORE_H
#define CAFS_STORE_H

#include "cafs_reads.h"
#include "index.h"

#include <time.h>

struct cafs_store {
    struct cafs_index index;
    struct cafs_pending pending;
    struct cafs_reads reads; /* open only while the pending file is */
    void *map; /* NULL: no pending file */
    size_t map_length;
    int pending_fd;
    int lock_fd;
    int packs_fd;
    bool abandoned;       /* nobody holds the store's lock any more: the pending file says nothing */
    uint64_t clears;      /* of the view that was begun */
    uint64_t asked_ms;    /* when the lock was last asked for, without a pending file */
    struct timespec lock_mtime;
    uint64_t compared_ms; /* when the index's file was last compared */
    uint64_t tried_ms;    /* when opening last failed */
    bool failed;
    bool identified;    /* store.toml was read, and is understood */
    bool pending_given; /* `pending_path` does not come from the store's id */
    uint8_t id[CAFS_STORE_ID];
    char path[4096];
    char pending_path[4096];
};

enum cafs_ready {
    CAFS_READY,
    CAFS_DAEMON_ONLY, /* only the daemon knows: hand the request over */
    CAFS_UNAVAILABLE, /* the store cannot be opened now; `index.error` says why */
    CAFS_JUST_FAILED  /* the same, for the first time: to be logged */
};

/* Does no I/O.  An empty *pending_path* stands for the one that the store's id gives.  False if a
 * name is too long. */
bool cafs_store_init(struct cafs_store *store, const char *path, const char *pending_path);
void cafs_store_close(struct cafs_store *store);

/* Begin a view.  *now_ms* is a clock that never goes back.  Only with CAFS_READY is it to be ended. */
enum cafs_ready cafs_store_begin(struct cafs_store *store, uint64_t now_ms, struct cafs_view *view);

/* End the view; false: what was read does not count, begin again. */
bool cafs_store_end(struct cafs_store *store, struct cafs_view *view);

/* Something was pending.  True if nobody is there to commit it (then begin again: what is
 * committed is the truth), false if the daemon has to be asked. */
bool cafs_store_is_abandoned(struct cafs_store *store);

/* Tell the daemon that content of this inode was sent, if there is one and it wants to know. */
void cafs_store_note_read(struct cafs_store *store, uint64_t ino, enum cafs_reads_from from);

#endif

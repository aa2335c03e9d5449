/* From a path to an inode, as the kernel walks through the mount.
 *
 * Pure: no I/O, no allocation, no nginx.  What it reads comes through `struct cafs_view`, so the
 * tests and fuzz targets put anything there.  Every value is held to its check and its bounds:
 * damage is an outcome, never undefined behaviour.
 */
#ifndef CAFS_LOOKUP_H
#define CAFS_LOOKUP_H

#include "cafs_format.h"

#include <sys/types.h>

enum cafs_outcome {
    CAFS_OK,
    CAFS_NOT_FOUND, /* ENOENT, ENOTDIR, ENAMETOOLONG */
    CAFS_FORBIDDEN, /* EACCES, ELOOP, a path that leaves the tree */
    CAFS_PENDING,   /* changed since the newest commit: only the daemon knows */
    CAFS_FOREIGN,   /* an ACL, or a part or codec of a later version: the daemon may know */
    CAFS_DAMAGED,   /* a value is not what docs/format.md allows; see `struct cafs_fault` */
    CAFS_NO_MEMORY
};

/* What is damaged, for the log. */
struct cafs_fault {
    unsigned database;
    uint64_t number; /* inode, blob or chunk */
    const char *what;
};

struct cafs_value {
    const uint8_t *data;
    size_t length;
};

enum cafs_get { CAFS_GOT, CAFS_ABSENT, CAFS_BROKEN };

/* Directories that were gone through at one commit, so that the ways to many names below them are
 * walked once.  Says nothing of what is pending. */
#define CAFS_MEMO_SLOTS 1024U
#define CAFS_MEMO_NAME 38U

struct cafs_memo_slot {
    uint64_t commit;
    uint64_t parent;
    uint64_t ino;
    uint8_t known; /* bits: what of the directory's own record was read, and what it said */
    uint8_t length;
    uint8_t name[CAFS_MEMO_NAME];
};

struct cafs_memo {
    struct cafs_memo_slot root;
    struct cafs_memo_slot slots[CAFS_MEMO_SLOTS];
};

/* One commit of an index, and what is pending beyond it. */
struct cafs_view {
    /* The value under a key, as it lies there (with its check); valid until the view ends. */
    enum cafs_get (*get)(void *of, unsigned database, const void *key, size_t key_length,
                         struct cafs_value *value);
    void *of;
    const struct cafs_pending *pending; /* NULL: nothing is pending */
    struct cafs_memo *memo;             /* NULL: none; for one caller only, zeroed at first */
    uint64_t commit;                    /* which commit this is, above 0: what the memo is good for */
    bool has_xattrs;                    /* whether there is any extended attribute, so any ACL */
    struct cafs_fault fault;            /* written with CAFS_DAMAGED */
};

/* Whose permissions count; user 0 passes everywhere, as root does. */
struct cafs_caller {
    uid_t uid;
    gid_t gid;
    const gid_t *groups;
    size_t group_count;
};

struct cafs_node {
    uint64_t ino;
    struct cafs_inode inode;
};

/* The value under a key, verified and without its check.  CAFS_NOT_FOUND if there is none. */
enum cafs_outcome cafs_fetch(struct cafs_view *view, unsigned database, uint64_t number, const void *key,
                             size_t key_length, struct cafs_value *value);

/* The inode record of a number.  A record that is missing is damage. */
enum cafs_outcome cafs_fetch_inode(struct cafs_view *view, uint64_t ino, struct cafs_inode *inode);

/* Walk from the root.  Empty components and a leading slash are skipped, symbolic links are
 * followed (40 of them), `..` goes to the parent.  With a trailing slash the end must be a
 * directory.  CAFS_OK fills *node, which the caller may open for reading, whatever it is. */
enum cafs_outcome cafs_lookup(struct cafs_view *view, const struct cafs_caller *caller, const uint8_t *path,
                              size_t length, struct cafs_node *node);

#endif

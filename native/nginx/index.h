/* The index of a store, for one process that only reads: LMDB as its authors demand.
 *
 * To be opened after the fork, once for each store and process.  One thread uses it.  Between two
 * requests the transaction is reset: it keeps its reader slot and holds no pages.  No nginx.
 */
#ifndef CAFS_INDEX_H
#define CAFS_INDEX_H

#include "lookup.h"

#include <lmdb.h>
#include <sys/stat.h>

struct cafs_index {
    MDB_env *env; /* NULL: not open */
    MDB_txn *txn;
    MDB_cursor *chunks; /* recipes ask for neighbours, which a cursor finds in the page it is at */
    MDB_dbi databases[CAFS_DATABASES];
    size_t txn_id; /* of the last view */
    dev_t device;  /* of data.mdb as it was opened */
    ino_t inode;
    size_t xattrs;
    struct cafs_memo memo;
    uint64_t view_number; /* grows with each commit and each opening */
    char path[4096];
    char error[256]; /* why cafs_index_open failed */
};

/* *store* is the store's directory.  False if its name is too long. */
bool cafs_index_init(struct cafs_index *index, const char *store);

/* Open the index in *store*; false with `error`. */
bool cafs_index_open(struct cafs_index *index);

void cafs_index_close(struct cafs_index *index);

/* Whether another file has taken the index's place: it was shrunk, rebuilt or restored. */
bool cafs_index_replaced(const struct cafs_index *index);

enum cafs_begin { CAFS_BEGUN, CAFS_NEWER, CAFS_FAILED };

/* Look at the newest commit, until cafs_index_end.  CAFS_NEWER: there was a commit since the last
 * view, so the file may have been replaced before it. */
enum cafs_begin cafs_index_begin(struct cafs_index *index, struct cafs_view *view);
void cafs_index_end(struct cafs_index *index);

#endif

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "index.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

/* As the daemon has them; LMDB keeps the larger of this and what the file says. */
#define MAP_SIZE ((size_t)1 << 40)
#define MAX_READERS 512U

bool cafs_index_init(struct cafs_index *index, const char *store)
{
    memset(index, 0, sizeof *index);
    const int length = snprintf(index->path, sizeof index->path, "%s/index", store);
    return length > 0 && (size_t)length < sizeof index->path - sizeof "/data.mdb";
}

static bool identify(const struct cafs_index *index, struct stat *found)
{
    char file[sizeof index->path + sizeof "/data.mdb"];
    snprintf(file, sizeof file, "%s/data.mdb", index->path);
    return stat(file, found) == 0;
}

bool cafs_index_replaced(const struct cafs_index *index)
{
    struct stat found;
    return !identify(index, &found) || found.st_dev != index->device || found.st_ino != index->inode;
}

static int open_databases(struct cafs_index *index)
{
    MDB_txn *txn;
    int error = mdb_txn_begin(index->env, NULL, MDB_RDONLY, &txn);

    if (error)
        return error;
    for (unsigned i = 0; i < CAFS_DATABASES && !error; i++)
        error = mdb_dbi_open(txn, cafs_database_name(i), 0, &index->databases[i]);
    if (error) {
        mdb_txn_abort(txn);
        return error;
    }
    /* The handles live on only if the transaction that opened them is committed. */
    error = mdb_txn_commit(txn);
    if (!error)
        error = mdb_txn_begin(index->env, NULL, MDB_RDONLY, &index->txn);
    if (!error)
        error = mdb_cursor_open(index->txn, index->databases[CAFS_CHUNKS], &index->chunks);
    if (!error)
        mdb_txn_reset(index->txn);
    return error;
}

bool cafs_index_open(struct cafs_index *index)
{
    struct stat before;
    int dead;
    int error;

    if (!identify(index, &before)) {
        snprintf(index->error, sizeof index->error, "there is no index, or it may not be looked at");
        return false;
    }
    error = mdb_env_create(&index->env);
    if (error) {
        index->env = NULL;
        goto failed;
    }
    (void)mdb_env_set_mapsize(index->env, MAP_SIZE);
    (void)mdb_env_set_maxdbs(index->env, CAFS_DATABASES + 1);
    (void)mdb_env_set_maxreaders(index->env, MAX_READERS);
    /* The first reads of a cold index are random: LMDB's own reading ahead costs far more.
     * MDB_NOTLS: the transaction belongs to this structure, not to a thread. */
    error = mdb_env_open(index->env, index->path, MDB_RDONLY | MDB_NOTLS | MDB_NORDAHEAD, 0600);
    if (error)
        goto failed;
    /* A worker that crashed has left its slot, which would hold pages back for ever. */
    (void)mdb_reader_check(index->env, &dead);
    error = open_databases(index);
    if (error)
        goto failed;
    index->device = before.st_dev;
    index->inode = before.st_ino;
    index->txn_id = 0;
    return true;

failed:
    snprintf(index->error, sizeof index->error, "%s", mdb_strerror(error));
    cafs_index_close(index);
    return false;
}

void cafs_index_close(struct cafs_index *index)
{
    if (index->env == NULL)
        return;
    if (index->chunks != NULL)
        mdb_cursor_close(index->chunks);
    if (index->txn != NULL)
        mdb_txn_abort(index->txn);
    mdb_env_close(index->env);
    index->env = NULL;
    index->txn = NULL;
    index->chunks = NULL;
}

static enum cafs_get get(void *of, unsigned database, const void *key, size_t key_length,
                         struct cafs_value *value)
{
    struct cafs_index *index = of;
    MDB_val where = {key_length, (void *)(uintptr_t)key};
    MDB_val found;
    int error;

    if (database == CAFS_CHUNKS)
        error = mdb_cursor_get(index->chunks, &where, &found, MDB_SET_KEY);
    else
        error = mdb_get(index->txn, index->databases[database], &where, &found);
    if (error == MDB_NOTFOUND)
        return CAFS_ABSENT;
    if (error)
        return CAFS_BROKEN;
    value->data = found.mv_data;
    value->length = found.mv_size;
    return CAFS_GOT;
}

enum cafs_begin cafs_index_begin(struct cafs_index *index, struct cafs_view *view)
{
    MDB_stat stat;
    int error = mdb_txn_renew(index->txn);

    if (!error)
        error = mdb_cursor_renew(index->txn, index->chunks);
    const size_t id = error ? 0 : mdb_txn_id(index->txn);
    const bool newer = id != index->txn_id;
    if (!error && newer)
        error = mdb_stat(index->txn, index->databases[CAFS_XATTRS], &stat);
    if (error) {
        snprintf(index->error, sizeof index->error, "%s", mdb_strerror(error));
        mdb_txn_reset(index->txn);
        return CAFS_FAILED;
    }
    if (newer) {
        index->xattrs = stat.ms_entries;
        index->txn_id = id;
        index->view_number++;
    }
    view->get = get;
    view->of = index;
    view->memo = &index->memo;
    view->commit = index->view_number;
    view->has_xattrs = index->xattrs > 0;
    return newer ? CAFS_NEWER : CAFS_BEGUN;
}

void cafs_index_end(struct cafs_index *index)
{
    mdb_txn_reset(index->txn);
}

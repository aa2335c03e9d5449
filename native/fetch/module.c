/* cafs._fetch: stored chunks become verified bytes in one call.
 *
 * The interpreter lock is let go of once for reading, checking and unfolding all of them, each into
 * the place where it is to lie.
 * Invariant: what is returned had the right checksums.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "hash.h"
#include "unfold.h"

enum { CODEC_RAW = 0, CODEC_ZSTD = 1 };

static const size_t RUN_MAX = (size_t)1 << 31;

struct chunk {
    size_t stored;
    size_t raw;
    uint64_t xxh3;
    unsigned codec;
};

struct run {
    struct chunk *chunks;
    size_t count;
    size_t stored;
    size_t raw;
    bool plain; /* all are stored raw: they lie in the content as they do in the pack */
};

enum outcome { READ, NOT_CACHED, BAD_CHUNK, NO_MEMORY, SYSTEM };

/* Which chunk is to blame, and what its bytes do wrong. */
struct blame {
    size_t chunk;
    const char *why;
    int error;
};

/* The chunk that has byte `at` of the run's stored bytes. */
static size_t chunk_at(const struct run *run, size_t at)
{
    size_t chunk = 0;

    while (chunk + 1 < run->count && at >= run->chunks[chunk].stored)
        at -= run->chunks[chunk++].stored;
    return chunk;
}

static enum outcome read_stored(int fd, off_t offset, const struct run *run, bool nowait,
                                uint8_t *target, struct blame *blame)
{
    size_t done = 0;

    while (done < run->stored) {
        struct iovec piece = {target + done, run->stored - done};
        const ssize_t got = preadv2(fd, &piece, 1, offset + (off_t)done, nowait ? RWF_NOWAIT : 0);
        if (got > 0) {
            done += (size_t)got;
        } else if (got == 0) {
            *blame = (struct blame){chunk_at(run, done), "are not all there: the pack ends", 0};
            return BAD_CHUNK;
        } else if (errno != EINTR) {
            /* EOPNOTSUPP and ENOSYS come from what cannot tell whether it would wait. */
            if (nowait)
                return NOT_CACHED;
            *blame = (struct blame){chunk_at(run, done), NULL, errno};
            return SYSTEM;
        }
    }
    return READ;
}

static enum outcome decode(const struct run *run, const uint8_t *stored, uint8_t *target,
                           struct blame *blame)
{
    for (size_t i = 0; i < run->count; i++) {
        const struct chunk *chunk = &run->chunks[i];
        *blame = (struct blame){i, NULL, 0};
        if (cafs_hash(stored, chunk->stored) != chunk->xxh3)
            blame->why = "do not match their checksum";
        else if (chunk->codec == CODEC_ZSTD && !cafs_unfold(target, chunk->raw, stored, chunk->stored))
            blame->why = "do not unfold to what they should";
        if (blame->why != NULL)
            return BAD_CHUNK;
        if (chunk->codec == CODEC_RAW && !run->plain)
            memcpy(target, stored, chunk->raw);
        stored += chunk->stored;
        target += chunk->raw;
    }
    return READ;
}

static enum outcome read_run(int fd, off_t offset, const struct run *run, bool nowait,
                             uint8_t *target, struct blame *blame)
{
    uint8_t *stored = target;
    enum outcome outcome;

    if (!run->plain && (stored = malloc(run->stored)) == NULL)
        return NO_MEMORY;
    outcome = read_stored(fd, offset, run, nowait, stored, blame);
    if (outcome == READ)
        outcome = decode(run, stored, target, blame);
    if (!run->plain)
        free(stored);
    return outcome;
}

static PyObject *bad_chunk; /* the exception */

/* *before*: how many chunks the call has in other runs before this one. */
static bool parse_chunk(PyObject *item, struct run *run, size_t before)
{
    Py_ssize_t stored, raw;
    unsigned long long xxh3;
    unsigned codec;

    if (!PyArg_ParseTuple(item, "nInK:a chunk", &stored, &codec, &raw, &xxh3))
        return false;
    if (stored <= 0 || raw <= 0 || (size_t)stored > RUN_MAX - run->stored ||
        (size_t)raw > RUN_MAX - run->raw) {
        PyErr_SetString(PyExc_ValueError, "a run has more than nothing and at most 2^31 bytes");
        return false;
    }
    struct chunk chunk = {(size_t)stored, (size_t)raw, xxh3, codec};
    if (codec != CODEC_ZSTD && (codec != CODEC_RAW || stored != raw)) {
        PyObject *arguments = Py_BuildValue(
            "(ns)", (Py_ssize_t)(before + run->count),
            codec == CODEC_RAW ? "have lengths that do not agree" : "have a codec that is not known");
        if (arguments != NULL)
            PyErr_SetObject(bad_chunk, arguments);
        Py_XDECREF(arguments);
        return false;
    }
    run->plain = run->plain && codec == CODEC_RAW;
    run->stored += chunk.stored;
    run->raw += chunk.raw;
    run->chunks[run->count++] = chunk;
    return true;
}

/* Fills *run, whose chunks are to be freed with PyMem_Free; false with an exception. */
static bool parse_run(PyObject *sequence, struct run *run, size_t before)
{
    PyObject *fast = PySequence_Fast(sequence, "chunks must be a sequence");
    bool good = fast != NULL;

    if (!good)
        return false;
    const size_t count = (size_t)PySequence_Fast_GET_SIZE(fast);
    *run = (struct run){.chunks = PyMem_Calloc(count + 1, sizeof *run->chunks), .plain = true};
    if (run->chunks == NULL) {
        PyErr_NoMemory();
        good = false;
    }
    for (size_t i = 0; good && i < count; i++)
        good = parse_chunk(PySequence_Fast_GET_ITEM(fast, (Py_ssize_t)i), run, before);
    Py_DECREF(fast);
    return good;
}

static PyObject *answer(PyObject *content, enum outcome outcome, const struct blame *blame)
{
    if (outcome == READ)
        return content;
    Py_DECREF(content);
    if (outcome == NOT_CACHED)
        Py_RETURN_NONE;
    if (outcome == NO_MEMORY)
        return PyErr_NoMemory();
    if (outcome == SYSTEM) {
        errno = blame->error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    PyObject *arguments = Py_BuildValue("(ns)", (Py_ssize_t)blame->chunk, blame->why);
    if (arguments != NULL)
        PyErr_SetObject(bad_chunk, arguments);
    Py_XDECREF(arguments);
    return NULL;
}

static PyObject *fetch_read_run(PyObject *Py_UNUSED(module), PyObject *args)
{
    int fd, nowait;
    long long offset;
    PyObject *sequence, *content, *result = NULL;
    struct run run = {0};
    struct blame blame = {0};
    enum outcome outcome;

    if (!PyArg_ParseTuple(args, "iLOp:read_run", &fd, &offset, &sequence, &nowait))
        return NULL;
    if (parse_run(sequence, &run, 0)) {
        content = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)run.raw);
        if (content != NULL) {
            uint8_t *target = (uint8_t *)PyBytes_AS_STRING(content);
            Py_BEGIN_ALLOW_THREADS
            outcome = read_run(fd, (off_t)offset, &run, nowait != 0, target, &blame);
            Py_END_ALLOW_THREADS
            result = answer(content, outcome, &blame);
        }
    }
    PyMem_Free(run.chunks);
    return result;
}

/* What a longer stretch of content is made of: bytes that are there, or a run. */
struct piece {
    const uint8_t *bytes; /* NULL: a run */
    size_t length;
    int fd;
    long long offset;
    struct run run;
};

struct pieces {
    PyObject *items; /* a tuple of our own, so that the bytes stay */
    struct piece *all;
    size_t count;
    size_t length;
};

static bool parse_piece(PyObject *item, struct piece *piece, size_t before)
{
    PyObject *chunks;

    if (PyBytes_Check(item)) {
        piece->bytes = (const uint8_t *)PyBytes_AS_STRING(item);
        piece->length = (size_t)PyBytes_GET_SIZE(item);
        return true;
    }
    if (!PyTuple_Check(item)) {
        PyErr_SetString(PyExc_TypeError, "a piece is bytes, or a tuple: descriptor, offset, chunks");
        return false;
    }
    if (!PyArg_ParseTuple(item, "iLO:a run", &piece->fd, &piece->offset, &chunks) ||
        !parse_run(chunks, &piece->run, before))
        return false;
    piece->length = piece->run.raw;
    return true;
}

/* Fills *pieces, which is to be freed whatever the outcome; false with an exception. */
static bool parse_pieces(PyObject *sequence, struct pieces *pieces)
{
    size_t chunks = 0;

    pieces->items = PySequence_Tuple(sequence);
    if (pieces->items == NULL)
        return false;
    const size_t count = (size_t)PyTuple_GET_SIZE(pieces->items);
    pieces->all = PyMem_Calloc(count + 1, sizeof *pieces->all);
    if (pieces->all == NULL) {
        PyErr_NoMemory();
        return false;
    }
    while (pieces->count < count) {
        PyObject *item = PyTuple_GET_ITEM(pieces->items, (Py_ssize_t)pieces->count);
        struct piece *piece = &pieces->all[pieces->count++];
        if (!parse_piece(item, piece, chunks))
            return false;
        if (piece->length > RUN_MAX - pieces->length) {
            PyErr_SetString(PyExc_ValueError, "all pieces together have at most 2^31 bytes");
            return false;
        }
        pieces->length += piece->length;
        chunks += piece->run.count;
    }
    return true;
}

static enum outcome read_pieces(const struct pieces *pieces, bool nowait, uint8_t *target,
                                struct blame *blame)
{
    size_t before = 0;

    for (size_t i = 0; i < pieces->count; i++) {
        const struct piece *piece = &pieces->all[i];
        if (piece->bytes != NULL) {
            memcpy(target, piece->bytes, piece->length);
        } else if (piece->run.count > 0) {
            const enum outcome outcome =
                read_run(piece->fd, (off_t)piece->offset, &piece->run, nowait, target, blame);
            if (outcome != READ) {
                blame->chunk += before;
                return outcome;
            }
            before += piece->run.count;
        }
        target += piece->length;
    }
    return READ;
}

static PyObject *fetch_read_pieces(PyObject *Py_UNUSED(module), PyObject *args)
{
    int nowait;
    PyObject *sequence, *content, *result = NULL;
    struct pieces pieces = {0};
    struct blame blame = {0};
    enum outcome outcome;

    if (!PyArg_ParseTuple(args, "Op:read_pieces", &sequence, &nowait))
        return NULL;
    if (parse_pieces(sequence, &pieces)) {
        content = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)pieces.length);
        if (content != NULL) {
            uint8_t *target = (uint8_t *)PyBytes_AS_STRING(content);
            Py_BEGIN_ALLOW_THREADS
            outcome = read_pieces(&pieces, nowait != 0, target, &blame);
            Py_END_ALLOW_THREADS
            result = answer(content, outcome, &blame);
        }
    }
    for (size_t i = 0; i < pieces.count; i++)
        PyMem_Free(pieces.all[i].run.chunks);
    PyMem_Free(pieces.all);
    Py_XDECREF(pieces.items);
    return result;
}

static PyMethodDef methods[] = {
    {"read_pieces", fetch_read_pieces, METH_VARARGS,
     "read_pieces(pieces, nowait)\n--\n\n"
     "Bytes, and the raw bytes of runs of chunks, one behind the other."},
    {"read_run", fetch_read_run, METH_VARARGS,
     "read_run(fd, offset, chunks, nowait)\n--\n\n"
     "The raw bytes of chunks that lie side by side in a pack from offset on."},
    {NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *module)
{
    bad_chunk = PyErr_NewExceptionWithDoc(
        "cafs._fetch.BadChunk", "A chunk is not what was stored: its place in the run, and what its bytes do wrong.",
        PyExc_Exception, NULL);
    return bad_chunk != NULL ? PyModule_AddObjectRef(module, "BadChunk", bad_chunk) : -1;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "cafs._fetch",
    .m_doc = "Reading stored chunks with the GIL released once.",
    .m_methods = methods, .m_slots = slots,
};

PyMODINIT_FUNC PyInit__fetch(void);

PyMODINIT_FUNC PyInit__fetch(void)
{
    return PyModuleDef_Init(&definition);
}

/* cafs._digest: SHA-256 and SHA-1 of one content, at the same time; XXH3 of many buffers.
 *
 * The interpreter lock is let go of once for all buffers of a call: each time a thread waits until
 * the event loop pauses before it gets it back.
 * Invariant: who hashes in the idle class holds no lock there.  A thread of that class that is kept
 * from its processor while it holds the interpreter lock would keep everybody.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <sched.h>
#include <stdbool.h>

#include <openssl/evp.h>

#include "hash.h"

enum { SHA256_SIZE = 32, SHA1_SIZE = 20 };

static const size_t BLOCK = (size_t)1 << 15; /* fits the first cache beside the state */

/* Fetched once: EVP_sha256() would look it up anew for each digest. */
static EVP_MD *sha256, *sha1;

struct both {
    PyObject_HEAD
    EVP_MD_CTX *sha256;
    EVP_MD_CTX *sha1;
    bool is_busy;   /* a thread is in update(), without the interpreter lock */
    bool is_broken; /* libcrypto has failed: there are no digests any more */
};

/* sched(7): runs only when a processor has nothing else to do, and gives it up at once. */
static bool set_class(int policy)
{
    const struct sched_param none = {0};

    /* 0 is this thread, not the process. */
    return sched_setscheduler(0, policy, &none) == 0;
}

/* Buffers that stay where they are. */
struct pieces {
    Py_buffer *all;
    size_t count;
};

static void let_go(struct pieces *pieces)
{
    while (pieces->count > 0)
        PyBuffer_Release(&pieces->all[--pieces->count]);
    PyMem_Free(pieces->all);
}

/* Fills *pieces, which let_go() is for; false with an exception, and then it is not. */
static bool take(PyObject *sequence, struct pieces *pieces)
{
    PyObject *items = PySequence_Tuple(sequence);

    if (items == NULL)
        return false;
    const Py_ssize_t count = PyTuple_GET_SIZE(items);
    *pieces = (struct pieces){.all = PyMem_Calloc((size_t)count + 1, sizeof *pieces->all)};
    bool good = pieces->all != NULL;
    if (!good)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; good && i < count; i++) {
        PyObject *item = PyTuple_GET_ITEM(items, i);
        good = PyObject_GetBuffer(item, &pieces->all[i], PyBUF_SIMPLE) == 0;
        pieces->count += good;
    }
    if (!good)
        let_go(pieces);
    Py_DECREF(items);
    return good;
}

static bool hash(const struct both *self, const struct pieces *pieces)
{
    for (size_t i = 0; i < pieces->count; i++) {
        const unsigned char *data = pieces->all[i].buf;
        size_t left = (size_t)pieces->all[i].len;
        while (left > 0) {
            const size_t size = left < BLOCK ? left : BLOCK;
            if (EVP_DigestUpdate(self->sha256, data, size) != 1 ||
                EVP_DigestUpdate(self->sha1, data, size) != 1)
                return false;
            data += size;
            left -= size;
        }
    }
    return true;
}

static PyObject *both_update(struct both *self, PyObject *args)
{
    PyObject *sequence;
    struct pieces pieces;
    int idle = 0;
    bool good;

    if (!PyArg_ParseTuple(args, "O|p:update", &sequence, &idle))
        return NULL;
    if (!take(sequence, &pieces))
        return NULL;
    if (self->is_busy) {
        let_go(&pieces);
        PyErr_SetString(PyExc_ValueError, "another thread is in update()");
        return NULL;
    }
    self->is_busy = true;
    Py_BEGIN_ALLOW_THREADS
    const bool lowered = idle && set_class(SCHED_IDLE);
    good = hash(self, &pieces);
    if (lowered)
        set_class(SCHED_OTHER);
    Py_END_ALLOW_THREADS
    self->is_busy = false;
    let_go(&pieces);
    if (!good) {
        self->is_broken = true;
        PyErr_SetString(PyExc_RuntimeError, "libcrypto did not hash");
        return NULL;
    }
    Py_RETURN_NONE;
}

static bool finish(const EVP_MD_CTX *state, unsigned char *digest)
{
    EVP_MD_CTX *copy = EVP_MD_CTX_new();
    const bool good = copy != NULL && EVP_MD_CTX_copy_ex(copy, state) == 1 &&
                      EVP_DigestFinal_ex(copy, digest, NULL) == 1;

    EVP_MD_CTX_free(copy);
    return good;
}

static PyObject *both_digests(struct both *self, PyObject *Py_UNUSED(args))
{
    unsigned char of_sha256[SHA256_SIZE], of_sha1[SHA1_SIZE];

    if (self->is_busy) {
        PyErr_SetString(PyExc_ValueError, "another thread is in update()");
        return NULL;
    }
    if (self->is_broken || !finish(self->sha256, of_sha256) || !finish(self->sha1, of_sha1)) {
        PyErr_SetString(PyExc_RuntimeError, "libcrypto did not hash");
        return NULL;
    }
    return Py_BuildValue("(y#y#)", (char *)of_sha256, (Py_ssize_t)SHA256_SIZE, (char *)of_sha1,
                         (Py_ssize_t)SHA1_SIZE);
}

static PyObject *both_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    struct both *self;

    if (PyTuple_GET_SIZE(args) != 0 || (kwargs != NULL && PyDict_GET_SIZE(kwargs) != 0)) {
        PyErr_SetString(PyExc_TypeError, "Both() takes nothing");
        return NULL;
    }
    self = (struct both *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->sha256 = EVP_MD_CTX_new();
    self->sha1 = EVP_MD_CTX_new();
    if (self->sha256 == NULL || self->sha1 == NULL ||
        EVP_DigestInit_ex2(self->sha256, sha256, NULL) != 1 ||
        EVP_DigestInit_ex2(self->sha1, sha1, NULL) != 1) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void both_dealloc(struct both *self)
{
    EVP_MD_CTX_free(self->sha256);
    EVP_MD_CTX_free(self->sha1);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef both_methods[] = {
    {"update", (PyCFunction)both_update, METH_VARARGS,
     "update(pieces, idle=False)\n\nHash buffers, one behind the other."},
    {"digests", (PyCFunction)both_digests, METH_NOARGS,
     "digests()\n\nSHA-256 and SHA-1 of what was hashed so far."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject both_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "cafs._digest.Both",
    .tp_doc = "SHA-256 and SHA-1 of one content.",
    .tp_basicsize = sizeof(struct both),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = both_new,
    .tp_dealloc = (destructor)both_dealloc,
    .tp_methods = both_methods,
};

static PyObject *may_idle(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
    bool may;

    Py_BEGIN_ALLOW_THREADS
    may = set_class(SCHED_IDLE) && set_class(SCHED_OTHER);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(may);
}

static PyObject *xxh3_each(PyObject *Py_UNUSED(module), PyObject *sequence)
{
    struct pieces pieces;
    PyObject *result = NULL;

    if (!take(sequence, &pieces))
        return NULL;
    uint64_t *sums = PyMem_Calloc(pieces.count + 1, sizeof *sums);
    if (sums == NULL) {
        PyErr_NoMemory();
    } else {
        Py_BEGIN_ALLOW_THREADS
        for (size_t i = 0; i < pieces.count; i++)
            sums[i] = cafs_hash(pieces.all[i].buf, (size_t)pieces.all[i].len);
        Py_END_ALLOW_THREADS
        result = PyList_New((Py_ssize_t)pieces.count);
    }
    for (size_t i = 0; result != NULL && i < pieces.count; i++) {
        PyObject *sum = PyLong_FromUnsignedLongLong(sums[i]);
        if (sum == NULL)
            Py_CLEAR(result);
        else
            PyList_SET_ITEM(result, (Py_ssize_t)i, sum);
    }
    PyMem_Free(sums);
    let_go(&pieces);
    return result;
}

static PyMethodDef functions[] = {
    {"xxh3_each", xxh3_each, METH_O, "xxh3_each(buffers)\n\nXXH3-64 of each."},
    {"may_idle", may_idle, METH_NOARGS,
     "may_idle()\n\nWhether this thread may leave the idle class again; if not it stays in it."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "cafs._digest",
    .m_doc = "SHA-256 and SHA-1 of one content, at the same time; XXH3 of many buffers.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__digest(void)
{
    PyObject *module;

    if (sha256 == NULL)
        sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    if (sha1 == NULL)
        sha1 = EVP_MD_fetch(NULL, "SHA1", NULL);
    if (sha256 == NULL || sha1 == NULL) {
        PyErr_SetString(PyExc_ImportError, "libcrypto has no SHA-256 or no SHA-1");
        return NULL;
    }
    if (PyType_Ready(&both_type) < 0)
        return NULL;
    module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddObjectRef(module, "Both", (PyObject *)&both_type) < 0)
        Py_CLEAR(module);
    return module;
}

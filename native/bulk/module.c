/* Thousands of records of the index at once: cafs._bulk.
 *
 * For each of many keys: the uncommitted layers first, then the committed value through a function
 * that is passed in (a transaction's get), its check, and the few fields that are asked for.  One
 * call for all, because the interpreter's share of a look-up is greater than LMDB's.
 * Invariant: an answer is what the same look-ups would say one after the other; a value whose
 * check is wrong is answered with DAMAGED and nothing of it is used.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cafs_format.h>

/* Answers about names that are no inodes. */
#define NO_NAME 0
#define OTHER_NAME (-1)
/* Answers about inodes that are no sizes. */
#define NO_INODE (-1)
/* Of both: the record is damaged. */
#define DAMAGED (-2)

/* What all keys are looked up in. */
struct source {
    PyObject *get;    /* get(key, None, handle) */
    PyObject *handle; /* of LMDB's database */
    PyObject *layers; /* tuple of dicts, the uppermost first */
    unsigned database;
};

static bool take_source(struct source *source, PyObject *const *args, unsigned database)
{
    source->get = args[0];
    source->handle = args[1];
    source->layers = args[2];
    source->database = database;
    if (!PyTuple_Check(source->layers)) {
        PyErr_SetString(PyExc_TypeError, "the layers are a tuple of dicts");
        return false;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(source->layers); i++) {
        if (!PyDict_Check(PyTuple_GET_ITEM(source->layers, i))) {
            PyErr_SetString(PyExc_TypeError, "the layers are a tuple of dicts");
            return false;
        }
    }
    return true;
}

/* The value of a key as a new reference, None without one, and its length without the check; NULL
 * with an exception set. *bad tells that its check is wrong.
 */
static PyObject *look_up(const struct source *source, PyObject *key, size_t *length, bool *bad)
{
    PyObject *value = NULL;

    *bad = false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(source->layers); i++) {
        value = PyDict_GetItemWithError(PyTuple_GET_ITEM(source->layers, i), key);
        if (value != NULL) {
            Py_INCREF(value);
            break;
        }
        if (PyErr_Occurred())
            return NULL;
    }
    const bool committed = value == NULL;
    if (committed) {
        PyObject *arguments[] = {key, Py_None, source->handle};
        value = PyObject_Vectorcall(source->get, arguments, 3, NULL);
        if (value == NULL)
            return NULL;
    }
    if (value == Py_None)
        return value;
    if (!PyBytes_Check(value)) {
        Py_DECREF(value);
        PyErr_SetString(PyExc_TypeError, "values are bytes");
        return NULL;
    }
    *length = (size_t)PyBytes_GET_SIZE(value);
    if (committed)
        *bad = !cafs_unseal(source->database, PyBytes_AS_STRING(key), (size_t)PyBytes_GET_SIZE(key),
                            PyBytes_AS_STRING(value), length);
    return value;
}

/* What a value that is there, and whose check is right, says. */
typedef long long (*read_value)(PyObject *name, const void *value, size_t length);

/* The answer for one key, whose reference is taken over. */
static PyObject *answer(const struct source *source, PyObject *key, PyObject *name, read_value read,
                        long long absent)
{
    size_t length;
    bool bad;

    if (key == NULL)
        return NULL;
    PyObject *value = look_up(source, key, &length, &bad);
    Py_DECREF(key);
    if (value == NULL)
        return NULL;
    long long found = absent;
    if (value != Py_None)
        found = bad ? DAMAGED : read(name, PyBytes_AS_STRING(value), length);
    Py_DECREF(value);
    return PyLong_FromLongLong(found);
}

/* A key of *length* bytes, yet to be written; NULL with an exception set when there is one. */
static PyObject *new_key(Py_ssize_t length)
{
    return PyErr_Occurred() ? NULL : PyBytes_FromStringAndSize(NULL, length);
}

static long long read_entry(PyObject *name, const void *value, size_t length)
{
    struct cafs_entry entry;

    if (!cafs_read_entry(&entry, value, length))
        return DAMAGED;
    if (entry.name_length != (size_t)PyBytes_GET_SIZE(name) ||
        memcmp(entry.name, PyBytes_AS_STRING(name), entry.name_length) != 0)
        return OTHER_NAME;
    return (long long)(entry.ino << 4 | (entry.type & 15U));
}

static PyObject *entry(const struct source *source, PyObject *parent, PyObject *name)
{
    if (!PyBytes_Check(name)) {
        PyErr_SetString(PyExc_TypeError, "names are bytes");
        return NULL;
    }
    const unsigned long long number = PyLong_AsUnsignedLongLong(parent);
    if (number == 0) /* Nothing is inode 0: who asks has found no directory. */
        return PyLong_FromLongLong(NO_NAME);
    PyObject *key = new_key(CAFS_ENTRY_KEY);
    if (key != NULL)
        cafs_entry_key((uint8_t *)PyBytes_AS_STRING(key), number,
                       cafs_name_cookie(PyBytes_AS_STRING(name), (size_t)PyBytes_GET_SIZE(name)));
    return answer(source, key, name, read_entry, NO_NAME);
}

static long long read_size(PyObject *Py_UNUSED(name), const void *value, size_t length)
{
    struct cafs_inode inode;

    return cafs_read_inode(&inode, value, length) ? (long long)inode.size : DAMAGED;
}

static PyObject *size_of(const struct source *source, PyObject *ino)
{
    const unsigned long long number = PyLong_AsUnsignedLongLong(ino);
    PyObject *key = new_key(CAFS_NUMBER_KEY);

    if (key != NULL)
        cafs_number_key((uint8_t *)PyBytes_AS_STRING(key), number);
    return answer(source, key, NULL, read_size, NO_INODE);
}

/* Append what a look-up has answered; false with an exception set, and the list let go of. */
static bool append(PyObject **answers, PyObject *found)
{
    if (found == NULL || PyList_Append(*answers, found) < 0)
        Py_CLEAR(*answers);
    Py_XDECREF(found);
    return *answers != NULL;
}

static PyObject *entries(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    struct source source;

    if (count != 5 || !PyTuple_Check(args[3]) || !PyTuple_Check(args[4]) ||
        PyTuple_GET_SIZE(args[3]) != PyTuple_GET_SIZE(args[4])) {
        PyErr_SetString(PyExc_TypeError, "entries(get, handle, layers, parents, names)");
        return NULL;
    }
    if (!take_source(&source, args, CAFS_ENTRIES))
        return NULL;
    PyObject *answers = PyList_New(0);
    if (answers == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args[3]); i++) {
        if (!append(&answers,
                    entry(&source, PyTuple_GET_ITEM(args[3], i), PyTuple_GET_ITEM(args[4], i))))
            break;
    }
    return answers;
}

static PyObject *sizes(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    struct source source;

    if (count != 4 || !PyTuple_Check(args[3])) {
        PyErr_SetString(PyExc_TypeError, "sizes(get, handle, layers, inodes)");
        return NULL;
    }
    if (!take_source(&source, args, CAFS_INODES))
        return NULL;
    PyObject *answers = PyList_New(0);
    if (answers == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args[3]); i++) {
        if (!append(&answers, size_of(&source, PyTuple_GET_ITEM(args[3], i))))
            break;
    }
    return answers;
}

/* The calling convention without a tuple is cast, as Python's own documentation has it. */
static PyMethodDef methods[] = {
    {"entries", (PyCFunction)(void (*)(void))entries, METH_FASTCALL,
     "entries(get, handle, layers, parents, names): what each name leads to."},
    {"sizes", (PyCFunction)(void (*)(void))sizes, METH_FASTCALL,
     "sizes(get, handle, layers, inodes): the size in each inode's record."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "cafs._bulk",
    .m_doc = "Thousands of records of the index at once.",
    .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__bulk(void)
{
    return PyModuleDef_Init(&module);
}

/* The Python face of cafs_format.h: cafs._index.  Checks of values, and marks in the pending file.
 *
 * Owns argument checking; keeps nothing.  Called for every record that is read or changed, so it
 * does without argument parsing and makes a new object only where one is needed.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cafs_format.h>

/* A database's number; false with an exception set. */
static bool take_database(PyObject *number, unsigned *database)
{
    const long value = PyLong_AsLong(number);

    if (value == -1 && PyErr_Occurred())
        return false;
    if (value < 0 || value >= CAFS_DATABASES) {
        PyErr_Format(PyExc_ValueError, "there is no database %ld", value);
        return false;
    }
    *database = (unsigned)value;
    return true;
}

/* The arguments of seal() and unseal(); false with an exception set. */
static bool take(PyObject *const *args, Py_ssize_t count, unsigned *database)
{
    if (count != 3) {
        PyErr_Format(PyExc_TypeError, "3 arguments wanted, not %zd", count);
        return false;
    }
    if (!PyBytes_Check(args[1]) || !PyBytes_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "key and value are bytes");
        return false;
    }
    return take_database(args[0], database);
}

static PyObject *seal(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    unsigned database;

    if (!take(args, count, &database))
        return NULL;
    if (!cafs_database_is_checked(database))
        return Py_NewRef(args[2]);
    const size_t length = (size_t)PyBytes_GET_SIZE(args[2]);
    if (length > (size_t)PY_SSIZE_T_MAX - CAFS_CHECK)
        return PyErr_NoMemory();
    PyObject *sealed = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(length + CAFS_CHECK));
    if (sealed == NULL)
        return NULL;
    uint8_t *at = (uint8_t *)PyBytes_AS_STRING(sealed);
    memcpy(at, PyBytes_AS_STRING(args[2]), length);
    uint32_t check = cafs_check(database, PyBytes_AS_STRING(args[1]), (size_t)PyBytes_GET_SIZE(args[1]),
                                at, length);
    for (size_t i = 0; i < CAFS_CHECK; i++, check >>= 8)
        at[length + i] = (uint8_t)(check & 0xff);
    return sealed;
}

static PyObject *unseal(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    unsigned database;

    if (!take(args, count, &database))
        return NULL;
    if (!cafs_database_is_checked(database))
        return Py_NewRef(args[2]);
    size_t length = (size_t)PyBytes_GET_SIZE(args[2]);
    if (!cafs_unseal(database, PyBytes_AS_STRING(args[1]), (size_t)PyBytes_GET_SIZE(args[1]),
                     PyBytes_AS_STRING(args[2]), &length))
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(args[2]), (Py_ssize_t)length);
}

/* -- the pending file ------------------------------------------------------------------------ */

/* The pending file in a writable buffer, which the caller releases; false with an exception set. */
static bool take_pending(PyObject *object, Py_buffer *buffer, struct cafs_pending *pending)
{
    if (PyObject_GetBuffer(object, buffer, PyBUF_WRITABLE) != 0)
        return false;
    if (cafs_pending_open(pending, buffer->buf, (size_t)buffer->len))
        return true;
    PyBuffer_Release(buffer);
    PyErr_SetString(PyExc_ValueError, "this is no pending file");
    return false;
}

static bool take_table(PyObject *number, unsigned *table)
{
    const long value = PyLong_AsLong(number);

    if (value == -1 && PyErr_Occurred())
        return false;
    if (value != 0 && value != 1) {
        PyErr_Format(PyExc_ValueError, "there is no table %ld", value);
        return false;
    }
    *table = (unsigned)value;
    return true;
}

/* What a record is marked by; false for records that are not marked. */
static bool mark_of(unsigned database, PyObject *key, PyObject *value, enum cafs_pending_kind *kind,
                    uint64_t *number, uint64_t *hash)
{
    const uint8_t *bytes = (const uint8_t *)PyBytes_AS_STRING(key);
    const size_t length = (size_t)PyBytes_GET_SIZE(key);

    if (length < CAFS_NUMBER_KEY)
        return false;
    *number = cafs_key_number(bytes);
    *hash = 0;
    switch (database) {
    case CAFS_INODES:
        *kind = CAFS_PENDING_INODE;
        return true;
    case CAFS_BLOBS:
    case CAFS_RECIPES:
        *kind = CAFS_PENDING_BLOB;
        return true;
    case CAFS_ENTRIES: {
        struct cafs_entry entry;
        if (length != CAFS_ENTRY_KEY)
            return false;
        *kind = CAFS_PENDING_ENTRY;
        /* By the name's own place: the entry may lie behind it. */
        if (cafs_read_entry(&entry, PyBytes_AS_STRING(value), (size_t)PyBytes_GET_SIZE(value)))
            *hash = cafs_name_cookie(entry.name, entry.name_length);
        else
            *hash = cafs_key_second(bytes);
        return true;
    }
    default:
        return false;
    }
}

static PyObject *mark(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    unsigned table, database;
    enum cafs_pending_kind kind;
    uint64_t number, hash;
    Py_buffer buffer;
    struct cafs_pending pending;

    if (count != 5) {
        PyErr_Format(PyExc_TypeError, "5 arguments wanted, not %zd", count);
        return NULL;
    }
    if (!take(args + 2, 3, &database) || !take_table(args[1], &table))
        return NULL;
    if (!mark_of(database, args[3], args[4], &kind, &number, &hash))
        Py_RETURN_NONE;
    if (!take_pending(args[0], &buffer, &pending))
        return NULL;
    const uint64_t bit = cafs_pending_bit(&pending, kind, number, hash);
    __atomic_fetch_or(cafs_pending_word(&pending, table, bit), UINT64_C(1) << (bit & 63),
                      __ATOMIC_SEQ_CST);
    PyBuffer_Release(&buffer);
    Py_RETURN_NONE;
}

static PyObject *clear(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    unsigned table;
    Py_buffer buffer;
    struct cafs_pending pending;

    if (count != 2) {
        PyErr_Format(PyExc_TypeError, "2 arguments wanted, not %zd", count);
        return NULL;
    }
    if (!take_table(args[1], &table) || !take_pending(args[0], &buffer, &pending))
        return NULL;
    uint64_t *clears = (uint64_t *)(void *)(pending.base + 16);
    __atomic_fetch_add(clears, 1, __ATOMIC_SEQ_CST);
    /* Who reads in between finds `clears` odd, or another, and what he read does not count. */
    memset(cafs_pending_word(&pending, table, 0), 0, cafs_pending_table_bytes(pending.bits));
    __atomic_fetch_add(clears, 1, __ATOMIC_SEQ_CST);
    PyBuffer_Release(&buffer);
    Py_RETURN_NONE;
}

static PyObject *retire(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    Py_buffer buffer;
    struct cafs_pending pending;

    if (count != 1) {
        PyErr_Format(PyExc_TypeError, "1 argument wanted, not %zd", count);
        return NULL;
    }
    if (!take_pending(args[0], &buffer, &pending))
        return NULL;
    __atomic_store_n((uint64_t *)(void *)(pending.base + 32), 0, __ATOMIC_SEQ_CST);
    __atomic_fetch_or((uint64_t *)(void *)(pending.base + 16), 1, __ATOMIC_SEQ_CST);
    PyBuffer_Release(&buffer);
    Py_RETURN_NONE;
}

/* The calling convention without a tuple is cast, as Python's own documentation has it. */
static PyMethodDef methods[] = {
    {"seal", (PyCFunction)(void (*)(void))seal, METH_FASTCALL,
     "seal(database, key, value): the value with its check behind it."},
    {"unseal", (PyCFunction)(void (*)(void))unseal, METH_FASTCALL,
     "unseal(database, key, sealed): the value, or None when the check is wrong."},
    {"mark", (PyCFunction)(void (*)(void))mark, METH_FASTCALL,
     "mark(buffer, table, database, key, value): say that a record changes."},
    {"clear", (PyCFunction)(void (*)(void))clear, METH_FASTCALL,
     "clear(buffer, table): take the marks of a table back."},
    {"retire", (PyCFunction)(void (*)(void))retire, METH_FASTCALL,
     "retire(buffer): say that nobody marks here any more."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "cafs._index",
    .m_doc = "Checks of the index's values, and marks in the pending file.",
    .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__index(void)
{
    return PyModuleDef_Init(&module);
}

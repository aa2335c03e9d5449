/* The Python face of split.h and sha256.h: cafs._chunker.
 *
 * Owns argument checking and memory; the kernels run with the GIL released, once per call.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "sha256.h"
#include "split.h"

static const Py_ssize_t MAX_DATA_SIZE = (Py_ssize_t)1 << 31;

/* A growing array of ends; usable without the GIL. */
struct ends {
    size_t *at;
    size_t count;
    size_t room;
};

static bool ends_append(struct ends *ends, size_t end)
{
    if (ends->count == ends->room) {
        const size_t room = ends->room == 0 ? 256 : ends->room * 2;
        size_t *grown = PyMem_RawRealloc(ends->at, room * sizeof *grown);
        if (grown == NULL)
            return false;
        ends->at = grown;
        ends->room = room;
    }
    ends->at[ends->count++] = end;
    return true;
}

/* All ends that are certain; false if memory ran out. */
static bool find_ends(const struct split_params *params, const Py_buffer *data, bool final,
                      struct ends *ends)
{
    struct split_walk walk;
    const size_t size = (size_t)data->len;
    size_t start = 0;

    split_begin(&walk, params, data->buf, size, final);
    while (start < size) {
        const size_t end = split_next(&walk, start);
        if (end == start)
            break;
        if (!ends_append(ends, end))
            return false;
        start = end;
    }
    return true;
}

static PyObject *list_of_ends(const struct ends *ends)
{
    PyObject *list = PyList_New((Py_ssize_t)ends->count);

    for (size_t i = 0; list != NULL && i < ends->count; i++) {
        PyObject *end = PyLong_FromSize_t(ends->at[i]);
        if (end == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)i, end);
    }
    return list;
}

static bool data_fits(const Py_buffer *data)
{
    if (data->len <= MAX_DATA_SIZE)
        return true;
    PyErr_SetString(PyExc_ValueError, "data must be at most 2^31 bytes");
    return false;
}

/* (ends, digests) of `data`; with `hashed` false the digests are empty. */
static PyObject *split_and_hash(const struct split_params *params, const Py_buffer *data,
                                bool final, bool hashed)
{
    struct ends ends = {NULL, 0, 0};
    uint8_t *digests = NULL;
    bool memory = false;
    bool good = false;
    PyObject *result = NULL;

    Py_BEGIN_ALLOW_THREADS
    memory = find_ends(params, data, final, &ends);
    if (memory && hashed) {
        digests = PyMem_RawMalloc(ends.count * SHA256_SIZE);
        memory = digests != NULL;
    }
    good = memory && (!hashed || sha256_slices(SHA256_AUTO, data->buf, ends.at, ends.count,
                                               digests));
    Py_END_ALLOW_THREADS

    if (good) {
        const Py_ssize_t size = hashed ? (Py_ssize_t)(ends.count * SHA256_SIZE) : 0;
        PyObject *list = list_of_ends(&ends);
        if (list != NULL)
            result = Py_BuildValue("(Ny#)", list, hashed ? (const char *)digests : "", size);
    } else if (!memory) {
        PyErr_NoMemory();
    } else {
        PyErr_SetString(PyExc_RuntimeError, "SHA-256 failed");
    }
    PyMem_RawFree(digests);
    PyMem_RawFree(ends.at);
    return result;
}

static PyObject *chunker_split(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"data", "min_size", "avg_size", "max_size", "final",
                            "zip_members", "hashed", NULL};
    Py_buffer data;
    Py_ssize_t min_size, avg_size, max_size;
    int final, zip_members, hashed = 1;
    PyObject *result = NULL;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*nnnpp|$p:split", names, &data, &min_size,
                                     &avg_size, &max_size, &final, &zip_members, &hashed))
        return NULL;
    /* A negative size becomes a huge one, which is out of bounds too. */
    const struct split_params params = {(size_t)min_size, (size_t)avg_size, (size_t)max_size,
                                        zip_members != 0};
    const char *fault = split_params_fault(&params);
    if (fault != NULL)
        PyErr_SetString(PyExc_ValueError, fault);
    else if (data_fits(&data))
        result = split_and_hash(&params, &data, final != 0, hashed != 0);
    PyBuffer_Release(&data);
    return result;
}

/* Reads a Python sequence of ascending ends within `size` into `ends`. */
static bool parse_ends(PyObject *sequence, Py_ssize_t size, struct ends *ends)
{
    Py_ssize_t before = 0;
    PyObject *fast = PySequence_Fast(sequence, "ends must be a sequence");
    bool good = fast != NULL;

    for (Py_ssize_t i = 0; good && i < PySequence_Fast_GET_SIZE(fast); i++) {
        const Py_ssize_t end = PyLong_AsSsize_t(PySequence_Fast_GET_ITEM(fast, i));
        if (end == -1 && PyErr_Occurred() != NULL) {
            good = false;
        } else if (end < before || end > size) {
            PyErr_SetString(PyExc_ValueError, "ends must ascend and lie within data");
            good = false;
        } else if (!ends_append(ends, (size_t)end)) {
            PyErr_NoMemory();
            good = false;
        }
        before = end;
    }
    Py_XDECREF(fast);
    return good;
}

static const char *const KERNEL_NAMES[SHA256_KERNELS] = {"auto", "openssl", "avx2", "avx512"};

/* The kernel of that name; SHA256_KERNELS, with ValueError set, if it cannot run here. */
static enum sha256_kernel parse_kernel(const char *name)
{
    for (enum sha256_kernel kernel = SHA256_AUTO; kernel < SHA256_KERNELS; kernel++) {
        if (strcmp(name, KERNEL_NAMES[kernel]) == 0 && sha256_can(kernel))
            return kernel;
    }
    PyErr_Format(PyExc_ValueError, "SHA-256 kernel %s: not known, or not for this processor",
                 name);
    return SHA256_KERNELS;
}

static PyObject *chunker_sha256_many(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"data", "ends", "kernel", NULL};
    Py_buffer data;
    PyObject *sequence;
    const char *kernel_name = KERNEL_NAMES[SHA256_AUTO];
    PyObject *result = NULL;
    struct ends ends = {NULL, 0, 0};

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*O|$s:sha256_many", names, &data, &sequence,
                                     &kernel_name))
        return NULL;
    const enum sha256_kernel kernel = parse_kernel(kernel_name);
    if (kernel != SHA256_KERNELS && data_fits(&data) && parse_ends(sequence, data.len, &ends))
        result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(ends.count * SHA256_SIZE));
    if (result != NULL) {
        bool good;
        uint8_t *out = (uint8_t *)PyBytes_AS_STRING(result);
        Py_BEGIN_ALLOW_THREADS
        good = sha256_slices(kernel, data.buf, ends.at, ends.count, out);
        Py_END_ALLOW_THREADS
        if (!good) {
            Py_CLEAR(result);
            PyErr_SetString(PyExc_RuntimeError, "SHA-256 failed");
        }
    }
    PyMem_RawFree(ends.at);
    PyBuffer_Release(&data);
    return result;
}

static PyObject *chunker_sha256_kernels(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    PyObject *list = PyList_New(0);

    for (enum sha256_kernel kernel = SHA256_OPENSSL; kernel < SHA256_KERNELS; kernel++) {
        PyObject *name;
        if (list == NULL || !sha256_can(kernel))
            continue;
        name = PyUnicode_FromString(KERNEL_NAMES[kernel]);
        if (name == NULL || PyList_Append(list, name) != 0)
            Py_CLEAR(list);
        Py_XDECREF(name);
    }
    return list;
}

static PyMethodDef methods[] = {
    {"split", (PyCFunction)(void (*)(void))chunker_split, METH_VARARGS | METH_KEYWORDS,
     "split(data, min_size, avg_size, max_size, final, zip_members, *, hashed=True)\n--\n\n"
     "The ends of all certain slices of data, and their SHA-256 digests joined."},
    {"sha256_many", (PyCFunction)(void (*)(void))chunker_sha256_many,
     METH_VARARGS | METH_KEYWORDS,
     "sha256_many(data, ends, *, kernel='auto')\n--\n\n"
     "The SHA-256 digests, joined, of the slices of data that end at ends."},
    {"sha256_kernels", chunker_sha256_kernels, METH_NOARGS,
     "sha256_kernels()\n--\n\n"
     "The names of the SHA-256 kernels that this machine can run."},
    {NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *Py_UNUSED(module))
{
    if (sha256_setup())
        return 0;
    PyErr_SetString(PyExc_ImportError, "OpenSSL offers no SHA-256");
    return -1;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "cafs._chunker",
    .m_doc = "Cutting content into chunks and hashing them, with the GIL released.",
    .m_methods = methods, .m_slots = slots,
};

PyMODINIT_FUNC PyInit__chunker(void);

PyMODINIT_FUNC PyInit__chunker(void)
{
    return PyModuleDef_Init(&definition);
}

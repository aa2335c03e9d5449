/* The Python face of cut.h and sha256.h: cafs._chunker.
 *
 * Owns argument checking and memory; the kernels run with the GIL released, once per call.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "cut.h"
#include "sha256.h"

static const Py_ssize_t MAX_DATA_SIZE = (Py_ssize_t)1 << 31;

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

static struct bytes bytes_of(const Py_buffer *buffer)
{
    static const uint8_t nothing;

    /* An empty buffer need not have an address. */
    return (struct bytes){buffer->buf != NULL ? buffer->buf : &nothing, (size_t)buffer->len};
}

static PyObject *find_ends(const struct split_params *params, const Py_buffer *left,
                           const Py_buffer *data, bool final)
{
    struct ends ends = {NULL, 0, 0};
    PyObject *result = NULL;
    bool memory;

    Py_BEGIN_ALLOW_THREADS
    memory = cut_find(&ends, params, bytes_of(left), bytes_of(data), final);
    Py_END_ALLOW_THREADS

    result = memory ? list_of_ends(&ends) : PyErr_NoMemory();
    free(ends.at);
    return result;
}

static PyObject *chunker_split(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"data", "min_size", "avg_size", "max_size", "final",
                            "zip_members", "left", NULL};
    Py_buffer data, left = {.buf = NULL};
    Py_ssize_t min_size, avg_size, max_size;
    int final, zip_members;
    PyObject *result = NULL;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*nnnpp|$y*:split", names, &data, &min_size,
                                     &avg_size, &max_size, &final, &zip_members, &left))
        return NULL;
    /* A negative size becomes a huge one, which is out of bounds too. */
    const struct split_params params = {(size_t)min_size, (size_t)avg_size, (size_t)max_size,
                                        zip_members != 0};
    const char *fault = split_params_fault(&params);
    if (fault != NULL)
        PyErr_SetString(PyExc_ValueError, fault);
    else if (data_fits(&data) && data_fits(&left))
        result = find_ends(&params, &left, &data, final != 0);
    PyBuffer_Release(&left);
    PyBuffer_Release(&data);
    return result;
}

static const char *const KERNEL_NAMES[SHA256_KERNELS] = {
    "auto", "openssl", "avx2", "avx512", "avx512-wide",
};

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

/* The digests, joined, of `count` buffers. */
static PyObject *digests_of(enum sha256_kernel kernel, const struct bytes *bytes, size_t count)
{
    PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(count * SHA256_SIZE));
    bool good;

    if (result == NULL)
        return NULL;
    uint8_t *out = (uint8_t *)PyBytes_AS_STRING(result);
    Py_BEGIN_ALLOW_THREADS
    good = sha256_each(kernel, bytes, count, out);
    Py_END_ALLOW_THREADS
    if (!good) {
        Py_CLEAR(result);
        PyErr_SetString(PyExc_RuntimeError, "SHA-256 failed");
    }
    return result;
}

static PyObject *chunker_sha256_each(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"buffers", "kernel", NULL};
    PyObject *sequence, *fast;
    const char *kernel_name = KERNEL_NAMES[SHA256_AUTO];
    PyObject *result = NULL;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$s:sha256_each", names, &sequence,
                                     &kernel_name))
        return NULL;
    const enum sha256_kernel kernel = parse_kernel(kernel_name);
    if (kernel == SHA256_KERNELS)
        return NULL;
    fast = PySequence_Fast(sequence, "buffers must be a sequence");
    if (fast == NULL)
        return NULL;
    const size_t count = (size_t)PySequence_Fast_GET_SIZE(fast);
    Py_buffer *buffers = PyMem_Calloc(count + 1, sizeof *buffers);
    struct bytes *bytes = PyMem_Calloc(count + 1, sizeof *bytes);
    size_t taken = 0;
    if (buffers == NULL || bytes == NULL) {
        PyErr_NoMemory();
    } else {
        while (taken < count && PyObject_GetBuffer(PySequence_Fast_GET_ITEM(fast, taken),
                                                   &buffers[taken], PyBUF_SIMPLE) == 0) {
            bytes[taken] = bytes_of(&buffers[taken]);
            taken++;
        }
        if (taken == count)
            result = digests_of(kernel, bytes, count);
    }
    while (taken > 0)
        PyBuffer_Release(&buffers[--taken]);
    PyMem_Free(bytes);
    PyMem_Free(buffers);
    Py_DECREF(fast);
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
     "split(data, min_size, avg_size, max_size, final, zip_members, *, left=b'')\n--\n\n"
     "The ends of all certain slices of left and data."},
    {"sha256_each", (PyCFunction)(void (*)(void))chunker_sha256_each,
     METH_VARARGS | METH_KEYWORDS,
     "sha256_each(buffers, *, kernel='auto')\n--\n\n"
     "The SHA-256 digests, joined, of some buffers."},
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

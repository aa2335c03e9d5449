/* cafs._receive: what a fast sender has for us, in one call.
 *
 * A socket holds a fraction of a megabyte.  Emptied from the event loop it is full most of the
 * time, since each look at it waits for a turn, and the sender waits with it.  Here the
 * interpreter lock is let go of once, and the kernel wakes this thread by itself.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <sys/socket.h>
#include <time.h>

static long long now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Returns how many bytes came, or -1 with errno.  Ends at *end*, however the bytes trickle in. */
static ssize_t receive(int fd, uint8_t *target, size_t size, int patience_ms, long long end)
{
    size_t got = 0;

    while (got < size && now_ms() <= end) {
        const ssize_t some = recv(fd, target + got, size - got, MSG_DONTWAIT);
        if (some > 0) {
            got += (size_t)some;
        } else if (some == 0) {
            break;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            struct pollfd wait = {.fd = fd, .events = POLLIN};
            if (poll(&wait, 1, patience_ms) == 0)
                break;
        } else if (errno != EINTR) {
            /* What came before an error is not lost: the next call meets the error again, or the
             * end. */
            return got > 0 ? (ssize_t)got : -1;
        }
    }
    return (ssize_t)got;
}

static PyObject *receive_many(PyObject *Py_UNUSED(module), PyObject *args)
{
    int fd, patience_ms, most_ms;
    Py_ssize_t size;
    ssize_t got;
    PyObject *data;

    if (!PyArg_ParseTuple(args, "inii:many", &fd, &size, &patience_ms, &most_ms))
        return NULL;
    if (size <= 0 || patience_ms < 0 || most_ms < 0) {
        PyErr_SetString(PyExc_ValueError, "size must be above 0, and times not below");
        return NULL;
    }
    data = PyBytes_FromStringAndSize(NULL, size);
    if (data == NULL)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    got = receive(fd, (uint8_t *)PyBytes_AS_STRING(data), (size_t)size, patience_ms,
                  now_ms() + most_ms);
    Py_END_ALLOW_THREADS
    if (got < 0) {
        Py_DECREF(data);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    if (got != size && _PyBytes_Resize(&data, got) != 0)
        return NULL;
    return data;
}

static PyMethodDef functions[] = {
    {"many", receive_many, METH_VARARGS,
     "many(fd, size, patience_ms, most_ms)\n\n"
     "Up to size bytes from a socket, while more come within patience_ms, for most_ms at most."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "cafs._receive",
    .m_doc = "What a fast sender has for us, in one call.",
    .m_size = 0,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__receive(void)
{
    return PyModule_Create(&definition);
}

/* fsgateway._fuse_extra: handlers of libfuse's that pyfuse3 does not have.
 *
 * pyfuse3 hands its table of handlers to libfuse in fuse_session_new. This module is loaded before it with RTLD_GLOBAL,
 * so that its own function of that name is the one pyfuse3 finds: it adds what is missing to a copy of the table, and
 * goes on to libfuse's. Nothing of pyfuse3 or libfuse is changed, and no layout is assumed that is not in its header.
 *
 * Each handler calls a Python callable with a Request, which is answered now or later, but once; one that nobody
 * answers is answered with EIO when it is dropped, so that no caller waits for ever.
 *
 * A further handler is one entry in `kinds`, one function that builds the arguments, and one line in `fill_in`.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define FUSE_USE_VERSION 314
#include "_fuse_direct.h"
#include "_fuse_init.h"
#include "_fuse_listing.h"
#include <dlfcn.h>
#include <errno.h>
#include <fuse3/fuse_lowlevel.h>
#include <string.h>
#include <time.h>

enum { LSEEK, FALLOCATE, KINDS };
static const char *const kinds[KINDS] = {"lseek", "fallocate"};
static PyObject *handlers[KINDS];
static unsigned sessions; /* that got our table: 0 means pyfuse3 was loaded first */
static unsigned wanted, refused; /* capabilities (FUSE_CAP_*) beyond what pyfuse3 chooses */
static void (*given_init)(void *userdata, struct fuse_conn_info *conn);

/* ----- one request */

typedef struct {
    PyObject_HEAD
    fuse_req_t req; /* NULL once it is answered */
} Request;

static fuse_req_t take(Request *self)
{
    fuse_req_t req = self->req;
    self->req = NULL;
    if (!req)
        PyErr_SetString(PyExc_RuntimeError, "this request has its answer");
    return req;
}

/* The caller may have been killed meanwhile: then nobody wants the answer, and that is no error of ours. */
static PyObject *reply_offset(Request *self, PyObject *offset)
{
    long long value = PyLong_AsLongLong(offset);
    if (value == -1 && PyErr_Occurred())
        return NULL;
    fuse_req_t req = take(self);
    if (!req)
        return NULL;
    fuse_reply_lseek(req, value);
    Py_RETURN_NONE;
}

static PyObject *reply_error(Request *self, PyObject *number)
{
    long value = PyLong_AsLong(number);
    if (value == -1 && PyErr_Occurred())
        return NULL;
    fuse_req_t req = take(self);
    if (!req)
        return NULL;
    fuse_reply_err(req, (int)value);
    Py_RETURN_NONE;
}

static void drop(Request *self)
{
    if (self->req)
        fuse_reply_err(self->req, EIO);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef request_methods[] = {
    {"reply_offset", (PyCFunction)reply_offset, METH_O, "Answer an lseek."},
    {"reply_error", (PyCFunction)reply_error, METH_O, "Answer with an errno; 0 is success."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject RequestType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "fsgateway._fuse_extra.Request",
    .tp_basicsize = sizeof(Request),
    .tp_dealloc = (destructor)drop,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "What the kernel waits to be told.",
    .tp_methods = request_methods,
};

/* ----- the handlers */

/* Calls one with (request, *arguments); takes `arguments`. */
static void call(int kind, fuse_req_t req, PyObject *arguments)
{
    Request *request = arguments ? PyObject_New(Request, &RequestType) : NULL;
    if (!request) {
        Py_XDECREF(arguments);
        PyErr_Clear();
        fuse_reply_err(req, ENOMEM);
        return;
    }
    request->req = req;
    PyObject *first = PyTuple_Pack(1, request);
    PyObject *all = first ? PySequence_Concat(first, arguments) : NULL;
    PyObject *result = all ? PyObject_CallObject(handlers[kind], all) : NULL;
    if (!result)
        PyErr_WriteUnraisable(handlers[kind]);
    Py_XDECREF(result);
    Py_XDECREF(all);
    Py_XDECREF(first);
    Py_DECREF(arguments);
    Py_DECREF(request);
}

static void on_lseek(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence, struct fuse_file_info *fi)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    call(LSEEK, req, Py_BuildValue("KKLi", (unsigned long long)ino, (unsigned long long)fi->fh, (long long)offset, whence));
    PyGILState_Release(gil);
}

static void on_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length, struct fuse_file_info *fi)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    call(FALLOCATE, req, Py_BuildValue("KKiLL", (unsigned long long)ino, (unsigned long long)fi->fh, mode,
                                       (long long)offset, (long long)length));
    PyGILState_Release(gil);
}

static void on_init(void *userdata, struct fuse_conn_info *conn)
{
    if (given_init)
        given_init(userdata, conn);
    conn->want = (conn->want & ~refused) | (wanted & conn->capable);
}

/* ----- what pyfuse3 calls in libfuse's place */

typedef union {
    struct fuse_lowlevel_ops ops;
    char room[sizeof(struct fuse_lowlevel_ops) + 64 * sizeof(void *)]; /* pyfuse3 may be built with a newer header */
} Table;

/* Copies the table and adds what was asked for and is not there; returns its new size, 0 when it does not fit. */
static size_t fill_in(Table *table, const struct fuse_lowlevel_ops *given, size_t size)
{
    if (size > sizeof *table)
        return 0;
    memset(table, 0, sizeof *table);
    memcpy(table, given, size);
    if (handlers[LSEEK] && !table->ops.lseek)
        table->ops.lseek = on_lseek;
    if (handlers[FALLOCATE] && !table->ops.fallocate)
        table->ops.fallocate = on_fallocate;
    add_direct_handlers(&table->ops);
    add_listing_handlers(&table->ops);
    if (wanted || refused) {
        given_init = table->ops.init;
        table->ops.init = on_init;
    }
    sessions++;
    return size > sizeof table->ops ? size : sizeof table->ops;
}

struct libfuse_version;
typedef struct fuse_session *(*New)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *);
typedef struct fuse_session *(*NewVersioned)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t,
                                             struct libfuse_version *, void *);

#undef fuse_session_new
struct fuse_session *fuse_session_new(struct fuse_args *args, const struct fuse_lowlevel_ops *given, size_t size,
                                      void *userdata)
{
    static Table table;
    New next = (New)dlsym(RTLD_NEXT, "fuse_session_new");
    size_t filled = fill_in(&table, given, size);
    if (!next)
        return NULL;
    return filled ? next(args, &table.ops, filled, userdata) : next(args, given, size, userdata);
}

/* What the header of libfuse 3.17 and later makes of fuse_session_new. */
struct fuse_session *fuse_session_new_versioned(struct fuse_args *args, const struct fuse_lowlevel_ops *given, size_t size,
                                                struct libfuse_version *version, void *userdata)
{
    static Table table;
    NewVersioned next = (NewVersioned)dlsym(RTLD_NEXT, "fuse_session_new_versioned");
    size_t filled = fill_in(&table, given, size);
    if (!next)
        return NULL;
    return filled ? next(args, &table.ops, filled, version, userdata) : next(args, given, size, version, userdata);
}

/* ----- the module */

static PyObject *set_handler(PyObject *module, PyObject *args)
{
    const char *name;
    PyObject *handler;
    if (!PyArg_ParseTuple(args, "sO:set_handler", &name, &handler))
        return NULL;
    for (int kind = 0; kind < KINDS; kind++) {
        if (strcmp(name, kinds[kind]) == 0) {
            PyObject *before = handlers[kind];
            handlers[kind] = handler == Py_None ? NULL : Py_NewRef(handler);
            Py_XDECREF(before);
            Py_RETURN_NONE;
        }
    }
    return PyErr_Format(PyExc_ValueError, "no handler %s", name);
}

static PyObject *set_capabilities(PyObject *module, PyObject *args)
{
    return PyArg_ParseTuple(args, "II:set_capabilities", &wanted, &refused) ? Py_NewRef(Py_None) : NULL;
}

static PyObject *session_count(PyObject *module, PyObject *unused)
{
    return PyLong_FromUnsignedLong(sessions);
}

static PyMethodDef methods[] = {
    {"set_handler", set_handler, METH_VARARGS, "set_handler(name, callable): for the sessions begun afterwards."},
    {"set_capabilities", set_capabilities, METH_VARARGS, "set_capabilities(wanted, refused): FUSE_CAP_*, likewise."},
    {"set_direct_handlers", set_direct_handlers, METH_VARARGS,
     "set_direct_handlers({kind: function}, failed, bare, activity, (first, end)): see _fuse_direct.c; for the sessions begun afterwards."},
    {"directly_taken", directly_taken, METH_NOARGS, "How many requests were, since the last call."},
    {"set_listing", set_listing, METH_VARARGS,
     "set_listing(read, told, uid, gid, umask, timeout_s): directories of trees, for the sessions begun afterwards."},
    {"can_map_uncached", can_map_uncached, METH_NOARGS, "Whether this session's kernel maps what it does not cache."},
    {"session_count", session_count, METH_NOARGS, "How many sessions got the handlers."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_fuse_extra", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__fuse_extra(void)
{
    if (PyType_Ready(&RequestType) < 0 || add_listing_types() < 0)
        return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made != NULL && PyModule_AddIntConstant(made, "INTERFACE", 2) < 0) // see store/native.py
        Py_CLEAR(made);
    return made;
}

/* What _fuse_extra.c takes from _fuse_direct.c, which says what it is for. */
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#ifndef FUSE_USE_VERSION
#define FUSE_USE_VERSION 314
#endif
#include <fuse3/fuse_lowlevel.h>

/* Puts direct handlers before those of the table where there are some. */
void add_direct_handlers(struct fuse_lowlevel_ops *ops);

/* How many requests were taken without pyfuse3 since the last call. */
PyObject *directly_taken(PyObject *module, PyObject *unused);

/* Another of our handlers has answered the request at hand: the next one is looked for at once, too. */
void answered_directly(void);

PyObject *set_direct_handlers(PyObject *module, PyObject *arguments);

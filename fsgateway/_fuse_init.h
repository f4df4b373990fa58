/* What the other files take from _fuse_init.c, which says what it is for. */
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#ifndef FUSE_USE_VERSION
#define FUSE_USE_VERSION 314
#endif
#include <fuse3/fuse_lowlevel.h>

/* To be shown each request before libfuse is. */
void watch_for_init(struct fuse_session *session, const struct fuse_buf *request);

/* Whether the kernel of the session that began last maps files that it does not cache. */
PyObject *can_map_uncached(PyObject *module, PyObject *unused);

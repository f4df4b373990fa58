/* What _fuse_extra.c takes from _fuse_listing.c, which says what it is for. */
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#ifndef FUSE_USE_VERSION
#define FUSE_USE_VERSION 314
#endif
#include <fuse3/fuse_lowlevel.h>

/* Puts the handlers for directories of trees before those of the table, if `set_listing` was called. */
void add_listing_handlers(struct fuse_lowlevel_ops *ops);

int add_listing_types(void);

PyObject *set_listing(PyObject *module, PyObject *arguments);

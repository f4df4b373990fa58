/* The system calls that a backup and a restore make for every file, a handful at a time without the GIL.
 *
 * Only the usual case is here: whatever else happens, the answer is None (and nothing was done), and the
 * caller goes the long way in Python, which knows all cases. So these functions may be missing.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define OPEN_FLAGS (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY | O_NOATIME)
#define CREATE_FLAGS (O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC)
#define SECOND 1000000000LL
#define SMALLEST_NS (INT64_MIN / SECOND)

static PyStructSequence_Field facts_fields[] = {
    {"st_mode", NULL}, {"st_ino", NULL}, {"st_dev", NULL}, {"st_nlink", NULL},     {"st_uid", NULL},
    {"st_gid", NULL},  {"st_size", NULL}, {"st_mtime_ns", NULL}, {NULL, NULL},
};

static PyStructSequence_Desc facts_desc = {
    "store.operations._inode.Facts", "What fstat said of a regular file, by os.stat_result's names.", facts_fields, 8,
};

static PyTypeObject *facts_type;

static PyObject *make_facts(const struct stat *found)
{
    PyObject *facts = PyStructSequence_New(facts_type);
    if (facts == NULL)
        return NULL;
    PyStructSequence_SET_ITEM(facts, 0, PyLong_FromUnsignedLong(found->st_mode));
    PyStructSequence_SET_ITEM(facts, 1, PyLong_FromUnsignedLongLong(found->st_ino));
    PyStructSequence_SET_ITEM(facts, 2, PyLong_FromUnsignedLongLong(found->st_dev));
    PyStructSequence_SET_ITEM(facts, 3, PyLong_FromUnsignedLong(found->st_nlink));
    PyStructSequence_SET_ITEM(facts, 4, PyLong_FromUnsignedLong(found->st_uid));
    PyStructSequence_SET_ITEM(facts, 5, PyLong_FromUnsignedLong(found->st_gid));
    PyStructSequence_SET_ITEM(facts, 6, PyLong_FromLongLong(found->st_size));
    PyStructSequence_SET_ITEM(facts, 7, PyLong_FromLongLong(found->st_mtim.tv_sec * SECOND + found->st_mtim.tv_nsec));
    if (PyErr_Occurred()) {
        Py_DECREF(facts);
        return NULL;
    }
    return facts;
}

PyDoc_STRVAR(open_file_doc,
"open_file(name, directory, /) -> (descriptor, facts, flags, project, xattrs) | None\n\n"
"Open a regular file below a directory's descriptor, following no symlink, and ask for its facts.\n"
"flags: FS_IOC_GETFLAGS, project: of FS_IOC_FSGETXATTR, xattrs: bytes of the names; each -1 where it was not\n"
"told. None: not a regular file, or anything that wants a closer look; then nothing is open.");

static PyObject *open_file(PyObject *self, PyObject *args)
{
    const char *name;
    int directory, file;
    long flags = -1;
    long long project = -1;
    ssize_t xattrs = -1;
    struct stat found;
    (void)self;

    if (!PyArg_ParseTuple(args, "yi:open_file", &name, &directory))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    file = openat(directory, name, OPEN_FLAGS);
    if (file >= 0) {
        if (fstat(file, &found) != 0 || !S_ISREG(found.st_mode) || found.st_mtim.tv_sec <= SMALLEST_NS ||
            found.st_mtim.tv_sec >= -SMALLEST_NS) {
            close(file);
            file = -1;
        } else {
            unsigned int bits[2] = {0, 0};
            struct fsxattr more;
            if (ioctl(file, FS_IOC_GETFLAGS, bits) == 0)
                flags = (long)bits[0];
            if (ioctl(file, FS_IOC_FSGETXATTR, &more) == 0)
                project = more.fsx_projid;
            xattrs = flistxattr(file, NULL, 0);
        }
    }
    Py_END_ALLOW_THREADS
    if (file < 0)
        Py_RETURN_NONE;
    PyObject *facts = make_facts(&found);
    PyObject *result = facts == NULL ? NULL : Py_BuildValue("iNlLn", file, facts, flags, project, xattrs);
    if (result == NULL)
        close(file);
    return result;
}

PyDoc_STRVAR(make_file_doc,
"make_file(name, directory, content, mode, uid, gid, mtime_s, mtime_ns, /) -> bool\n\n"
"Create a small regular file below a directory's descriptor with content, owner (uid -1: leave it), mode and\n"
"times. False: it could not be done whole (the name is taken, no room, not allowed); then nothing is there.");

static int fill(int file, const Py_buffer *content, mode_t mode, uid_t uid, gid_t gid, const struct timespec times[2])
{
    struct stat found;
    if (content->len > 0 && write(file, content->buf, (size_t)content->len) != content->len)
        return -1;
    if (uid != (uid_t)-1) {
        if (fstat(file, &found) != 0)
            return -1;
        if ((found.st_uid != uid || found.st_gid != gid) && fchown(file, uid, gid) != 0)
            return -1;
    }
    if (fchmod(file, mode) != 0)
        return -1;
    return futimens(file, times);
}

static PyObject *make_file(PyObject *self, PyObject *args)
{
    const char *name;
    int directory, file, failed = 1;
    unsigned int mode;
    long uid, gid;
    long long seconds, nanoseconds;
    Py_buffer content;
    (void)self;

    if (!PyArg_ParseTuple(args, "yiy*IllLL:make_file", &name, &directory, &content, &mode, &uid, &gid, &seconds, &nanoseconds))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    file = openat(directory, name, CREATE_FLAGS, 0600);
    if (file >= 0) {
        struct timespec times[2] = {{seconds, (long)nanoseconds}, {seconds, (long)nanoseconds}};
        failed = fill(file, &content, (mode_t)mode, (uid_t)uid, (gid_t)gid, times);
        failed |= close(file);
        if (failed)
            unlinkat(directory, name, 0);
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&content);
    return PyBool_FromLong(!failed);
}

static PyMethodDef methods[] = {
    {"open_file", open_file, METH_VARARGS, open_file_doc},
    {"make_file", make_file, METH_VARARGS, make_file_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_inode", "System calls on files, a handful at a time.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__inode(void)
{
    facts_type = PyStructSequence_NewType(&facts_desc);
    return facts_type == NULL ? NULL : PyModule_Create(&module);
}

/* The system calls that a backup and a restore make for every file, a handful at a time without the GIL.
 *
 * Only the usual case is here: at whatever else they stop, with nothing done, and the caller goes the long way
 * in Python, which knows all cases. So this module may be missing.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define OPEN_FLAGS (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY | O_NOATIME)
#define CREATE_FLAGS (O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC)
#define SECOND 1000000000LL

/* pxar's items (store/format/pxar/items.py): all integers are little-endian. */
#define PXAR_ENTRY 0xD5956474E588ACEFULL
#define PXAR_FILENAME 0x16701121063917B3ULL
#define PXAR_PAYLOAD_REF 0x419D3D6BC4BA977EULL
#define HEADER 16
#define ENTRY 56
#define REFERENCE 32
#define TICK_NS 20000000LL
#define MOST_FILES 1024
#define RECORD 3

struct question {
    int directory, has_flags, has_project_ids, has_xattrs;
    unsigned long changing_flags;
    dev_t device;
};

static void put64(uint8_t *to, uint64_t value)
{
    for (int i = 0; i < 8; i++)
        to[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get64(const uint8_t *from)
{
    uint64_t value = 0;
    for (int i = 0; i < 8; i++)
        value |= (uint64_t)from[i] << (8 * i);
    return value;
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec * SECOND + now.tv_nsec;
}

/* Whether nothing but the stat item is recorded of an open file; errno values as in backup/inode.py. */
static int is_plain(int file, const struct question *ask)
{
    unsigned int bits[2] = {0, 0};
    struct fsxattr more;
    if (ask->has_flags && (ioctl(file, FS_IOC_GETFLAGS, bits) != 0 || bits[0] & ask->changing_flags))
        return 0;
    if (ask->has_project_ids && (ioctl(file, FS_IOC_FSGETXATTR, &more) != 0 || more.fsx_projid))
        return 0;
    return !ask->has_xattrs || flistxattr(file, NULL, 0) == 0;
}

/* Whether a file is there with exactly these facts (an ENTRY item) and this size. */
static int is_as_recorded(const char *name, const uint8_t *entry, uint64_t size, const struct question *ask)
{
    struct stat found;
    uint8_t item[ENTRY] = {0};
    int same = 0, file = openat(ask->directory, name, OPEN_FLAGS);
    if (file < 0)
        return 0;
    if (fstat(file, &found) == 0 && S_ISREG(found.st_mode) && found.st_nlink == 1 && found.st_dev == ask->device &&
        (uint64_t)found.st_size == size) {
        int64_t age = now_ns() - (found.st_mtim.tv_sec * SECOND + found.st_mtim.tv_nsec);
        put64(item, PXAR_ENTRY);
        put64(item + 8, ENTRY);
        put64(item + 16, found.st_mode);
        put64(item + 32, found.st_uid | (uint64_t)found.st_gid << 32);
        put64(item + 40, (uint64_t)found.st_mtim.tv_sec);
        put64(item + 48, (uint64_t)found.st_mtim.tv_nsec);
        same = memcmp(item, entry, ENTRY) == 0 && !(age >= 0 && age < TICK_NS) && is_plain(file, ask);
    }
    close(file);
    return same;
}

PyDoc_STRVAR(unchanged_files_doc,
"unchanged_files(names, items, position, question, /) -> (lengths, payloads, sizes)\n\n"
"How many of the files to come are as an archive has them: for each, the bytes of its items in there, and where\n"
"its content is and how long; three bytes objects of native 64-bit integers.\n\n"
"names: listed names, the next one last, each with b'\\0f' behind it for a regular file (listing.py).\n"
"items: a piece of a metadata stream with the next child at `position`.\n"
"question: (directory's descriptor, its device, chattr bits that are recorded, has flags, project ids, xattrs).\n"
"Ends before the first name, item or file that wants a closer look, and after 1024.");

static PyObject *unchanged_files(PyObject *self, PyObject *args)
{
    PyObject *names;
    Py_buffer items;
    Py_ssize_t position, offered = 0;
    struct question ask;
    unsigned long long device;
    const char *texts[MOST_FILES];
    Py_ssize_t sizes[MOST_FILES];
    uint64_t records[RECORD][MOST_FILES];
    int count = 0;
    (void)self;

    if (!PyArg_ParseTuple(args, "O!y*n(iKkppp):unchanged_files", &PyList_Type, &names, &items, &position, &ask.directory,
                          &device, &ask.changing_flags, &ask.has_flags, &ask.has_project_ids, &ask.has_xattrs))
        return NULL;
    ask.device = (dev_t)device;
    for (Py_ssize_t i = PyList_GET_SIZE(names) - 1; i >= 0 && offered < MOST_FILES; i--) {
        PyObject *name = PyList_GET_ITEM(names, i);
        Py_ssize_t size = PyBytes_Check(name) ? PyBytes_GET_SIZE(name) - 2 : 0;
        if (size < 1 || memcmp(PyBytes_AS_STRING(name) + size, "\0f", 2) != 0)
            break;
        if (offered && sizes[offered - 1] == size && memcmp(texts[offered - 1], PyBytes_AS_STRING(name), (size_t)size) == 0)
            break; /* listed twice */
        texts[offered] = PyBytes_AS_STRING(name); /* `names` holds it; only our caller changes `names` */
        sizes[offered++] = size;
    }
    Py_BEGIN_ALLOW_THREADS
    const uint8_t *data = items.buf;
    for (; count < offered; count++) {
        Py_ssize_t name = HEADER + sizes[count] + 1, whole = name + ENTRY + REFERENCE;
        const uint8_t *item = data + position, *entry = item + name, *reference = entry + ENTRY;
        if (position < 0 || position + whole > items.len || get64(item) != PXAR_FILENAME ||
            get64(item + 8) != (uint64_t)name || memcmp(item + HEADER, texts[count], (size_t)sizes[count] + 1) != 0 ||
            get64(reference) != PXAR_PAYLOAD_REF || get64(reference + 8) != REFERENCE ||
            !is_as_recorded(texts[count], entry, get64(reference + 24), &ask))
            break;
        records[0][count] = (uint64_t)whole;
        records[1][count] = get64(reference + 16);
        records[2][count] = get64(reference + 24);
        position += whole;
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&items);
    return Py_BuildValue("y#y#y#", records[0], count * (Py_ssize_t)8, records[1], count * (Py_ssize_t)8, records[2],
                         count * (Py_ssize_t)8);
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
    {"unchanged_files", unchanged_files, METH_VARARGS, unchanged_files_doc},
    {"make_file", make_file, METH_VARARGS, make_file_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_inode", "System calls on files, a handful at a time.", 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__inode(void)
{
    return PyModuleDef_Init(&module);
}

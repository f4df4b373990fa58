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
#include <limits.h>
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
#define PXAR_PAYLOAD 0x28147A1B0B7C1A25ULL
#define PXAR_PAYLOAD_REF 0x419D3D6BC4BA977EULL
#define HEADER 16
#define ENTRY 56
#define REFERENCE 32
#define TICK_NS 20000000LL
#define MOST_FILES 1024
#define RECORD 3
#define MOST_SMALL_FILES 64

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

PyDoc_STRVAR(small_files_doc,
"small_files(items, payload, start, limit, target, /) -> (files, length, size)\n\n"
"Create the ordinary small files that an archive goes on with, each whole: content, owner, mode, times.\n\n"
"items: a piece of an archive (v1) or metadata stream (v2) that begins with an entry.\n"
"payload: None for v1, else a piece of the payload stream, from offset `start`.\n"
"limit: only files of fewer bytes. target: (directory's descriptor, our uid and gid, what becomes of files of\n"
"other owners: 0 end there, 1 leave them to us, without setuid bits, 2 give them away).\n"
"Returns how many were made, the bytes of their items, and of their contents.\n"
"Ends before the first entry that is something else, is not here whole or can't be made so, with nothing of it\n"
"left; and after 64.");

enum { WARN, LEAVE, GIVE }; /* ForeignOwners in restore/attributes.py */

struct target {
    int directory, foreign;
    unsigned int uid, gid;
    uint64_t limit;
};

struct payload {
    const uint8_t *data; /* NULL: contents are in the archive */
    uint64_t size, start;
};

struct small_file {
    const char *name;
    mode_t mode;
    uid_t uid;
    gid_t gid;
    struct timespec times[2];
    const uint8_t *content;
    uint64_t size;
};

static int is_name(const uint8_t *text, uint64_t size)
{
    return memchr(text, 0, size) == text + size - 1 && !memchr(text, '/', size) && strcmp((const char *)text, ".") != 0 &&
           strcmp((const char *)text, "..") != 0;
}

/* Where a file's PAYLOAD item is, by the item at `at`, and how many bytes are there; NULL: not here. */
static const uint8_t *find_payload(const uint8_t *at, uint64_t *left, const struct payload *payload)
{
    if (payload->data == NULL)
        return at;
    if (*left < REFERENCE || get64(at) != PXAR_PAYLOAD_REF || get64(at + 8) != REFERENCE)
        return NULL;
    uint64_t offset = get64(at + HEADER) - payload->start; /* huge where it lies before */
    if (offset > payload->size)
        return NULL;
    *left = payload->size - offset;
    return payload->data + offset;
}

/* Read one entry; the bytes of its items, or 0 where it is no ordinary small file or not here whole. */
static uint64_t parse(const uint8_t *item, uint64_t left, const struct payload *payload, uint64_t limit,
                      struct small_file *file)
{
    uint64_t name = left < HEADER ? 0 : get64(item + 8);
    if (name < HEADER + 2 || name > HEADER + NAME_MAX + 1 || left < name + ENTRY + HEADER ||
        get64(item) != PXAR_FILENAME || !is_name(item + HEADER, name - HEADER))
        return 0;
    const uint8_t *entry = item + name, *content = entry + ENTRY;
    uint64_t mode = get64(entry + 16), flags = get64(entry + 24), nanoseconds = get64(entry + 48) & UINT32_MAX;
    if (get64(entry) != PXAR_ENTRY || get64(entry + 8) != ENTRY || mode >> 12 != S_IFREG >> 12 || flags ||
        nanoseconds >= SECOND)
        return 0;
    left -= name + ENTRY;
    content = find_payload(content, &left, payload);
    if (content == NULL || left < HEADER || get64(content) != PXAR_PAYLOAD)
        return 0;
    uint64_t size = get64(content + 8) - HEADER; /* huge where it is less */
    if (size >= limit || left - HEADER < size || (payload->data && get64(entry + ENTRY + 24) != size))
        return 0;
    struct timespec time = {(time_t)get64(entry + 40), (long)nanoseconds};
    *file = (struct small_file){(const char *)item + HEADER, mode & 07777, (uid_t)get64(entry + 32),
                                (gid_t)(get64(entry + 32) >> 32), {time, time}, content + HEADER, size};
    return name + ENTRY + (payload->data ? REFERENCE : HEADER + size);
}

static int fill(int file, const struct small_file *facts, const struct stat *made, int give)
{
    /* The owner first: it is what fails most often, and changing it clears setuid bits. */
    if (give && (made->st_uid != facts->uid || made->st_gid != facts->gid) && fchown(file, facts->uid, facts->gid) != 0)
        return -1;
    if (facts->size > 0 && write(file, facts->content, facts->size) != (ssize_t)facts->size)
        return -1;
    if (fchmod(file, give ? facts->mode : facts->mode & 01777) != 0)
        return -1;
    return futimens(file, facts->times);
}

/* Unlink what was made, unless its name is another file's by now. */
static void take_back(int directory, const char *name, const struct stat *made)
{
    struct stat found;
    if (fstatat(directory, name, &found, AT_SYMLINK_NOFOLLOW) == 0 && found.st_dev == made->st_dev &&
        found.st_ino == made->st_ino)
        unlinkat(directory, name, 0);
}

static int make(const struct small_file *facts, const struct target *target)
{
    struct stat made;
    int give = target->foreign == GIVE || (facts->uid == target->uid && facts->gid == target->gid);
    if (!give && target->foreign != LEAVE)
        return -1;
    int file = openat(target->directory, facts->name, CREATE_FLAGS, 0600);
    if (file < 0)
        return -1;
    int looked = fstat(file, &made), failed = looked || fill(file, facts, &made, give);
    if (failed && looked == 0)
        take_back(target->directory, facts->name, &made);
    if (close(file) != 0 && !failed) { /* NFS may say only now that there was no room */
        take_back(target->directory, facts->name, &made);
        failed = 1;
    }
    return -failed;
}

static PyObject *small_files(PyObject *self, PyObject *args)
{
    Py_buffer items, contents;
    struct target target;
    struct payload payload;
    struct small_file file;
    unsigned long long start, limit;
    uint64_t position = 0, size = 0, length;
    int count = 0;
    (void)self;

    if (!PyArg_ParseTuple(args, "y*z*KK(iIIi):small_files", &items, &contents, &start, &limit, &target.directory,
                          &target.uid, &target.gid, &target.foreign))
        return NULL;
    payload = (struct payload){contents.buf, (uint64_t)contents.len, start};
    length = parse(items.buf, (uint64_t)items.len, &payload, limit, &file);
    if (length) {
        Py_BEGIN_ALLOW_THREADS
        while (length && make(&file, &target) == 0) {
            position += length;
            size += file.size;
            length = ++count == MOST_SMALL_FILES ? 0
                     : parse((const uint8_t *)items.buf + position, (uint64_t)items.len - position, &payload, limit, &file);
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&items);
    PyBuffer_Release(&contents);
    return Py_BuildValue("iKK", count, (unsigned long long)position, (unsigned long long)size);
}

static PyMethodDef methods[] = {
    {"unchanged_files", unchanged_files, METH_VARARGS, unchanged_files_doc},
    {"small_files", small_files, METH_VARARGS, small_files_doc},
    {NULL, NULL, 0, NULL},
};

static int add_interface(PyObject *self)
{
    return PyModule_AddIntConstant(self, "INTERFACE", 1); // see store/native.py
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, add_interface}, {0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_inode", "System calls on files, a handful at a time.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__inode(void)
{
    return PyModuleDef_Init(&module);
}

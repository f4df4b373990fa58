/* Directories of trees, from packed listings (store/format/pxar/packed.py): a reply of a thousand entries is made here,
 * with one call of Python's for what the kernel was told.
 *
 * An inode with the highest bit set is an entry of a tree (inodes.py). Its opendir, readdirplus and releasedir are
 * answered here, all others by pyfuse3. Open is answered at once, the listing is asked for when it is read first; only
 * a tree's root is listed to be opened, for there a missing key shows. What is in a tree never changes, so the kernel
 * may keep the listing for as long as it likes.
 */
#include "_fuse_listing.h"
#include "_fuse_direct.h"
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

/* inodes.py */
#define ENTRY_BIT (1ULL << 63)
#define OFFSET_BITS 46
#define OFFSET_MASK ((1ULL << OFFSET_BITS) - 1)

/* packed.py */
#define PACKED 69
#define LINKS_AT 9
#define NUMBERS_AT 13
enum { DIRECTORY, FILE_, SYMLINK, HARDLINK, CHAR_DEVICE, BLOCK_DEVICE, FIFO, SOCKET, KINDS };
static const mode_t type_bits[KINDS] = {S_IFDIR, S_IFREG, S_IFLNK, S_IFREG, S_IFCHR, S_IFBLK, S_IFIFO, S_IFSOCK};

/* items.py */
#define PXAR_ENTRY 0xD5956474E588ACEFULL
#define PXAR_ENTRY_V1 0x11DA850A1C1CCEFFULL
#define ENTRY_SIZE 56
#define ENTRY_V1_SIZE 48

/* attributes.py and listings.py */
#define MAX_NAME 1024
#define BLOCK 512
#define BLOCK_SIZE 4096
#define NANOSECONDS 1000000000
#define MOST_REPLIED (1 << 20)

static struct {
    PyObject *read, *told;
    long long uid, gid; /* of every file; -1: its own */
    unsigned umask;
    double timeout;
} settings;
static struct fuse_lowlevel_ops given;

/* ----- a pass over a directory: what its handle stands for */

typedef struct {
    PyObject_HEAD
    uint64_t inode;
    int is_filled;
    Py_buffer packed, starts, links;
} Pass;

static void empty(Pass *pass)
{
    if (pass->is_filled) {
        PyBuffer_Release(&pass->packed);
        PyBuffer_Release(&pass->starts);
        PyBuffer_Release(&pass->links);
    }
    pass->is_filled = 0;
}

/* Takes the buffers. */
static void fill(Pass *pass, Py_buffer *packed, Py_buffer *starts, Py_buffer *links)
{
    empty(pass);
    pass->packed = *packed;
    pass->starts = *starts;
    pass->links = *links;
    pass->is_filled = 1;
}

static void drop_pass(Pass *pass)
{
    empty(pass);
    Py_TYPE(pass)->tp_free((PyObject *)pass);
}

static PyTypeObject PassType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "fsgateway._fuse_extra.Pass",
    .tp_basicsize = sizeof(Pass),
    .tp_dealloc = (destructor)drop_pass,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "One pass over a directory, which it sees as it was.",
};

static Pass *new_pass(uint64_t inode)
{
    Pass *pass = PyObject_New(Pass, &PassType);
    if (pass) {
        pass->inode = inode;
        pass->is_filled = 0;
    }
    return pass;
}

/* ----- one entry */

static uint64_t number(const uint8_t *from, int bytes)
{
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++)
        value |= (uint64_t)from[i] << (8 * i);
    return value;
}

static void set_times(struct stat *attr, int64_t seconds, uint64_t nanoseconds)
{
    attr->st_mtim.tv_sec = seconds + (int64_t)(nanoseconds / NANOSECONDS);
    attr->st_mtim.tv_nsec = (long)(nanoseconds % NANOSECONDS);
    attr->st_atim = attr->st_ctim = attr->st_mtim;
}

/* ENTRY or ENTRY_V1; a hard link whose target cannot be read has neither. */
static void read_stat(struct stat *attr, const uint8_t *raw, uint64_t size)
{
    uint64_t type = size >= ENTRY_V1_SIZE ? number(raw, 8) : 0;
    if (!(type == PXAR_ENTRY && size >= ENTRY_SIZE) && type != PXAR_ENTRY_V1)
        return;
    attr->st_mode = (mode_t)(number(raw + 16, 8) & 07777);
    attr->st_uid = (uid_t)number(raw + 32, 4);
    attr->st_gid = (gid_t)number(raw + 36, 4);
    if (type == PXAR_ENTRY)
        set_times(attr, (int64_t)number(raw + 40, 8), number(raw + 48, 4));
    else
        set_times(attr, 0, number(raw + 40, 8));
}

/* How many of the sorted links point to an offset. */
static uint64_t links_to(const Py_buffer *links, uint64_t offset)
{
    const uint64_t *targets = links->buf;
    uint64_t low = 0, high = (uint64_t)links->len / sizeof *targets, count = high;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (targets[middle] < offset)
            low = middle + 1;
        else
            high = middle;
    }
    for (high = low; high < count && targets[high] == offset; high++)
        ;
    return high - low;
}

struct record {
    const uint8_t *data, *name;
    uint64_t name_size, target_size, offset, end;
    int kind;
};

static struct record record_at(const Pass *pass, size_t position)
{
    const uint8_t *data = (const uint8_t *)pass->packed.buf + ((const uint64_t *)pass->starts.buf)[position];
    return (struct record){data, data + PACKED, number(data + 1, 2), number(data + 3, 2),
                           number(data + NUMBERS_AT, 8), number(data + NUMBERS_AT + 8, 8), data[0]};
}

static void describe(struct fuse_entry_param *entry, const Pass *pass, const struct record *r)
{
    struct stat *attr = &entry->attr;
    const uint8_t *numbers = r->data + NUMBERS_AT;
    uint64_t size = 0, names = 1;
    memset(entry, 0, sizeof *entry);
    entry->ino = attr->st_ino = (pass->inode & ~OFFSET_MASK) | r->offset;
    entry->attr_timeout = entry->entry_timeout = settings.timeout;
    read_stat(attr, r->name + r->name_size + r->target_size, number(r->data + 5, 4));
    attr->st_mode = type_bits[r->kind] | (attr->st_mode & ~settings.umask);
    if (settings.uid >= 0)
        attr->st_uid = (uid_t)settings.uid;
    if (settings.gid >= 0)
        attr->st_gid = (gid_t)settings.gid;
    if (r->kind == FILE_) {
        size = number(numbers + 24, 8);
        size = size > INT64_MAX ? INT64_MAX : size;
        attr->st_blocks = (blkcnt_t)((size + BLOCK - 1) / BLOCK);
        names = number(r->data + LINKS_AT, 4);
        names = names ? names : 1 + links_to(&pass->links, r->offset);
    } else if (r->kind == SYMLINK) {
        size = r->target_size;
    } else if (r->kind == CHAR_DEVICE || r->kind == BLOCK_DEVICE) {
        attr->st_rdev = makedev((unsigned)number(numbers + 40, 4), (unsigned)number(numbers + 48, 4));
    }
    attr->st_size = (off_t)size;
    attr->st_nlink = (nlink_t)names;
    attr->st_blksize = BLOCK_SIZE;
}

/* ----- a reply */

static int add_directory(PyObject *directories, uint64_t inode, uint64_t end)
{
    PyObject *pair = Py_BuildValue("KK", (unsigned long long)inode, (unsigned long long)end);
    int failed = pair == NULL || PyList_Append(directories, pair);
    Py_XDECREF(pair);
    return failed ? ENOMEM : 0;
}

/* Fills `reply` from `position` on. Returns an errno; `used` are its bytes, `count` its entries. */
static int put_entries(fuse_req_t req, const Pass *pass, size_t position, char *reply, size_t size, size_t *used,
                       Py_ssize_t *count, PyObject *directories)
{
    size_t all = (size_t)pass->starts.len / sizeof(uint64_t);
    char name[MAX_NAME + 1];
    for (; position < all; position++, ++*count) {
        struct record r = record_at(pass, position);
        struct fuse_entry_param entry;
        if (r.offset > OFFSET_MASK)
            return EOVERFLOW;
        memcpy(name, r.name, r.name_size);
        name[r.name_size] = 0;
        describe(&entry, pass, &r);
        size_t needed = fuse_add_direntry_plus(req, reply + *used, size - *used, name, &entry, (off_t)position + 1);
        if (needed > size - *used)
            break;
        *used += needed;
        if (r.kind == DIRECTORY && add_directory(directories, entry.ino, r.end))
            return ENOMEM;
    }
    return 0;
}

static void tell(const Pass *pass, Py_ssize_t count, PyObject *directories)
{
    if (!count)
        return;
    PyObject *result = PyObject_CallFunction(settings.told, "KnO", (unsigned long long)pass->inode, count, directories);
    if (!result)
        PyErr_WriteUnraisable(settings.told);
    Py_XDECREF(result);
}

static void send_entries(fuse_req_t req, const Pass *pass, size_t size, off_t position)
{
    size_t used = 0;
    Py_ssize_t count = 0;
    size = size < MOST_REPLIED ? size : MOST_REPLIED;
    char *reply = malloc(size ? size : 1);
    PyObject *directories = PyList_New(0);
    int error = reply && directories ? 0 : ENOMEM;
    if (!error && position >= 0)
        error = put_entries(req, pass, (size_t)position, reply, size, &used, &count, directories);
    PyErr_Clear();
    if (error) {
        fuse_reply_err(req, error);
    } else {
        tell(pass, count, directories);
        fuse_reply_buf(req, reply, used);
    }
    answered_directly();
    Py_XDECREF(directories);
    free(reply);
}

/* The kernel's handle holds the pass. */
static void send_open(fuse_req_t req, Pass *pass)
{
    struct fuse_file_info fi = {.fh = (uint64_t)(uintptr_t)pass, .cache_readdir = 1, .keep_cache = 1};
    Py_INCREF(pass);
    if (fuse_reply_open(req, &fi) == -ENOENT) /* who asked is gone, and nobody will close it */
        Py_DECREF(pass);
    answered_directly();
}

/* ----- a listing is asked for */

typedef struct {
    PyObject_HEAD
    fuse_req_t req; /* NULL once it is answered */
    Pass *pass;
    int is_open;
    size_t size;
    off_t position;
} Wanted;

static fuse_req_t take(Wanted *wanted)
{
    fuse_req_t req = wanted->req;
    wanted->req = NULL;
    if (!req)
        PyErr_SetString(PyExc_RuntimeError, "this request has its answer");
    return req;
}

/* What the listing's positions point to must be there: the rest of it `index` has checked. */
static int is_whole(const Py_buffer *packed, const Py_buffer *starts)
{
    const uint64_t *start = starts->buf;
    for (Py_ssize_t i = 0; i < starts->len / (Py_ssize_t)sizeof *start; i++) {
        if (start[i] > (uint64_t)packed->len || (uint64_t)packed->len - start[i] < PACKED)
            return 0;
        const uint8_t *data = (const uint8_t *)packed->buf + start[i];
        uint64_t name = number(data + 1, 2), size = PACKED + name + number(data + 3, 2) + number(data + 5, 4);
        if (data[0] >= KINDS || name > MAX_NAME || size > (uint64_t)packed->len - start[i])
            return 0;
    }
    return 1;
}

static PyObject *reply_listing(Wanted *wanted, PyObject *args)
{
    Py_buffer packed, starts, links;
    if (!PyArg_ParseTuple(args, "y*y*y*:reply_listing", &packed, &starts, &links))
        return NULL;
    fuse_req_t req = is_whole(&packed, &starts) ? take(wanted) : NULL;
    if (!req) {
        PyBuffer_Release(&packed);
        PyBuffer_Release(&starts);
        PyBuffer_Release(&links);
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "not a packed listing");
    }
    fill(wanted->pass, &packed, &starts, &links);
    if (wanted->is_open)
        send_open(req, wanted->pass);
    else
        send_entries(req, wanted->pass, wanted->size, wanted->position);
    Py_RETURN_NONE;
}

static PyObject *reply_error(Wanted *wanted, PyObject *errno_)
{
    long value = PyLong_AsLong(errno_);
    if (value == -1 && PyErr_Occurred())
        return NULL;
    fuse_req_t req = take(wanted);
    if (!req)
        return NULL;
    fuse_reply_err(req, (int)value);
    Py_RETURN_NONE;
}

static void drop_wanted(Wanted *wanted)
{
    if (wanted->req)
        fuse_reply_err(wanted->req, EIO);
    Py_DECREF(wanted->pass);
    Py_TYPE(wanted)->tp_free((PyObject *)wanted);
}

static PyMethodDef wanted_methods[] = {
    {"reply_listing", (PyCFunction)reply_listing, METH_VARARGS, "reply_listing(packed, starts, links)."},
    {"reply_error", (PyCFunction)reply_error, METH_O, "Answer with an errno."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject WantedType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "fsgateway._fuse_extra.ListingRequest",
    .tp_basicsize = sizeof(Wanted),
    .tp_dealloc = (destructor)drop_wanted,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "A directory whose listing the kernel waits for.",
    .tp_methods = wanted_methods,
};

/* Asks Python; takes `pass`. */
static void ask(fuse_req_t req, Pass *pass, int is_open, size_t size, off_t position)
{
    Wanted *wanted = pass ? PyObject_New(Wanted, &WantedType) : NULL;
    if (!wanted) {
        Py_XDECREF(pass);
        PyErr_Clear();
        fuse_reply_err(req, ENOMEM);
        return;
    }
    wanted->req = req;
    wanted->pass = pass;
    wanted->is_open = is_open;
    wanted->size = size;
    wanted->position = position;
    PyObject *result = PyObject_CallFunction(settings.read, "OK", wanted, (unsigned long long)pass->inode);
    if (!result)
        PyErr_WriteUnraisable(settings.read);
    Py_XDECREF(result);
    Py_DECREF(wanted);
}

/* ----- the handlers */

static int is_ours(fuse_ino_t ino)
{
    return (ino & ENTRY_BIT) != 0;
}

static void on_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    if (!is_ours(ino)) {
        given.opendir(req, ino, fi);
        return;
    }
    PyGILState_STATE gil = PyGILState_Ensure();
    Pass *pass = new_pass(ino);
    if (pass && ino & OFFSET_MASK) {
        send_open(req, pass);
        Py_DECREF(pass);
    } else {
        ask(req, pass, 1, 0, 0);
    }
    PyGILState_Release(gil);
}

static void on_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t position, struct fuse_file_info *fi)
{
    if (!is_ours(ino)) {
        given.readdirplus(req, ino, size, position, fi);
        return;
    }
    PyGILState_STATE gil = PyGILState_Ensure();
    Pass *pass = (Pass *)(uintptr_t)fi->fh;
    if (pass->is_filled)
        send_entries(req, pass, size, position);
    else
        ask(req, (Pass *)Py_NewRef(pass), 0, size, position);
    PyGILState_Release(gil);
}

static void on_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    if (!is_ours(ino)) {
        given.releasedir(req, ino, fi);
        return;
    }
    PyGILState_STATE gil = PyGILState_Ensure();
    Py_DECREF((PyObject *)(uintptr_t)fi->fh);
    PyGILState_Release(gil);
    fuse_reply_err(req, 0);
    answered_directly();
}

void add_listing_handlers(struct fuse_lowlevel_ops *ops)
{
    if (!settings.read || !ops->opendir || !ops->readdirplus || !ops->releasedir)
        return;
    given = *ops;
    ops->opendir = on_opendir;
    ops->readdirplus = on_readdirplus;
    ops->releasedir = on_releasedir;
}

int add_listing_types(void)
{
    return PyType_Ready(&PassType) < 0 || PyType_Ready(&WantedType) < 0 ? -1 : 0;
}

PyObject *set_listing(PyObject *module, PyObject *args)
{
    PyObject *read, *told;
    long long uid, gid;
    unsigned umask;
    double timeout;
    if (!PyArg_ParseTuple(args, "OOLLId:set_listing", &read, &told, &uid, &gid, &umask, &timeout))
        return NULL;
    Py_XSETREF(settings.read, read == Py_None ? NULL : Py_NewRef(read));
    Py_XSETREF(settings.told, told == Py_None ? NULL : Py_NewRef(told));
    settings.uid = uid;
    settings.gid = gid;
    settings.umask = umask;
    settings.timeout = timeout;
    Py_RETURN_NONE;
}

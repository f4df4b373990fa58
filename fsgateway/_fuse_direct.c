/* Requests that are answered at once, without pyfuse3: by a plain Python function, in the place where they arrive.
 *
 * A direct handler takes integers and bytes, and returns
 *
 *     None               it would have to wait, and did nothing: the handler that pyfuse3 gave is called instead
 *     an int             that errno; 0 is success where there is nothing else to say
 *     bytes              a Shown for what has attributes; content for read and getxattr
 *     (bytes, int, int)  a Shown, a file handle and how much may be collected, for create
 *
 * What it raises goes to the function `failed`, which returns one of the first two. It is asked only of inodes and file
 * handles in a range of numbers; read of all. pyfuse3 calls us with the GIL held.
 *
 * Of the file that was created last the attributes that are set and the bytes that follow each other are collected here,
 * and handed over by one call of `complete` before anything else is asked, or nothing for a moment: whoever looks finds
 * them, and no later change is there without them.
 *
 * After a request that was answered so, the next one is waited for right here for a moment, as long as the program has
 * nothing else to do: mostly it is from the same process, which waited for this answer.
 */
#define _GNU_SOURCE
#include "_fuse_direct.h"
#include "_fuse_init.h"
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <time.h>

enum { LOOKUP, GETATTR, SETATTR, MKDIR, SYMLINK, CREATE, UNLINK, RMDIR, READ, WRITE, RELEASE, GETXATTR, COMPLETE, KINDS };
static const char *const kinds[KINDS] = {"lookup", "getattr", "setattr", "mkdir", "symlink", "create", "unlink",
                                         "rmdir", "read", "write", "release", "getxattr", "complete"};
static PyObject *handlers[KINDS];
static PyObject *failed;
static PyObject *bare; /* a set of inodes without capabilities */
static PyObject *activity; /* its `count` says how many things the scheduler has to be there for */
static unsigned long long first, end; /* the numbers of inodes and handles that the handlers know */
static struct fuse_lowlevel_ops given;
static int is_answered; /* the request at hand, by a direct handler; more than 1 when that took long */
static int taken;       /* so many were answered so since anybody asked */

/* After so many requests in a row the scheduler has its turn, whatever is going on. */
#define TURNS 64
#define WAIT_MS 1

/* ----- what a handler is asked, and its answer */

/* As fsgateway/writing/direct.py packs it; times are nanoseconds since 1970. */
typedef struct __attribute__((packed)) {
    uint64_t ino;
    uint32_t mode, nlink, uid, gid;
    uint64_t rdev, size, blocks;
    int64_t atime, mtime, ctime;
    double timeout;
} Shown;

#define SECOND 1000000000L

static struct timespec as_timespec(int64_t ns)
{
    int64_t rest = ns % SECOND;
    if (rest < 0)
        rest += SECOND;
    return (struct timespec){.tv_sec = (ns - rest) / SECOND, .tv_nsec = rest};
}

/* The years 1677 to 2262; what lies outside is their end. */
static int64_t as_ns(struct timespec time)
{
    const int64_t last = INT64_MAX / SECOND - 1;
    if (time.tv_sec > last || time.tv_sec < -last)
        return (time.tv_sec < 0 ? -last : last) * SECOND;
    return time.tv_sec * SECOND + time.tv_nsec;
}

/* A time as it is once it went through Python. */
static struct timespec kept(struct timespec time)
{
    return as_timespec(as_ns(time));
}

/* What a Shown says; all of it is 0 when the answer is none. */
static struct fuse_entry_param entry_of(PyObject *answer)
{
    Shown shown = {0};
    if (PyBytes_Check(answer) && PyBytes_GET_SIZE(answer) == sizeof shown)
        memcpy(&shown, PyBytes_AS_STRING(answer), sizeof shown);
    struct fuse_entry_param entry = {.ino = shown.ino, .attr_timeout = shown.timeout, .entry_timeout = shown.timeout};
    entry.attr.st_ino = shown.ino;
    entry.attr.st_mode = shown.mode;
    entry.attr.st_nlink = shown.nlink;
    entry.attr.st_uid = shown.uid;
    entry.attr.st_gid = shown.gid;
    entry.attr.st_rdev = shown.rdev;
    entry.attr.st_size = shown.size;
    entry.attr.st_blocks = shown.blocks;
    entry.attr.st_atim = as_timespec(shown.atime);
    entry.attr.st_mtim = as_timespec(shown.mtime);
    entry.attr.st_ctim = as_timespec(shown.ctime);
    return entry;
}

static PyObject *number(uint64_t value)
{
    return PyLong_FromUnsignedLongLong(value);
}

/* What a handler raised, as its answer; NULL when there is none. */
static PyObject *answer_of_error(void)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (trace && value)
        PyException_SetTraceback(value, trace);
    PyObject *answer = value && failed ? PyObject_CallOneArg(failed, value) : NULL;
    if (!answer)
        PyErr_WriteUnraisable(failed);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return answer;
}

/* Calls a handler; takes the arguments, of which a NULL means that there is no memory. */
static PyObject *call(int kind, PyObject **arguments, size_t count)
{
    int is_complete = 1;
    for (size_t i = 0; i < count; i++)
        is_complete &= arguments[i] != NULL;
    PyObject *answer = is_complete ? PyObject_Vectorcall(handlers[kind], arguments, count, NULL) : NULL;
    for (size_t i = 0; i < count; i++)
        Py_XDECREF(arguments[i]);
    return answer ? answer : answer_of_error();
}

/* The errno that an answer is; -1 when it is none. */
static int errno_of(PyObject *answer)
{
    if (!answer)
        return EIO;
    return PyLong_Check(answer) ? (int)PyLong_AsLong(answer) : -1;
}

/* The same as `call` for a request. Returns what is for the caller to send, or NULL: then the request has its answer,
 * unless `is_answered` is 0, when it is the given handler's. */
static PyObject *ask(int kind, fuse_req_t req, PyObject **arguments, size_t count)
{
    PyObject *answer = call(kind, arguments, count);
    is_answered = answer != Py_None;
    int number = errno_of(answer);
    if (is_answered && number < 0)
        return answer;
    if (is_answered)
        fuse_reply_err(req, number);
    Py_XDECREF(answer);
    return NULL;
}

/* Whether the handlers know an inode or a file handle. */
static int is_known(uint64_t number)
{
    return first <= number && number < end;
}

#define COUNT(array) (sizeof(array) / sizeof *(array))

static void ask_for_entry(int kind, fuse_req_t req, PyObject **arguments, size_t count)
{
    PyObject *answer = ask(kind, req, arguments, count);
    if (!answer)
        return;
    struct fuse_entry_param entry = entry_of(answer);
    if (entry.attr_timeout)
        fuse_reply_entry(req, &entry);
    else
        fuse_reply_err(req, EIO);
    Py_DECREF(answer);
}

static void ask_for_attributes(int kind, fuse_req_t req, PyObject **arguments, size_t count)
{
    PyObject *answer = ask(kind, req, arguments, count);
    if (!answer)
        return;
    struct fuse_entry_param entry = entry_of(answer);
    if (entry.attr_timeout)
        fuse_reply_attr(req, &entry.attr, entry.attr_timeout);
    else
        fuse_reply_err(req, EIO);
    Py_DECREF(answer);
}

/* For what is answered by an errno alone. */
static void ask_for_success(int kind, fuse_req_t req, PyObject **arguments, size_t count)
{
    PyObject *answer = ask(kind, req, arguments, count);
    if (answer)
        fuse_reply_err(req, EIO);
    Py_XDECREF(answer);
}

/* Whether what is written is at hand; if it is in a pipe only the given handler empties that. */
static int is_in_memory(const struct fuse_bufvec *content)
{
    return content->count == 1 && !content->idx && !(content->buf[0].flags & FUSE_BUF_IS_FD);
}

/* ----- the file that was created last */

#define MAX_COLLECTED (128 << 10)

static struct {
    fuse_ino_t ino; /* 0: there is none */
    uint64_t handle;
    struct stat attr; /* as the kernel knows it */
    double timeout;
    size_t size, room;
    char data[MAX_COLLECTED];
} young;

static void begin_young(const struct fuse_entry_param *entry, uint64_t handle, size_t room)
{
    young.ino = entry->ino;
    young.handle = handle;
    young.attr = entry->attr;
    young.timeout = entry->attr_timeout;
    young.size = 0;
    young.room = room < MAX_COLLECTED ? room : MAX_COLLECTED;
}

static struct timespec now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    return time;
}

/* Hands over what was collected, if anything was; `is_closed` means that the file is released as well. */
static void complete_young(int is_closed)
{
    if (!young.ino)
        return;
    young.ino = 0;
    PyObject *arguments[] = {
        number(young.handle),
        PyBool_FromLong(is_closed),
        PyMemoryView_FromMemory(young.data, young.size, PyBUF_READ),
        number(young.attr.st_mode),
        number(young.attr.st_uid),
        number(young.attr.st_gid),
        PyLong_FromLongLong(as_ns(young.attr.st_atim)),
        PyLong_FromLongLong(as_ns(young.attr.st_mtim)),
        PyLong_FromLongLong(as_ns(young.attr.st_ctim)),
    };
    PyObject *answer = call(COMPLETE, arguments, COUNT(arguments));
    Py_XDECREF(answer);
}

static void set_young(const struct stat *attr, int to_set)
{
    struct stat *own = &young.attr;
    struct timespec time = now();
    if (to_set & FUSE_SET_ATTR_MODE)
        own->st_mode = (own->st_mode & S_IFMT) | (attr->st_mode & ~S_IFMT);
    if (to_set & FUSE_SET_ATTR_UID)
        own->st_uid = attr->st_uid;
    if (to_set & FUSE_SET_ATTR_GID)
        own->st_gid = attr->st_gid;
    if (to_set & (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_ATIME_NOW))
        own->st_atim = to_set & FUSE_SET_ATTR_ATIME ? kept(attr->st_atim) : time;
    if (to_set & (FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_MTIME_NOW))
        own->st_mtim = to_set & FUSE_SET_ATTR_MTIME ? kept(attr->st_mtim) : time;
    own->st_ctim = to_set & FUSE_SET_ATTR_CTIME ? kept(attr->st_ctim) : time;
}

/* Takes what is written if it follows the rest and there is room. */
static int add_to_young(const struct fuse_bufvec *content, off_t offset)
{
    const struct fuse_buf *buffer = &content->buf[0];
    size_t size = buffer->size - content->off;
    if (!is_in_memory(content) || offset < 0 || (size_t)offset != young.size || size > young.room - young.size)
        return 0;
    memcpy(young.data + young.size, (char *)buffer->mem + content->off, size);
    young.size += size;
    young.attr.st_size = young.size;
    young.attr.st_blocks = (young.size + 511) / 512;
    young.attr.st_mtim = young.attr.st_ctim = now();
    return 1;
}

/* Whether a request may be answered without handing over first; its handler decides. */
static int is_for_young(const struct fuse_buf *buffer)
{
    const struct fuse_in_header *header = buffer->mem;
    if (buffer->flags & FUSE_BUF_IS_FD || buffer->size < sizeof *header || header->nodeid != young.ino)
        return 0;
    switch (header->opcode) {
    case FUSE_GETATTR:
    case FUSE_SETATTR:
    case FUSE_WRITE:
    case FUSE_GETXATTR:
    case FUSE_RELEASE:
        return 1;
    }
    return 0;
}

/* ----- the handlers */

static void on_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    if (!is_known(parent)) {
        given.lookup(req, parent, name);
        return;
    }
    PyObject *arguments[] = {number(parent), PyBytes_FromString(name)};
    ask_for_entry(LOOKUP, req, arguments, COUNT(arguments));
    if (!is_answered)
        given.lookup(req, parent, name);
}

static void on_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    if (ino == young.ino) {
        is_answered = 1;
        fuse_reply_attr(req, &young.attr, young.timeout);
        return;
    }
    if (!is_known(ino)) {
        given.getattr(req, ino, fi);
        return;
    }
    PyObject *arguments[] = {number(ino)};
    ask_for_attributes(GETATTR, req, arguments, COUNT(arguments));
    if (!is_answered)
        given.getattr(req, ino, fi);
}

/* A field that is to be set, or None. */
static PyObject *given_or_none(int is_given, int64_t value)
{
    return is_given ? PyLong_FromLongLong(value) : Py_NewRef(Py_None);
}

static PyObject *time_or_none(int to_set, int is_given, int is_now, struct timespec time)
{
    if (!(to_set & is_given) && (to_set & is_now))
        time = now();
    return given_or_none(to_set & (is_given | is_now), as_ns(time));
}

static void on_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
    if (ino == young.ino && !(to_set & FUSE_SET_ATTR_SIZE)) {
        is_answered = 1;
        set_young(attr, to_set);
        fuse_reply_attr(req, &young.attr, young.timeout);
        return;
    }
    complete_young(0);
    if (!is_known(ino)) {
        given.setattr(req, ino, attr, to_set, fi);
        return;
    }
    PyObject *arguments[] = {
        number(ino),
        given_or_none(to_set & FUSE_SET_ATTR_MODE, attr->st_mode),
        given_or_none(to_set & FUSE_SET_ATTR_UID, attr->st_uid),
        given_or_none(to_set & FUSE_SET_ATTR_GID, attr->st_gid),
        given_or_none(to_set & FUSE_SET_ATTR_SIZE, attr->st_size),
        time_or_none(to_set, FUSE_SET_ATTR_ATIME, FUSE_SET_ATTR_ATIME_NOW, attr->st_atim),
        time_or_none(to_set, FUSE_SET_ATTR_MTIME, FUSE_SET_ATTR_MTIME_NOW, attr->st_mtim),
        given_or_none(to_set & FUSE_SET_ATTR_CTIME, as_ns(attr->st_ctim)),
    };
    ask_for_attributes(SETATTR, req, arguments, COUNT(arguments));
    if (!is_answered)
        given.setattr(req, ino, attr, to_set, fi);
}

static void on_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
    if (!is_known(parent)) {
        given.mkdir(req, parent, name, mode);
        return;
    }
    const struct fuse_ctx *who = fuse_req_ctx(req);
    PyObject *arguments[] = {number(parent), PyBytes_FromString(name), number(mode),
                             number(who->umask), number(who->uid), number(who->gid)};
    ask_for_entry(MKDIR, req, arguments, COUNT(arguments));
    if (!is_answered)
        given.mkdir(req, parent, name, mode);
}

static void on_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
    if (!is_known(parent)) {
        given.symlink(req, target, parent, name);
        return;
    }
    const struct fuse_ctx *who = fuse_req_ctx(req);
    PyObject *arguments[] = {number(parent), PyBytes_FromString(name), PyBytes_FromString(target),
                             number(who->uid), number(who->gid)};
    ask_for_entry(SYMLINK, req, arguments, COUNT(arguments));
    if (!is_answered)
        given.symlink(req, target, parent, name);
}

static void on_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
    if (!is_known(parent)) {
        given.create(req, parent, name, mode, fi);
        return;
    }
    const struct fuse_ctx *who = fuse_req_ctx(req);
    PyObject *arguments[] = {number(parent), PyBytes_FromString(name), number(mode),
                             number(who->umask), number(who->uid), number(who->gid)};
    PyObject *answer = ask(CREATE, req, arguments, COUNT(arguments));
    if (!is_answered)
        given.create(req, parent, name, mode, fi);
    if (!answer)
        return;
    PyObject *shown;
    unsigned long long handle, room;
    if (PyTuple_Check(answer) && PyArg_ParseTuple(answer, "OKK", &shown, &handle, &room)) {
        struct fuse_entry_param entry = entry_of(shown);
        fi->fh = handle;
        fi->keep_cache = 1;
        if (fuse_reply_create(req, &entry, fi) == 0 && room && handlers[COMPLETE])
            begin_young(&entry, handle, room);
    } else {
        PyErr_Clear();
        fuse_reply_err(req, EIO);
    }
    Py_DECREF(answer);
}

static void on_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    if (!is_known(parent)) {
        given.unlink(req, parent, name);
        return;
    }
    PyObject *arguments[] = {number(parent), PyBytes_FromString(name)};
    ask_for_success(UNLINK, req, arguments, COUNT(arguments));
    if (!is_answered)
        given.unlink(req, parent, name);
}

static void on_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    if (!is_known(parent)) {
        given.rmdir(req, parent, name);
        return;
    }
    PyObject *arguments[] = {number(parent), PyBytes_FromString(name)};
    ask_for_success(RMDIR, req, arguments, COUNT(arguments));
    if (!is_answered)
        given.rmdir(req, parent, name);
}

#define LONG_COPY (128 << 10)

/* Others may have the GIL while the kernel copies much. */
static void send(fuse_req_t req, const Py_buffer *content)
{
    is_answered += content->len / LONG_COPY;
    PyThreadState *others = content->len >= LONG_COPY ? PyEval_SaveThread() : NULL;
    fuse_reply_buf(req, content->buf, content->len);
    if (others)
        PyEval_RestoreThread(others);
}

static void on_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
    PyObject *arguments[] = {number(fi->fh), number(offset), number(size)};
    PyObject *answer = ask(READ, req, arguments, COUNT(arguments));
    if (!is_answered)
        given.read(req, ino, size, offset, fi);
    if (!answer)
        return;
    Py_buffer content;
    if (PyObject_GetBuffer(answer, &content, PyBUF_SIMPLE) == 0) {
        send(req, &content);
        PyBuffer_Release(&content);
    } else {
        PyErr_Clear();
        fuse_reply_err(req, EIO);
    }
    Py_DECREF(answer);
}

static void on_write_buf(fuse_req_t req, fuse_ino_t ino, struct fuse_bufvec *content, off_t offset,
                         struct fuse_file_info *fi)
{
    size_t size = content->buf[0].size - content->off;
    if (ino == young.ino && add_to_young(content, offset)) {
        is_answered = 1;
        fuse_reply_write(req, size);
        return;
    }
    complete_young(0);
    if (is_known(fi->fh) && is_in_memory(content) && size <= MAX_COLLECTED) { /* more is copied once, by whoever waits */
        PyObject *data = PyBytes_FromStringAndSize((char *)content->buf[0].mem + content->off, size);
        PyObject *arguments[] = {number(fi->fh), number(offset), data};
        PyObject *answer = call(WRITE, arguments, COUNT(arguments));
        is_answered = answer != Py_None;
        int number = errno_of(answer);
        if (number == 0)
            fuse_reply_write(req, size);
        else if (is_answered)
            fuse_reply_err(req, number < 0 ? EIO : number);
        Py_XDECREF(answer);
    }
    if (!is_answered)
        given.write_buf(req, ino, content, offset, fi);
}

static void on_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    if (ino == young.ino) {
        is_answered = 1;
        fuse_reply_err(req, 0);
        complete_young(1);
        return;
    }
    if (!is_known(fi->fh)) {
        given.release(req, ino, fi);
        return;
    }
    PyObject *arguments[] = {number(fi->fh)};
    ask_for_success(RELEASE, req, arguments, COUNT(arguments));
    if (!is_answered)
        given.release(req, ino, fi);
}

#define CAPABILITY "security.capability"

/* The kernel asks before each write() whether the file has capabilities; of most inodes we know. */
static int is_bare(fuse_ino_t ino)
{
    PyObject *key = bare ? number(ino) : NULL;
    int known = key ? PySet_Contains(bare, key) : 0;
    Py_XDECREF(key);
    PyErr_Clear();
    return known == 1;
}

static void on_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    if (strcmp(name, CAPABILITY) == 0 && is_bare(ino)) {
        is_answered = 1;
        fuse_reply_err(req, ENODATA);
        return;
    }
    complete_young(0);
    if (!is_known(ino)) {
        given.getxattr(req, ino, name, size);
        return;
    }
    PyObject *arguments[] = {number(ino), PyBytes_FromString(name)};
    PyObject *answer = ask(GETXATTR, req, arguments, COUNT(arguments));
    if (!is_answered)
        given.getxattr(req, ino, name, size);
    if (!answer)
        return;
    size_t length = PyBytes_Check(answer) ? (size_t)PyBytes_GET_SIZE(answer) : 0;
    if (!PyBytes_Check(answer))
        fuse_reply_err(req, EIO);
    else if (!size)
        fuse_reply_xattr(req, length);
    else if (length > size)
        fuse_reply_err(req, ERANGE);
    else
        fuse_reply_buf(req, PyBytes_AS_STRING(answer), length);
    Py_DECREF(answer);
}

#define PUT_BEFORE(kind, member, handler) \
    if (handlers[kind] && ops->member)    \
        ops->member = handler

void add_direct_handlers(struct fuse_lowlevel_ops *ops)
{
    given = *ops;
    PUT_BEFORE(LOOKUP, lookup, on_lookup);
    PUT_BEFORE(GETATTR, getattr, on_getattr);
    PUT_BEFORE(SETATTR, setattr, on_setattr);
    PUT_BEFORE(MKDIR, mkdir, on_mkdir);
    PUT_BEFORE(SYMLINK, symlink, on_symlink);
    PUT_BEFORE(CREATE, create, on_create);
    PUT_BEFORE(UNLINK, unlink, on_unlink);
    PUT_BEFORE(RMDIR, rmdir, on_rmdir);
    PUT_BEFORE(READ, read, on_read);
    PUT_BEFORE(WRITE, write_buf, on_write_buf);
    PUT_BEFORE(RELEASE, release, on_release);
    PUT_BEFORE(GETXATTR, getxattr, on_getxattr);
}

/* ----- the next request */

typedef int (*Receive)(struct fuse_session *, struct fuse_buf *);
typedef void (*Process)(struct fuse_session *, const struct fuse_buf *);

/* As libfuse's, but that it never blocks where there are direct handlers: then nobody polls before each request. */
int fuse_session_receive_buf(struct fuse_session *session, struct fuse_buf *buffer)
{
    static Receive next;
    static int nonblocking = -1;
    int file = fuse_session_fd(session);
    if (!next)
        next = (Receive)dlsym(RTLD_NEXT, "fuse_session_receive_buf");
    if (!handlers[READ])
        return next(session, buffer);
    if (nonblocking != file && fcntl(file, F_SETFL, fcntl(file, F_GETFL) | O_NONBLOCK) == 0)
        nonblocking = file;
    int size = next(session, buffer);
    return size == -EAGAIN ? -EINTR : size;
}

static int is_busy(void)
{
    static PyObject *name;
    if (!name)
        name = PyUnicode_InternFromString("count");
    PyObject *count = activity && name ? PyObject_GetAttr(activity, name) : NULL;
    int busy = !count || PyObject_IsTrue(count);
    Py_XDECREF(count);
    PyErr_Clear();
    return busy;
}

/* How often to look whether a request has come before the thread sleeps: first, for some 15 us, as it is, then, for some
 * 100 us, without the GIL. Who sleeps has to be woken, and that takes long where the processor sleeps, too: on a virtual
 * machine small files are made three times as fast. After that was in vain so many requests are waited for without, for
 * who asks has other work, or no processor. */
#define SPINS 50
#define LONG_SPINS 350
#define RESTS 8

static int has_processors(void)
{
    static int count;
    cpu_set_t ours;
    if (!count)
        count = sched_getaffinity(0, sizeof ours, &ours) == 0 ? CPU_COUNT(&ours) : 1;
    return count > 1;
}

static int look_for_one(struct fuse_session *session, struct fuse_buf *buffer, int spins)
{
    int size;
    do
        size = fuse_session_receive_buf(session, buffer);
    while (size == -EINTR && spins-- > 0);
    return size;
}

/* The next request's bytes, 0 or less when none comes soon. Others may have the GIL meanwhile. */
static int receive_soon(struct fuse_session *session, struct fuse_buf *buffer)
{
    static int resting;
    int looks = !resting && is_answered <= 1 && has_processors();
    int size = look_for_one(session, buffer, looks ? SPINS : 0);
    if (resting)
        resting--;
    if (size != -EINTR)
        return size;
    struct pollfd file = {.fd = fuse_session_fd(session), .events = POLLIN};
    int found = 0;
    Py_BEGIN_ALLOW_THREADS
    if (looks)
        size = look_for_one(session, buffer, LONG_SPINS);
    if (size == -EINTR)
        found = poll(&file, 1, WAIT_MS);
    Py_END_ALLOW_THREADS
    if (looks && size == -EINTR)
        resting = RESTS;
    return found > 0 ? fuse_session_receive_buf(session, buffer) : size == -EINTR ? 0 : size;
}

/* As libfuse's, and those that follow at once. At most the last of them is pyfuse3's to answer. */
void fuse_session_process_buf(struct fuse_session *session, const struct fuse_buf *buffer)
{
    static Process next;
    static struct fuse_buf following;
    if (!next)
        next = (Process)dlsym(RTLD_NEXT, "fuse_session_process_buf");
    int turns = 0;
    watch_for_init(session, buffer);
    do {
        if (young.ino && !is_for_young(buffer))
            complete_young(0);
        is_answered = 0;
        next(session, buffer);
        buffer = &following;
    } while (is_answered && (turns += is_answered) < TURNS && !is_busy() && receive_soon(session, &following) > 0);
    taken += turns;
    complete_young(0);
}

/* ----- the module's part */

static PyObject *keep(PyObject **place, PyObject *value)
{
    PyObject *before = *place;
    *place = value == Py_None ? NULL : Py_NewRef(value);
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

void answered_directly(void)
{
    is_answered = 1;
}

PyObject *directly_taken(PyObject *module, PyObject *unused)
{
    PyObject *count = PyLong_FromLong(taken);
    taken = 0;
    return count;
}

PyObject *set_direct_handlers(PyObject *module, PyObject *arguments)
{
    PyObject *functions, *on_error, *inodes, *other_work;
    if (!PyArg_ParseTuple(arguments, "O!OO!O(KK):set_direct_handlers", &PyDict_Type, &functions, &on_error, &PySet_Type,
                          &inodes, &other_work, &first, &end))
        return NULL;
    for (int kind = 0; kind < KINDS; kind++) {
        PyObject *function = PyDict_GetItemString(functions, kinds[kind]);
        Py_DECREF(keep(&handlers[kind], function ? function : Py_None));
    }
    Py_DECREF(keep(&failed, on_error));
    Py_DECREF(keep(&bare, inodes));
    return keep(&activity, other_work);
}

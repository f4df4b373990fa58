/* store.format.pxar._entries: the children of a directory, as many at a time as a window has whole: as entries, or
 * packed (packed.py).
 *
 * Only the usual case is here, and only what is right: at whatever else (a hard link, a device, an entry that is cut,
 * anything the format forbids) it stops, and parser.py goes on, which knows all cases and says what is wrong. So this
 * module may be missing.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

/* items.py: all integers are little-endian. */
#define PXAR_ENTRY 0xD5956474E588ACEFULL
#define PXAR_ENTRY_V1 0x11DA850A1C1CCEFFULL
#define PXAR_FILENAME 0x16701121063917B3ULL
#define PXAR_SYMLINK 0x27F971E7DBF5DC5FULL
#define PXAR_XATTR 0x0DAB0229B57DCD03ULL
#define PXAR_ACL_USER 0x2CE8540A457D55B8ULL
#define PXAR_ACL_GROUP 0x136E3ECEB04C03ABULL
#define PXAR_ACL_GROUP_OBJ 0x10868031E9582876ULL
#define PXAR_ACL_DEFAULT 0xBBBB13415A6896F5ULL
#define PXAR_ACL_DEFAULT_USER 0xC89357B40532CD1FULL
#define PXAR_ACL_DEFAULT_GROUP 0xF90A8A5816038FFEULL
#define PXAR_FCAPS 0x2DA9DD9DB5F7FB67ULL
#define PXAR_QUOTA_PROJID 0xE07540E82F7D1CBBULL
#define PXAR_PAYLOAD 0x28147A1B0B7C1A25ULL
#define PXAR_PAYLOAD_REF 0x419D3D6BC4BA977EULL
#define PXAR_GOODBYE 0x2FEC4FA642D5731DULL
#define TAIL_MARKER 0xEF5EED5B753E1555ULL

#define HEADER 16
#define ENTRY 56
#define ENTRY_V1 48
#define REFERENCE 32
#define RECORD 24
#define MAX_NAME 4096
#define MAX_TARGET 4096
#define LARGEST_XATTR (HEADER + 255 + 1 + (64 << 10))
#define MAX_METADATA (64ULL << 20)
#define MAX_STREAM (1ULL << 62)
#define HASH_KEY_0 0x83ac3f1cfbb450dbULL
#define HASH_KEY_1 0xaa4f1b6879369fbdULL

enum { FIFO = 1, DIRECTORY = 4, REGULAR = 8, SYMLINK = 10, SOCKET = 12, MOST_KINDS = 16 };

/* packed.py: a record's fixed part, where its numbers begin in it, and how many kinds there are. */
#define PACKED 69
#define PACKED_NUMBERS 13
enum { PACKED_DIRECTORY, PACKED_FILE, PACKED_SYMLINK, PACKED_HARDLINK, PACKED_FIFO = 6, PACKED_SOCKET, PACKED_KINDS };

struct window {
    const uint8_t *data;
    uint64_t size, base; /* base: archive offset of data[0] */
};

struct table {
    const uint8_t *data; /* the GOODBYE item, or its front */
    uint64_t size, start;
};

/* One child: positions in the window; `after` is the item that follows its metadata. */
struct child {
    uint64_t position, name_size, stat, after, after_type, after_size, end;
    uint64_t payload_offset, size, target_size;
    int kind;
};

static uint64_t get64(const uint8_t *from)
{
    uint64_t value = 0;
    for (int i = 0; i < 8; i++)
        value |= (uint64_t)from[i] << (8 * i);
    return value;
}

#define ROTATE(x, bits) (((x) << (bits)) | ((x) >> (64 - (bits))))
#define SIP_ROUND                                                                                                      \
    do {                                                                                                               \
        v0 += v1, v1 = ROTATE(v1, 13) ^ v0, v0 = ROTATE(v0, 32);                                                       \
        v2 += v3, v3 = ROTATE(v3, 16) ^ v2;                                                                            \
        v0 += v3, v3 = ROTATE(v3, 21) ^ v0;                                                                            \
        v2 += v1, v1 = ROTATE(v1, 17) ^ v2, v2 = ROTATE(v2, 32);                                                       \
    } while (0)

/* SipHash-2-4 of a name, as goodbye tables have it. */
static uint64_t hash_name(const uint8_t *name, uint64_t size)
{
    uint64_t v0 = HASH_KEY_0 ^ 0x736f6d6570736575ULL, v1 = HASH_KEY_1 ^ 0x646f72616e646f6dULL;
    uint64_t v2 = HASH_KEY_0 ^ 0x6c7967656e657261ULL, v3 = HASH_KEY_1 ^ 0x7465646279746573ULL;
    uint64_t last = size << 56, done = 0;

    for (; done + 8 <= size; done += 8) {
        uint64_t word = get64(name + done);
        v3 ^= word;
        SIP_ROUND;
        SIP_ROUND;
        v0 ^= word;
    }
    for (uint64_t i = done; i < size; i++)
        last |= (uint64_t)name[i] << (8 * (i - done));
    v3 ^= last;
    SIP_ROUND;
    SIP_ROUND;
    v0 ^= last;
    v2 ^= 0xff;
    for (int i = 0; i < 4; i++)
        SIP_ROUND;
    return v0 ^ v1 ^ v2 ^ v3;
}

/* Type and full size of the item at `position`; 0 when its header is not there whole. */
static int header_at(const struct window *w, uint64_t position, uint64_t *type, uint64_t *size)
{
    if (position > w->size || w->size - position < HEADER)
        return 0;
    *type = get64(w->data + position);
    *size = get64(w->data + position + 8);
    return 1;
}

/* 1: an attribute of a valid size; 0: no attribute; -1: one of a wrong size. */
static int is_attribute(uint64_t type, uint64_t size)
{
    switch (type) {
    case PXAR_XATTR:
        return size >= HEADER + 2 && size <= LARGEST_XATTR ? 1 : -1;
    case PXAR_FCAPS:
        return size >= HEADER && size <= LARGEST_XATTR ? 1 : -1;
    case PXAR_ACL_USER:
    case PXAR_ACL_GROUP:
    case PXAR_ACL_DEFAULT_USER:
    case PXAR_ACL_DEFAULT_GROUP:
        return size == 32 ? 1 : -1;
    case PXAR_ACL_GROUP_OBJ:
    case PXAR_QUOTA_PROJID:
        return size == 24 ? 1 : -1;
    case PXAR_ACL_DEFAULT:
        return size == 48 ? 1 : -1;
    }
    return 0;
}

static int has(const struct window *w, uint64_t position, uint64_t size)
{
    return position <= w->size && size <= w->size - position;
}

/* FILENAME; leaves c->stat behind it. */
static int read_name(const struct window *w, struct child *c)
{
    uint64_t type, size;
    if (!header_at(w, c->position, &type, &size) || type != PXAR_FILENAME)
        return 0;
    if (size < HEADER + 2 || size > HEADER + MAX_NAME + 1 || !has(w, c->position, size))
        return 0;
    const uint8_t *name = w->data + c->position + HEADER;
    c->name_size = size - HEADER - 1;
    c->stat = c->position + size;
    if (name[c->name_size] || memchr(name, '/', c->name_size) || memchr(name, 0, c->name_size))
        return 0;
    return !(name[0] == '.' && (c->name_size == 1 || (c->name_size == 2 && name[1] == '.')));
}

/* ENTRY and its attributes; leaves what follows in c->after. */
static int read_metadata(const struct window *w, struct child *c)
{
    uint64_t type, size;
    if (!header_at(w, c->stat, &type, &size) || !has(w, c->stat, HEADER + 8))
        return 0;
    if (!(type == PXAR_ENTRY && size == ENTRY) && !(type == PXAR_ENTRY_V1 && size == ENTRY_V1))
        return 0;
    uint64_t kind = get64(w->data + c->stat + HEADER) >> 12;
    c->kind = kind < MOST_KINDS ? (int)kind : 0;
    c->after = c->stat + size;
    for (;;) {
        if (!header_at(w, c->after, &c->after_type, &c->after_size))
            return 0;
        int attribute = is_attribute(c->after_type, c->after_size);
        if (attribute <= 0)
            return attribute == 0;
        c->after += c->after_size;
        if (c->after - c->stat > MAX_METADATA)
            return 0;
    }
}

static int read_content(const struct window *w, struct child *c, uint64_t content_item)
{
    if (c->after_type != content_item || c->after_size < HEADER || c->after_size > MAX_STREAM)
        return 0;
    c->end = w->base + c->after + c->after_size;
    if (content_item == PXAR_PAYLOAD) {
        c->payload_offset = w->base + c->after + HEADER;
        c->size = c->after_size - HEADER;
        return 1;
    }
    if (c->after_size != REFERENCE || !has(w, c->after, REFERENCE))
        return 0;
    c->payload_offset = get64(w->data + c->after + HEADER);
    c->size = get64(w->data + c->after + HEADER + 8);
    return c->payload_offset <= MAX_STREAM && c->size <= MAX_STREAM;
}

static int read_target(const struct window *w, struct child *c)
{
    uint64_t size = c->after_size;
    if (c->after_type != PXAR_SYMLINK || size <= HEADER || size > HEADER + MAX_TARGET + 1 || !has(w, c->after, size))
        return 0;
    const uint8_t *target = w->data + c->after + HEADER;
    c->target_size = size - HEADER - 1;
    c->end = w->base + c->after + size;
    return memchr(target, 0, size - HEADER) == target + c->target_size;
}

/* A directory's end, from the table of the one around it. */
static int read_end(const struct window *w, struct child *c, const struct table *t)
{
    uint64_t offset = w->base + c->position, count = t->size < HEADER ? 0 : (t->size - HEADER) / RECORD;
    uint64_t hash = hash_name(w->data + c->position + HEADER, c->name_size);
    for (uint64_t slot = 0; slot < count;) {
        const uint8_t *record = t->data + HEADER + RECORD * slot;
        uint64_t value = get64(record);
        if (value == hash) {
            uint64_t size = get64(record + 16);
            if (get64(record + 8) != t->start - offset || size > t->start)
                return 0;
            c->end = offset + size;
            return c->end > w->base + c->after && c->end <= t->start;
        }
        slot = 2 * slot + (hash < value ? 1 : 2);
    }
    return 0;
}

static int read_child(const struct window *w, struct child *c, const struct table *t, uint64_t content_item)
{
    if (!read_name(w, c) || !read_metadata(w, c))
        return 0;
    switch (c->kind) {
    case REGULAR:
        return read_content(w, c, content_item) && c->end <= t->start;
    case SYMLINK:
        return read_target(w, c) && c->end <= t->start;
    case DIRECTORY:
    case FIFO:
    case SOCKET:
        if (c->after_type != PXAR_FILENAME && c->after_type != PXAR_GOODBYE)
            return 0;
        c->end = w->base + c->after;
        return c->kind == DIRECTORY ? read_end(w, c, t) : c->end <= t->start;
    }
    return 0;
}

static PyObject *slice(const struct window *w, uint64_t position, uint64_t size)
{
    return PyBytes_FromStringAndSize((const char *)w->data + position, (Py_ssize_t)size);
}

/* Entry(name, kind, offset, end, raw_metadata, payload_offset, size, target) */
static PyObject *make_entry(PyObject *type, PyObject *kind, const struct window *w, const struct child *c)
{
    PyObject *arguments[8] = {
        slice(w, c->position + HEADER, c->name_size),
        Py_NewRef(kind),
        PyLong_FromUnsignedLongLong(w->base + c->position),
        PyLong_FromUnsignedLongLong(c->end),
        slice(w, c->stat, c->after - c->stat),
        PyLong_FromUnsignedLongLong(c->payload_offset),
        PyLong_FromUnsignedLongLong(c->size),
        c->kind == SYMLINK ? slice(w, c->after + HEADER, c->target_size) : slice(w, 0, 0),
    };
    PyObject *entry = NULL;
    int is_whole = 1;
    for (int i = 0; i < 8; i++)
        is_whole &= arguments[i] != NULL;
    if (is_whole)
        entry = PyObject_Vectorcall(type, arguments, 8, NULL);
    for (int i = 0; i < 8; i++)
        Py_XDECREF(arguments[i]);
    return entry;
}

/* ----- what becomes of the children: a list of entries, or packed records */

struct found {
    PyObject *list, *type, *kinds; /* of entries; or NULL */
    uint8_t *data;
    uint64_t size, room;
};

static int add_entry(struct found *f, const struct window *w, const struct child *c)
{
    PyObject *entry = make_entry(f->type, PyTuple_GET_ITEM(f->kinds, c->kind), w, c);
    int failed = entry == NULL || PyList_Append(f->list, entry);
    Py_XDECREF(entry);
    return failed ? -1 : 0;
}

static void put(uint8_t *to, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        to[i] = (uint8_t)(value >> (8 * i));
}

static int make_room(struct found *f, uint64_t size)
{
    if (size <= f->room - f->size)
        return 0;
    uint64_t room = 2 * f->room + size + 4096;
    uint8_t *data = PyMem_Realloc(f->data, room);
    if (data == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    f->data = data;
    f->room = room;
    return 0;
}

static int packed_kind(int kind)
{
    switch (kind) {
    case DIRECTORY:
        return PACKED_DIRECTORY;
    case REGULAR:
        return PACKED_FILE;
    case SYMLINK:
        return PACKED_SYMLINK;
    }
    return kind == FIFO ? PACKED_FIFO : PACKED_SOCKET;
}

static int add_packed(struct found *f, const struct window *w, const struct child *c)
{
    uint64_t metadata = c->after - c->stat, size = PACKED + c->name_size + c->target_size + metadata;
    uint64_t numbers[] = {w->base + c->position, c->end, c->payload_offset, c->size};
    if (make_room(f, size))
        return -1;
    uint8_t *to = f->data + f->size;
    memset(to, 0, PACKED);
    put(to, (uint64_t)packed_kind(c->kind), 1);
    put(to + 1, c->name_size, 2);
    put(to + 3, c->target_size, 2);
    put(to + 5, metadata, 4);
    for (int i = 0; i < 4; i++)
        put(to + PACKED_NUMBERS + 8 * i, numbers[i], 8);
    to += PACKED;
    memcpy(to, w->data + c->position + HEADER, c->name_size);
    to += c->name_size;
    if (c->target_size)
        memcpy(to, w->data + c->after + HEADER, c->target_size);
    memcpy(to + c->target_size, w->data + c->stat, metadata);
    f->size += size;
    return 0;
}

/* Adds children from `position` on, which it moves behind them. -1: out of memory. */
static int collect(struct found *f, const struct window *w, const struct table *t, uint64_t content_item,
                   uint64_t *position)
{
    while (w->base + *position < t->start && *position < w->size) {
        struct child c = {.position = *position};
        if (!read_child(w, &c, t, content_item))
            return 0;
        if (f->list ? add_entry(f, w, &c) : add_packed(f, w, &c))
            return -1;
        *position = c.end - w->base;
    }
    return 0;
}

static PyObject *packed_bytes(struct found *f)
{
    PyObject *result = PyBytes_FromStringAndSize((const char *)f->data, (Py_ssize_t)f->size);
    PyMem_Free(f->data);
    return result;
}

/* ----- the module's functions */

static PyObject *out_of_range(const char *who)
{
    return PyErr_Format(PyExc_ValueError, "%s: out of range", who);
}

static PyObject *children(PyObject *module, PyObject *args)
{
    PyObject *type, *kinds, *result = NULL;
    Py_buffer window, records;
    unsigned long long base, position, start, content_item;
    if (!PyArg_ParseTuple(args, "OOy*KKy*KK", &type, &kinds, &window, &base, &position, &records, &start,
                          &content_item))
        return NULL;
    int is_packed = kinds == Py_None;
    if ((!is_packed && (!PyTuple_Check(kinds) || PyTuple_GET_SIZE(kinds) != MOST_KINDS)) || base > MAX_STREAM ||
        start > 2 * MAX_STREAM) {
        out_of_range("children");
    } else {
        struct window w = {window.buf, (uint64_t)window.len, base};
        struct table t = {records.buf, (uint64_t)records.len, start};
        struct found f = {is_packed ? NULL : PyList_New(0), type, kinds, NULL, 0, 0};
        uint64_t reached = position;
        int failed = (!is_packed && f.list == NULL) || collect(&f, &w, &t, content_item, &reached);
        PyObject *found = is_packed ? packed_bytes(&f) : Py_XNewRef(f.list);
        if (!failed && found != NULL)
            result = Py_BuildValue("OK", found, (unsigned long long)reached);
        Py_XDECREF(found);
        Py_XDECREF(f.list);
    }
    PyBuffer_Release(&window);
    PyBuffer_Release(&records);
    return result;
}

/* A directory that lies in the window from FILENAME to its end: where its children begin, and its table. */
static int find_table(const struct window *w, uint64_t position, uint64_t end, uint64_t *first, struct table *t)
{
    struct child c = {.position = position};
    if (end > w->size || !read_name(w, &c) || !read_metadata(w, &c) || c.kind != DIRECTORY)
        return 0;
    if (c.after > end || end - c.after < HEADER + RECORD)
        return 0;
    const uint8_t *tail = w->data + end - RECORD;
    uint64_t size = get64(tail + 16), type, stored;
    if (get64(tail) != TAIL_MARKER || size < HEADER + RECORD || size > end - c.after || (size - HEADER) % RECORD)
        return 0;
    uint64_t start = end - size;
    if (get64(tail + 8) != start - c.stat || !header_at(w, start, &type, &stored))
        return 0;
    *first = c.after;
    *t = (struct table){w->data + start, size - RECORD, w->base + start};
    return type == PXAR_GOODBYE && stored == size;
}

static PyObject *directory(PyObject *module, PyObject *args)
{
    PyObject *result = NULL;
    Py_buffer window;
    unsigned long long base, offset, end, content_item;
    if (!PyArg_ParseTuple(args, "y*KKKK", &window, &base, &offset, &end, &content_item))
        return NULL;
    if (base > MAX_STREAM || offset < base || end < offset) {
        out_of_range("directory");
    } else {
        struct window w = {window.buf, (uint64_t)window.len, base};
        struct table t;
        struct found f = {0};
        uint64_t position;
        if (!find_table(&w, offset - base, end - base, &position, &t)) {
            result = Py_NewRef(Py_None);
        } else {
            int failed = collect(&f, &w, &t, content_item, &position);
            PyObject *packed = packed_bytes(&f);
            if (!failed && packed != NULL)
                result = w.base + position == t.start ? Py_NewRef(packed) : Py_NewRef(Py_None);
            Py_XDECREF(packed);
        }
    }
    PyBuffer_Release(&window);
    return result;
}

/* ----- packed records */

struct record {
    const uint8_t *name;
    uint64_t name_size, size;
    int kind;
};

static int read_record(const uint8_t *data, uint64_t left, struct record *r)
{
    if (left < PACKED)
        return 0;
    uint64_t lengths = get64(data + 1);
    r->kind = data[0];
    r->name = data + PACKED;
    r->name_size = lengths & 0xffff;
    r->size = PACKED + r->name_size + (lengths >> 16 & 0xffff) + (lengths >> 32 & 0xffffffff);
    return r->kind < PACKED_KINDS && r->size <= left;
}

static int compare_names(const struct record *a, const struct record *b)
{
    int order = memcmp(a->name, b->name, a->name_size < b->name_size ? a->name_size : b->name_size);
    return order ? order : (a->name_size > b->name_size) - (a->name_size < b->name_size);
}

/* Notes where the records begin in `starts`, if it is not NULL; returns how many, or -1. */
static Py_ssize_t walk_records(const Py_buffer *packed, uint64_t most, uint64_t *starts, int *ascends, int *has_links)
{
    struct record record, before = {.name = (const uint8_t *)""};
    uint64_t position = 0, size = (uint64_t)packed->len;
    Py_ssize_t count = 0;
    for (; position < size; position += record.size) {
        if (!read_record((const uint8_t *)packed->buf + position, size - position, &record))
            return -1;
        if (record.name_size > most)
            continue;
        *ascends &= compare_names(&before, &record) < 0;
        *has_links |= record.kind == PACKED_HARDLINK;
        before = record;
        if (starts != NULL)
            starts[count] = position;
        count++;
    }
    return count;
}

static PyObject *index_records(PyObject *module, PyObject *args)
{
    PyObject *result = NULL;
    Py_buffer packed;
    unsigned long long most;
    if (!PyArg_ParseTuple(args, "y*K", &packed, &most))
        return NULL;
    int ascends = 1, has_links = 0;
    Py_ssize_t count = walk_records(&packed, most, NULL, &ascends, &has_links);
    if (count < 0) {
        result = Py_NewRef(Py_None);
    } else {
        PyObject *starts = PyBytes_FromStringAndSize(NULL, count * (Py_ssize_t)sizeof(uint64_t));
        if (starts != NULL) {
            walk_records(&packed, most, (uint64_t *)PyBytes_AS_STRING(starts), &ascends, &has_links);
            result = Py_BuildValue("NNN", starts, PyBool_FromLong(ascends), PyBool_FromLong(has_links));
        }
    }
    PyBuffer_Release(&packed);
    return result;
}

static PyMethodDef methods[] = {
    {"children", children, METH_VARARGS,
     "children(entry_type, kinds, window, base, position, records, table_start, content_item)"
     " -> (entries, or packed if both are None, and the position behind them)"},
    {"directory", directory, METH_VARARGS,
     "directory(window, base, offset, end, content_item) -> its children packed, or None: not all are at hand"},
    {"index", index_records, METH_VARARGS,
     "index(packed, longest_name) -> (starts, whether names ascend, whether there are hard links), or None"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_entries", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__entries(void)
{
    PyObject *made = PyModule_Create(&definition);
    if (made != NULL && PyModule_AddIntConstant(made, "INTERFACE", 1) < 0) // see store/native.py
        Py_CLEAR(made);
    return made;
}

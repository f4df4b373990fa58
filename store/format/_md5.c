/* MD5 of several buffers at once, one in each lane of a vector register.
 *
 * One MD5 is a single chain of dependent steps: a processor that could do eight does them in hardly more time.
 * Written from RFC 1321. This module may be missing: store/format/md5.py then takes hashlib's.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "words are read as they are in memory, and MD5's are little-endian"
#endif

#define LANES 8
#define BLOCK 64
#define SIZE 16
#define MOST 64

/* One function for each kind of processor, chosen when the module is loaded. */
#if defined(__x86_64__) && defined(__gnu_linux__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

typedef uint32_t vector __attribute__((vector_size(4 * LANES)));

#define F(b, c, d) ((d) ^ ((b) & ((c) ^ (d))))
#define G(b, c, d) ((c) ^ ((d) & ((b) ^ (c))))
#define H(b, c, d) ((b) ^ (c) ^ (d))
#define I(b, c, d) ((c) ^ ((b) | ~(d)))
#define ROTATE(x, s) (((x) << (s)) | ((x) >> (32 - (s))))
#define STEP(f, a, b, c, d, i, s, k) a += w[i] + (uint32_t)(k), a += f(b, c, d), a = (b) + ROTATE(a, s)
#define FOUR(f, i0, i1, i2, i3, s0, s1, s2, s3, k0, k1, k2, k3) \
    STEP(f, a, b, c, d, i0, s0, k0); STEP(f, d, a, b, c, i1, s1, k1); \
    STEP(f, c, d, a, b, i2, s2, k2); STEP(f, b, c, d, a, i3, s3, k3)

#define LOW32(x, y) __builtin_shufflevector(x, y, 0, 8, 1, 9, 4, 12, 5, 13)
#define HIGH32(x, y) __builtin_shufflevector(x, y, 2, 10, 3, 11, 6, 14, 7, 15)
#define LOW64(x, y) __builtin_shufflevector(x, y, 0, 1, 8, 9, 4, 5, 12, 13)
#define HIGH64(x, y) __builtin_shufflevector(x, y, 2, 3, 10, 11, 6, 7, 14, 15)
#define LOW128(x, y) __builtin_shufflevector(x, y, 0, 1, 2, 3, 8, 9, 10, 11)
#define HIGH128(x, y) __builtin_shufflevector(x, y, 4, 5, 6, 7, 12, 13, 14, 15)

/* Each lane's next eight words become eight vectors of one word of each lane. */
#define TRANSPOSE(w, data, offset) do { \
    vector r[LANES], t[LANES], u[LANES]; \
    for (int l = 0; l < LANES; l++) \
        memcpy(&r[l], data[l] + (offset), sizeof r[l]); \
    for (int l = 0; l < LANES; l += 2) { \
        t[l] = LOW32(r[l], r[l + 1]); \
        t[l + 1] = HIGH32(r[l], r[l + 1]); \
    } \
    for (int l = 0; l < LANES; l += 4) { \
        u[l] = LOW64(t[l], t[l + 2]); \
        u[l + 1] = HIGH64(t[l], t[l + 2]); \
        u[l + 2] = LOW64(t[l + 1], t[l + 3]); \
        u[l + 3] = HIGH64(t[l + 1], t[l + 3]); \
    } \
    for (int i = 0; i < 4; i++) { \
        (w)[i] = LOW128(u[i], u[i + 4]); \
        (w)[i + 4] = HIGH128(u[i], u[i + 4]); \
    } \
} while (0)

FOR_EACH_PROCESSOR
static void hash_blocks(vector state[4], const uint8_t *const data[LANES], size_t count)
{
    vector a0 = state[0], b0 = state[1], c0 = state[2], d0 = state[3];

    for (size_t offset = 0; offset < count * BLOCK; offset += BLOCK) {
        vector a = a0, b = b0, c = c0, d = d0, w[16];
        TRANSPOSE(w, data, offset);
        TRANSPOSE(w + 8, data, offset + BLOCK / 2);
        FOUR(F, 0, 1, 2, 3, 7, 12, 17, 22, 0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee);
        FOUR(F, 4, 5, 6, 7, 7, 12, 17, 22, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501);
        FOUR(F, 8, 9, 10, 11, 7, 12, 17, 22, 0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be);
        FOUR(F, 12, 13, 14, 15, 7, 12, 17, 22, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821);
        FOUR(G, 1, 6, 11, 0, 5, 9, 14, 20, 0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa);
        FOUR(G, 5, 10, 15, 4, 5, 9, 14, 20, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8);
        FOUR(G, 9, 14, 3, 8, 5, 9, 14, 20, 0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed);
        FOUR(G, 13, 2, 7, 12, 5, 9, 14, 20, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a);
        FOUR(H, 5, 8, 11, 14, 4, 11, 16, 23, 0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c);
        FOUR(H, 1, 4, 7, 10, 4, 11, 16, 23, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70);
        FOUR(H, 13, 0, 3, 6, 4, 11, 16, 23, 0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05);
        FOUR(H, 9, 12, 15, 2, 4, 11, 16, 23, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665);
        FOUR(I, 0, 7, 14, 5, 6, 10, 15, 21, 0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039);
        FOUR(I, 12, 3, 10, 1, 6, 10, 15, 21, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1);
        FOUR(I, 8, 15, 6, 13, 6, 10, 15, 21, 0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1);
        FOUR(I, 4, 11, 2, 9, 6, 10, 15, 21, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391);
        a0 += a, b0 += b, c0 += c, d0 += d;
    }
    state[0] = a0, state[1] = b0, state[2] = c0, state[3] = d0;
}

/* A buffer in two pieces: its whole blocks, then its last bytes with what MD5 puts behind them. */
struct message {
    const uint8_t *data;
    size_t blocks, tail_blocks;
    uint8_t tail[2 * BLOCK], digest[SIZE];
};

static void prepare(struct message *message, const uint8_t *data, size_t size)
{
    size_t rest = size % BLOCK;
    uint64_t bits = (uint64_t)size * 8;

    message->data = data;
    message->blocks = size / BLOCK;
    message->tail_blocks = rest < BLOCK - sizeof bits ? 1 : 2;
    memset(message->tail, 0, sizeof message->tail);
    memcpy(message->tail, data + size - rest, rest);
    message->tail[rest] = 0x80;
    memcpy(message->tail + message->tail_blocks * BLOCK - sizeof bits, &bits, sizeof bits);
}

/* Each lane takes the next message when it is done with one. */
static void hash_messages(struct message *messages, size_t count)
{
    static const uint32_t start[4] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476};
    struct message *in[LANES] = {NULL};
    const uint8_t *data[LANES], *any;
    size_t left[LANES], next = 0, step;
    vector state[4];

    for (;;) {
        step = 0;
        for (int l = 0; l < LANES; l++) {
            if (in[l] && !left[l] && in[l]->tail_blocks) {
                data[l] = in[l]->tail;
                left[l] = in[l]->tail_blocks;
                in[l]->tail_blocks = 0;
            } else if (in[l] && !left[l]) {
                for (int i = 0; i < 4; i++)
                    memcpy(in[l]->digest + 4 * i, (uint32_t *)&state[i] + l, 4);
                in[l] = NULL;
            }
            if (!in[l] && next < count) {
                in[l] = &messages[next++];
                data[l] = in[l]->blocks ? in[l]->data : in[l]->tail;
                left[l] = in[l]->blocks ? in[l]->blocks : in[l]->tail_blocks;
                if (!in[l]->blocks)
                    in[l]->tail_blocks = 0;
                for (int i = 0; i < 4; i++)
                    memcpy((uint32_t *)&state[i] + l, &start[i], 4);
            }
            if (in[l] && (!step || left[l] < step)) {
                step = left[l];
                any = data[l];
            }
        }
        if (!step)
            return;
        for (int l = 0; l < LANES; l++)
            if (!in[l])
                data[l] = any; /* an idle lane hashes what another has, for nothing */
        hash_blocks(state, data, step);
        for (int l = 0; l < LANES; l++)
            if (in[l]) {
                data[l] += step * BLOCK;
                left[l] -= step;
            }
    }
}

PyDoc_STRVAR(md5_many_doc,
"md5_many(buffers, /) -> list[bytes]\n\n"
"The MD5 of each of at most 64 buffers. The GIL is released. Raises ValueError for more.");

static PyObject *md5_many(PyObject *self, PyObject *argument)
{
    struct message *messages = NULL;
    Py_buffer *buffers = NULL;
    Py_ssize_t count, held = 0;
    PyObject *items, *result = NULL;
    (void)self;

    items = PySequence_Fast(argument, "md5_many: a sequence of buffers");
    if (!items)
        return NULL;
    count = PySequence_Fast_GET_SIZE(items);
    if (count > MOST) {
        PyErr_SetString(PyExc_ValueError, "md5_many: too many buffers");
        goto out;
    }
    messages = PyMem_Calloc(MOST, sizeof *messages);
    buffers = PyMem_Calloc(MOST, sizeof *buffers);
    if (!messages || !buffers) {
        PyErr_NoMemory();
        goto out;
    }
    for (; held < count; held++) {
        if (PyObject_GetBuffer(PySequence_Fast_GET_ITEM(items, held), &buffers[held], PyBUF_SIMPLE) < 0)
            goto out;
        prepare(&messages[held], buffers[held].buf, (size_t)buffers[held].len);
    }
    Py_BEGIN_ALLOW_THREADS
    hash_messages(messages, (size_t)count);
    Py_END_ALLOW_THREADS
    result = PyList_New(count);
    for (Py_ssize_t i = 0; result && i < count; i++) {
        PyObject *digest = PyBytes_FromStringAndSize((const char *)messages[i].digest, SIZE);
        if (!digest)
            Py_CLEAR(result);
        else
            PyList_SET_ITEM(result, i, digest);
    }
out:
    while (held > 0)
        PyBuffer_Release(&buffers[--held]);
    PyMem_Free(buffers);
    PyMem_Free(messages);
    Py_DECREF(items);
    return result;
}

static PyMethodDef methods[] = {
    {"md5_many", md5_many, METH_O, md5_many_doc},
    {NULL, NULL, 0, NULL},
};

static int add_interface(PyObject *self)
{
    return PyModule_AddIntConstant(self, "INTERFACE", 1); // see store/native.py
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, add_interface}, {0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_md5", "MD5 of several buffers at once, in C.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__md5(void)
{
    return PyModuleDef_Init(&module);
}

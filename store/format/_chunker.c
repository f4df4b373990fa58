/* store.format._chunker: the search for chunk boundaries, in C.
 *
 * The hash of PBS's dynamic chunker is a pure function of the last 64 bytes:
 *
 *     h(e) = xor of rotl(T[data[e - 1 - k]], k mod 32) for k = 0 .. 63
 *
 * so a range may be searched in independent pieces. Rolling one hash is bound by the latency of rotate, xor, xor
 * (3 cycles a byte); four of them side by side fill the pipeline. Each lane has its own stripe of consecutive ends;
 * the first lane that has a hit has the lowest one.
 *
 * Source of the algorithm: proxmox-backup pbs-datastore/src/chunker.rs.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define WINDOW 64
#define ROLL(h, out, in) ((((h) << 1) | ((h) >> 31)) ^ table[out] ^ table[in])
#define IS_CUT(h) (((h) & mask) >= threshold)

static const size_t LANES = 4;
static const size_t STRIPE = 32768;   /* bytes a lane rolls before the lanes meet again: 4 of them stay in the L2 cache */
static const size_t MIN_STRIPE = 512; /* below this the four fills cost more than the lanes save */

static uint32_t window_hash(const uint32_t *table, const uint8_t *data)
{
    uint32_t h = 0;
    for (int i = 0; i < WINDOW; i++)
        h = ((h << 1) | (h >> 31)) ^ table[data[i]];
    return h;
}

/* Ends data + WINDOW .. data + WINDOW + count - 1; count >= 1. Returns the first end that is a cut, or 0. */
static size_t search_one(const uint32_t *table, const uint8_t *data, size_t count, uint32_t mask, uint32_t threshold)
{
    uint32_t h = window_hash(table, data);
    for (size_t i = 0;; i++) {
        if (IS_CUT(h))
            return i + WINDOW;
        if (i + 1 == count)
            return 0;
        h = ROLL(h, data[i], data[i + WINDOW]);
    }
}

/* The same for 4 * stripe ends: lane k has those from k * stripe on. */
static size_t search_lanes(const uint32_t *table, const uint8_t *data, size_t stripe, uint32_t mask, uint32_t threshold)
{
    const uint8_t *d0 = data, *d1 = d0 + stripe, *d2 = d1 + stripe, *d3 = d2 + stripe;
    uint32_t h0 = window_hash(table, d0), h1 = window_hash(table, d1);
    uint32_t h2 = window_hash(table, d2), h3 = window_hash(table, d3);
    size_t hit1 = 0, hit2 = 0, hit3 = 0;

    for (size_t i = 0;; i++) {
        if (__builtin_expect(IS_CUT(h0), 0))
            return i + WINDOW;
        if (__builtin_expect(IS_CUT(h1), 0) && !hit1)
            hit1 = stripe + i + WINDOW;
        if (__builtin_expect(IS_CUT(h2), 0) && !hit2)
            hit2 = 2 * stripe + i + WINDOW;
        if (__builtin_expect(IS_CUT(h3), 0) && !hit3)
            hit3 = 3 * stripe + i + WINDOW;
        if (i + 1 == stripe)
            break;
        h0 = ROLL(h0, d0[i], d0[i + WINDOW]);
        h1 = ROLL(h1, d1[i], d1[i + WINDOW]);
        h2 = ROLL(h2, d2[i], d2[i + WINDOW]);
        h3 = ROLL(h3, d3[i], d3[i + WINDOW]);
    }
    return hit1 ? hit1 : hit2 ? hit2 : hit3;
}

static size_t search(const uint32_t *table, const uint8_t *data, size_t size, uint32_t mask, uint32_t threshold)
{
    size_t done = 0;
    while (size - done >= WINDOW) {
        size_t count = size - done - WINDOW + 1, stripe = count / LANES, hit;
        if (stripe > STRIPE)
            stripe = STRIPE;
        if (stripe >= MIN_STRIPE) {
            count = stripe * LANES;
            hit = search_lanes(table, data + done, stripe, mask, threshold);
        } else {
            hit = search_one(table, data + done, count, mask, threshold);
        }
        if (hit)
            return done + hit;
        done += count;
    }
    return 0;
}

PyDoc_STRVAR(find_cut_doc,
"find_cut(table, data, start, end, mask, threshold, /) -> int\n\n"
"The lowest e with start + 64 <= e <= end where the hash of data[e-64:e] is a cut; 0 if there is none.\n"
"table: 256 native 32-bit values. The GIL is released. Raises ValueError for a range outside of data.");

static PyObject *find_cut(PyObject *self, PyObject *args)
{
    Py_buffer table, data;
    Py_ssize_t start, end;
    unsigned int mask, threshold;
    PyObject *result = NULL;
    (void)self;

    if (!PyArg_ParseTuple(args, "y*y*nnII:find_cut", &table, &data, &start, &end, &mask, &threshold))
        return NULL;
    if (table.len != 1024 || start < 0 || end < start || end > data.len) {
        PyErr_SetString(PyExc_ValueError, "find_cut: the table has not 1024 bytes, or the range is outside of the data");
    } else {
        uint32_t rows[256];
        size_t hit;
        memcpy(rows, table.buf, sizeof rows);
        Py_BEGIN_ALLOW_THREADS
        hit = search(rows, (const uint8_t *)data.buf + start, (size_t)(end - start), mask, threshold);
        Py_END_ALLOW_THREADS
        result = PyLong_FromSsize_t(hit ? start + (Py_ssize_t)hit : 0);
    }
    PyBuffer_Release(&table);
    PyBuffer_Release(&data);
    return result;
}

static PyMethodDef methods[] = {
    {"find_cut", find_cut, METH_VARARGS, find_cut_doc},
    {NULL, NULL, 0, NULL},
};

static int add_interface(PyObject *self)
{
    return PyModule_AddIntConstant(self, "INTERFACE", 1); // see store/native.py
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, add_interface}, {0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_chunker", "The search for chunk boundaries, in C.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__chunker(void)
{
    return PyModuleDef_Init(&module);
}

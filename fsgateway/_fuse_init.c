/* What libfuse does not ask of the kernel yet: that files opened past its cache (direct_io) can be mapped all the same.
 *
 * A shared map of such a file fails (ENODEV) unless the answer to INIT has FUSE_DIRECT_IO_ALLOW_MMAP, which Linux 6.6
 * offers and libfuse before 3.17 does not know. libfuse lets a session have its own way to write: ours adds the flag to
 * that one answer, and writes all others as they are.
 */
#define _GNU_SOURCE
#include "_fuse_init.h"
#include <dlfcn.h>
#include <linux/fuse.h>
#include <stddef.h>
#include <sys/uio.h>
#include <unistd.h>

#define ALLOW_MMAP (1u << (36 - 32)) /* FUSE_DIRECT_IO_ALLOW_MMAP in flags2; older headers lack it */
#define ITS_END (offsetof(struct fuse_init_out, flags2) + sizeof(uint32_t))

static int maps_uncached;

#if defined(FUSE_INIT_EXT) && FUSE_VERSION >= FUSE_MAKE_VERSION(3, 13)

static int is_due; /* the answer to INIT comes next */

static ssize_t write_answer(int file, struct iovec *parts, int count, void *userdata)
{
    if (is_due && count == 2 && parts[1].iov_len >= ITS_END) {
        struct fuse_init_out *answer = parts[1].iov_base;
        answer->flags |= FUSE_INIT_EXT;
        answer->flags2 |= ALLOW_MMAP;
        maps_uncached = 1;
    }
    is_due = 0;
    return writev(file, parts, count);
}

static ssize_t read_request(int file, void *buffer, size_t size, void *userdata)
{
    return read(file, buffer, size);
}

typedef int (*Customize)(struct fuse_session *, const struct fuse_custom_io *, int);

void watch_for_init(struct fuse_session *session, const struct fuse_buf *request)
{
    static const struct fuse_custom_io ways = {.writev = write_answer, .read = read_request};
    const struct fuse_in_header *header = request->mem;
    if (request->flags & FUSE_BUF_IS_FD || header->opcode != FUSE_INIT)
        return;
    const struct fuse_init_in *asked = (const void *)(header + 1);
    maps_uncached = 0;
    Customize customize = (Customize)dlvsym(RTLD_NEXT, "fuse_session_custom_io", "FUSE_3.0");
    if (customize && request->size >= sizeof *header + sizeof *asked && asked->flags & FUSE_INIT_EXT &&
        asked->flags2 & ALLOW_MMAP)
        is_due = customize(session, &ways, fuse_session_fd(session)) == 0;
}

#else /* headers of a kernel or a libfuse that cannot */

void watch_for_init(struct fuse_session *session, const struct fuse_buf *request)
{
}

#endif

PyObject *can_map_uncached(PyObject *module, PyObject *unused)
{
    return PyBool_FromLong(maps_uncached);
}

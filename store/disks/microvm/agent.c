/* The only program in the micro-VM: process 1. Mounts one file system read-only and answers
 * questions about it over a virtio serial port. Its peer, and the format of what they say to each
 * other, is protocol.py; the two must agree.
 *
 * What it reads was written by the owner of a disk, who may mean harm: if he takes over this
 * program or the kernel below it, he has a machine without network whose only disk is his own.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>
#include <linux/btrfs.h>
#include <linux/btrfs_tree.h>
#include <linux/fiemap.h>
#include <linux/fs.h>

#define VERSION 1
#define THREADS 4 /* requests in work at a time: one waits for the disk, another answers */
#define MAX_NAME 4096
#define MAX_READ (1024 * 1024)
#define MAX_EXTENTS 2048
#define MAX_XATTRS (1024 * 1024) /* of one file; the kernel limits a value to 64 KiB */
#define LARGEST_REPLY (MAX_READ + MAX_XATTRS + 64 * 1024)

enum { READY = 0, STAT, LOOKUP, LIST, READ, EXTENTS };
enum { TYPE_INO32 = 0x01, TYPE_BTRFS = 0x4d, TYPE_FAT = 0x71, TYPE_XFS = 0x81 };

struct request {
    uint32_t length, id, op;
    uint64_t root, inode, offset;
    uint32_t size;
} __attribute__((packed));

struct reply {
    uint32_t length, id;
    int32_t error;
} __attribute__((packed));

struct record {
    uint64_t root, inode, size;
    int64_t mtime_s;
    uint32_t mtime_ns, mode, uid, gid, links, major, minor;
    int32_t error;
    uint16_t name_size, target_size;
    uint32_t xattrs_size;
} __attribute__((packed));

struct page {
    uint64_t next;
    uint32_t count, last;
} __attribute__((packed));

struct extent {
    uint64_t logical, physical, size;
    uint32_t flags;
} __attribute__((packed));

struct handle {
    uint32_t bytes;
    int32_t type;
    uint8_t data[128];
};

struct buffer {
    uint8_t *data;
    size_t used;
};

static int port = -1, top = -1, handle_type = TYPE_INO32;
static uint64_t top_root, top_inode;
static pthread_mutex_t reading = PTHREAD_MUTEX_INITIALIZER, writing = PTHREAD_MUTEX_INITIALIZER;

static void stop(void) {
    reboot(RB_AUTOBOOT); /* QEMU runs with -no-reboot: this ends it */
    for (;;) pause();
}

/* The console is the host's log, shown when we do not get as far as the port. */
static void give_up(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    printf("vaultway-agent: ");
    vprintf(format, arguments);
    printf(": %s\n", strerror(errno));
    fflush(stdout);
    va_end(arguments);
    stop();
}

/* ---- the port ---- */

static void read_all(void *into, size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t got = read(port, (char *)into + done, size - done);
        if (got == 0 || (got < 0 && errno != EINTR)) stop(); /* the host has gone */
        if (got > 0) done += got;
    }
}

static void write_all(const void *from, size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t put = write(port, (const char *)from + done, size - done);
        if (put == 0 || (put < 0 && errno != EINTR)) stop();
        if (put > 0) done += put;
    }
}

/* `buffer` begins with room for the header; an error's reply has no more than that. */
static void answer(uint32_t id, int error, struct buffer *buffer) {
    struct reply *reply = (struct reply *)buffer->data;
    if (error && id) buffer->used = sizeof *reply;
    reply->length = buffer->used - sizeof reply->length;
    reply->id = id;
    reply->error = error;
    pthread_mutex_lock(&writing);
    write_all(buffer->data, buffer->used);
    pthread_mutex_unlock(&writing);
}

static void append(struct buffer *buffer, const void *data, size_t size) {
    memcpy(buffer->data + buffer->used, data, size);
    buffer->used += size;
}

/* ---- inodes by number ---- */

/* XFS opens no handle of a wrong generation; only this ioctl tells it. */
struct xfs_bulk_request {
    uint64_t *last;
    int32_t count;
    void *into;
    int32_t *got;
};
struct xfs_bulk_stat {
    uint8_t before[108];
    uint32_t generation;
    uint8_t after[24];
};
#define XFS_IOC_FSBULKSTAT_SINGLE _IOWR('X', 102, struct xfs_bulk_request)

static int xfs_generation(uint64_t inode, uint32_t *generation) {
    struct xfs_bulk_stat found;
    int32_t got = 0;
    struct xfs_bulk_request request = {&inode, 1, &found, &got};
    if (ioctl(top, XFS_IOC_FSBULKSTAT_SINGLE, &request)) return errno;
    *generation = found.generation;
    return 0;
}

/* Btrfs the same: from the inode item itself. */
static int btrfs_generation(uint64_t root, uint64_t inode, uint32_t *generation) {
    struct btrfs_ioctl_search_args search = {.key = {
        .tree_id = root, .min_objectid = inode, .max_objectid = inode,
        .min_type = BTRFS_INODE_ITEM_KEY, .max_type = BTRFS_INODE_ITEM_KEY,
        .max_offset = UINT64_MAX, .max_transid = UINT64_MAX, .nr_items = 1}};
    if (ioctl(top, BTRFS_IOC_TREE_SEARCH, &search)) return errno;
    struct btrfs_ioctl_search_header header;
    struct btrfs_inode_item item;
    memcpy(&header, search.buf, sizeof header);
    if (search.key.nr_items != 1 || header.len < sizeof item) return ESTALE;
    memcpy(&item, search.buf + sizeof header, sizeof item);
    *generation = item.generation;
    return 0;
}

static int make_handle(uint64_t root, uint64_t inode, struct handle *handle) {
    uint32_t generation = 0, small = inode, high = inode >> 32;
    int error = 0;
    handle->type = handle_type;
    memset(handle->data, 0, sizeof handle->data);
    switch (handle_type) {
    case TYPE_INO32:
        handle->bytes = 8;
        memcpy(handle->data, &small, 4);
        return high ? ESTALE : 0;
    case TYPE_FAT: /* generation, position (48 bits) */
        handle->bytes = 12;
        memcpy(handle->data + 4, &small, 4);
        memcpy(handle->data + 8, &high, 2);
        return 0;
    case TYPE_XFS:
        handle->bytes = 12;
        error = xfs_generation(inode, &generation);
        memcpy(handle->data, &inode, 8);
        memcpy(handle->data + 8, &generation, 4);
        return error;
    default:
        handle->bytes = 20;
        error = btrfs_generation(root, inode, &generation);
        memcpy(handle->data, &inode, 8);
        memcpy(handle->data + 8, &root, 8);
        memcpy(handle->data + 16, &generation, 4);
        return error;
    }
}

/* A descriptor of the inode, or -1 with errno. */
static int open_inode(uint64_t root, uint64_t inode, int flags) {
    struct handle handle;
    if (root == top_root && inode == top_inode) return openat(top, ".", flags);
    int error = make_handle(root, inode, &handle);
    if (error) {
        errno = error;
        return -1;
    }
    return syscall(SYS_open_by_handle_at, top, &handle, flags);
}

/* ---- records ---- */

/* Which Btrfs subvolume a name leads into; it is 0 elsewhere. */
static uint64_t root_of(int folder, const char *name, uint64_t otherwise) {
    struct handle handle = {.bytes = sizeof handle.data};
    int mount;
    uint64_t root;
    if (handle_type != TYPE_BTRFS) return 0;
    if (syscall(SYS_name_to_handle_at, folder, name, &handle, &mount, AT_EMPTY_PATH))
        return otherwise;
    memcpy(&root, handle.data + 8, 8);
    return handle.bytes >= 16 ? root : otherwise;
}

/* Something to describe: `name` in `folder`, or `folder` itself when the name is empty. */
struct place {
    int folder;
    const char *name;
    const char *path; /* the same, for calls that take no folder */
    int is_link;      /* `path` is /proc's link to it, to be followed */
};

static int append_xattrs(struct buffer *buffer, const struct place *place) {
    static __thread char names[65536];
    const char *path = place->path;
    size_t start = buffer->used;
    ssize_t size = (place->is_link ? listxattr : llistxattr)(path, names, sizeof names);
    if (size < 0) return errno == EOPNOTSUPP ? 0 : errno;
    for (char *name = names; name < names + size; name += strlen(name) + 1) {
        uint16_t name_size = strlen(name);
        if (buffer->used + 6 + name_size + 65536 > start + MAX_XATTRS) return E2BIG;
        uint8_t *at = buffer->data + buffer->used;
        ssize_t got = (place->is_link ? getxattr : lgetxattr)(path, name, at + 6 + name_size, 65536);
        if (got < 0 && (errno == ENODATA || errno == EOPNOTSUPP)) continue;
        if (got < 0) return errno;
        uint32_t value_size = got;
        memcpy(at, &name_size, 2);
        memcpy(at + 2, &value_size, 4);
        memcpy(at + 6, name, name_size);
        buffer->used += 6 + name_size + value_size;
    }
    return 0;
}

static int append_target(struct buffer *buffer, const struct place *place, struct record *record) {
    char *into = (char *)buffer->data + buffer->used;
    ssize_t size = readlinkat(place->folder, place->name, into, MAX_NAME);
    if (size < 0) return errno;
    record->target_size = size;
    buffer->used += size;
    return 0;
}

/* What Btrfs shows in a snapshot in place of a subvolume that was not part of it. */
static int is_placeholder(uint64_t inode) {
    return handle_type == TYPE_BTRFS && inode == BTRFS_EMPTY_SUBVOL_DIR_OBJECTID;
}

static void fill(struct record *record, const struct stat *status) {
    record->inode = status->st_ino;
    record->mode = status->st_mode;
    record->size = status->st_size;
    if (!is_placeholder(status->st_ino)) { /* that one's time is when it was looked at */
        record->mtime_s = status->st_mtim.tv_sec;
        record->mtime_ns = status->st_mtim.tv_nsec;
    }
    record->uid = status->st_uid;
    record->gid = status->st_gid;
    record->links = status->st_nlink;
    record->major = major(status->st_rdev);
    record->minor = minor(status->st_rdev);
}

/* Appends what there is to say. A damaged inode gets a record, too, with its error: `record` comes
 * with what its directory says of it. */
static void append_record(struct buffer *buffer, const struct place *place, struct record record) {
    size_t at = buffer->used, start;
    struct stat status;
    buffer->used += sizeof record;
    record.name_size = strlen(place->name);
    append(buffer, place->name, record.name_size);
    if (fstatat(place->folder, place->name, &status, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)) {
        record.error = errno;
    } else {
        fill(&record, &status);
        if (S_ISDIR(status.st_mode) && status.st_ino == BTRFS_FIRST_FREE_OBJECTID)
            record.root = root_of(place->folder, place->name, record.root);
        if (S_ISLNK(status.st_mode)) record.error = append_target(buffer, place, &record);
        start = buffer->used;
        int error = append_xattrs(buffer, place);
        if (error) buffer->used = start;
        if (error && error != E2BIG) record.error = error; /* so many have no room in pxar either */
        record.xattrs_size = buffer->used - start;
    }
    memcpy(buffer->data + at, &record, sizeof record);
}

/* ---- requests: each fills the buffer, and returns an errno or 0 ---- */

static int answer_stat(const struct request *request, struct buffer *buffer) {
    struct record record = {.root = request->root, .inode = request->inode, .links = 1};
    char path[32];
    if (is_placeholder(request->inode)) {
        record.mode = S_IFDIR | 0755;
        append(buffer, &record, sizeof record);
        return 0;
    }
    int file = open_inode(request->root, request->inode, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (file < 0) return errno;
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    append_record(buffer, &(struct place){file, "", path, 1}, record);
    close(file);
    return 0;
}

/* The directory, as this thread's working directory too. */
static int enter(const struct request *request) {
    int folder = open_inode(request->root, request->inode, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder >= 0 && fchdir(folder)) {
        int error = errno;
        close(folder);
        errno = error;
        return -1;
    }
    return folder;
}

static int answer_lookup(const struct request *request, const char *name, struct buffer *buffer) {
    struct stat status;
    if (is_placeholder(request->inode)) return ENOENT;
    int folder = enter(request);
    if (folder < 0) return errno;
    int error = fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW) ? errno : 0;
    if (error != ENOENT && error != ENAMETOOLONG)
        append_record(buffer, &(struct place){folder, name, name, 0},
                      (struct record){.root = request->root, .mode = S_IFREG, .links = 1});
    close(folder);
    return error == ENOENT || error == ENAMETOOLONG ? ENOENT : 0;
}

static int is_dots(const char *name) { return !strcmp(name, ".") || !strcmp(name, ".."); }

/* Entries from the cookie `offset` on, about `size` bytes of them. */
static int answer_list(const struct request *request, struct buffer *buffer) {
    static __thread char raw[32768];
    struct page page = {.next = request->offset, .last = is_placeholder(request->inode)};
    size_t limit = request->size < MAX_READ ? request->size : MAX_READ, at = buffer->used;
    int folder = -1, error = 0;
    buffer->used += sizeof page;
    if (!page.last && (folder = enter(request)) < 0) return errno;
    if (folder >= 0 && lseek(folder, request->offset, SEEK_SET) < 0) error = errno;
    while (!error && !page.last && buffer->used < limit) {
        ssize_t size = syscall(SYS_getdents64, folder, raw, sizeof raw);
        if (size < 0) error = errno;
        if (size == 0) page.last = 1;
        for (ssize_t position = 0; position < size && buffer->used < limit;) {
            struct dirent64 *entry = (struct dirent64 *)(raw + position);
            position += entry->d_reclen;
            page.next = entry->d_off;
            if (is_dots(entry->d_name)) continue;
            append_record(buffer, &(struct place){folder, entry->d_name, entry->d_name, 0},
                          (struct record){.root = request->root, .inode = entry->d_ino,
                                          .mode = DTTOIF(entry->d_type), .links = 1});
            page.count++;
        }
    }
    memcpy(buffer->data + at, &page, sizeof page);
    if (folder >= 0) close(folder);
    return error;
}

static int open_regular(const struct request *request) {
    struct stat status;
    int flags = O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC; /* a FIFO must not hold us up */
    int file = open_inode(request->root, request->inode, flags);
    if (file >= 0 && (fstat(file, &status) || !S_ISREG(status.st_mode))) {
        close(file);
        errno = EINVAL;
        return -1;
    }
    return file;
}

static int answer_read(const struct request *request, struct buffer *buffer) {
    size_t size = request->size < MAX_READ ? request->size : MAX_READ;
    int file = open_regular(request);
    if (file < 0) return errno;
    ssize_t got = pread(file, buffer->data + buffer->used, size, request->offset);
    int error = got < 0 ? errno : 0;
    if (got > 0) buffer->used += got;
    close(file);
    return error;
}

/* Where on the disk the file is, from the byte `offset` on. */
static int answer_extents(const struct request *request, struct buffer *buffer) {
    static __thread uint8_t raw[sizeof(struct fiemap) + MAX_EXTENTS * sizeof(struct fiemap_extent)];
    struct fiemap *map = (struct fiemap *)raw;
    int file = open_regular(request);
    if (file < 0) return errno;
    memset(map, 0, sizeof *map);
    map->fm_start = request->offset;
    map->fm_length = FIEMAP_MAX_OFFSET - request->offset;
    map->fm_extent_count = MAX_EXTENTS;
    int error = ioctl(file, FS_IOC_FIEMAP, map) ? errno : 0;
    for (unsigned number = 0; !error && number < map->fm_mapped_extents; number++) {
        struct fiemap_extent *found = &map->fm_extents[number];
        struct extent extent = {found->fe_logical, found->fe_physical, found->fe_length,
                                found->fe_flags};
        append(buffer, &extent, sizeof extent);
    }
    close(file);
    return error;
}

static void serve(const struct request *request, const char *name, struct buffer *buffer) {
    int error = EOPNOTSUPP;
    buffer->used = sizeof(struct reply);
    if (request->op == STAT) error = answer_stat(request, buffer);
    if (request->op == LOOKUP) error = answer_lookup(request, name, buffer);
    if (request->op == LIST) error = answer_list(request, buffer);
    if (request->op == READ) error = answer_read(request, buffer);
    if (request->op == EXTENTS) error = answer_extents(request, buffer);
    answer(request->id, error, buffer);
}

/* Takes the next request while others are still at theirs. */
static void *work(void *nothing) {
    struct buffer buffer = {.data = malloc(LARGEST_REPLY)};
    char name[MAX_NAME + 1];
    struct request request;
    if (!buffer.data || unshare(CLONE_FS)) give_up("no thread"); /* a working directory each */
    for (;;) {
        pthread_mutex_lock(&reading);
        read_all(&request, sizeof request);
        size_t size = request.length + sizeof request.length - sizeof request;
        if (size > MAX_NAME) give_up("a request of %u bytes", request.length);
        read_all(name, size);
        pthread_mutex_unlock(&reading);
        name[size] = 0;
        serve(&request, name, &buffer);
    }
    return nothing;
}

/* ---- the start ---- */

/* What `modprobe` would hand over: on the command line, `virtio_mmio.device=...` several times. */
static void module_parameters(const char *module, const char *line, char *into, size_t room) {
    char text[4096], *rest = text, prefix[64];
    into[0] = 0;
    snprintf(text, sizeof text, "%s", line);
    size_t size = snprintf(prefix, sizeof prefix, "%s.", module);
    for (char *word; (word = strsep(&rest, " \n"));)
        if (!strncmp(word, prefix, size)) {
            strncat(into, word + size, room - strlen(into) - 2);
            strcat(into, " ");
        }
}

static void load_modules(void) {
    char line[4096] = "", module[128], parameters[4096];
    FILE *file = fopen("/proc/cmdline", "r");
    if (!file || !fgets(line, sizeof line, file)) give_up("/proc/cmdline");
    fclose(file);
    if (!(file = fopen("/modules/order", "r"))) give_up("/modules/order");
    while (fscanf(file, "%100s", module) == 1) {
        char path[160];
        snprintf(path, sizeof path, "/modules/%s", module);
        module_parameters(module, line, parameters, sizeof parameters);
        int code = open(path, O_RDONLY | O_CLOEXEC);
        if (code < 0 || (syscall(SYS_finit_module, code, parameters, 0) && errno != EEXIST))
            give_up("module %s", module);
        close(code);
    }
    fclose(file);
}

/* The kernel makes the device a moment after the driver has loaded. */
static int open_when_there(const char *path, int flags) {
    for (int tries = 0; tries < 5000; tries++) {
        int file = open(path, flags | O_CLOEXEC);
        if (file >= 0) return file;
        if (errno != ENOENT && errno != ENXIO) break;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    give_up("%s", path);
    return -1;
}

static void choose_handles(const char *kind) {
    if (!strcmp(kind, "xfs")) handle_type = TYPE_XFS;
    if (!strcmp(kind, "btrfs")) handle_type = TYPE_BTRFS;
    if (!strcmp(kind, "vfat")) handle_type = TYPE_FAT;
}

/* Mounts the disk; the kernel replays the journal into it first, read-only mount or not. */
static int mount_disk(const char *kind, const char *options) {
    unsigned long ahead = 2048; /* sectors: 1 MiB, as much as is asked for at a time */
    struct stat status;
    int disk = open_when_there("/dev/vda", O_RDONLY);
    ioctl(disk, BLKRASET, ahead);
    close(disk);
    choose_handles(kind);
    if (mount("/dev/vda", "/top", kind, MS_RDONLY | MS_NODEV | MS_NOSUID | MS_NOEXEC, options))
        return errno;
    top = open("/top", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (top < 0 || fstat(top, &status)) return errno;
    top_inode = status.st_ino;
    top_root = root_of(AT_FDCWD, "/top", 0);
    return 0;
}

static void say_ready(int error) {
    static uint8_t data[65536];
    struct buffer buffer = {.data = data, .used = sizeof(struct reply)};
    uint32_t version = VERSION;
    append(&buffer, &version, sizeof version);
    append(&buffer, &top_root, sizeof top_root);
    append(&buffer, &top_inode, sizeof top_inode);
    int size = error ? klogctl(3, (char *)data + buffer.used, 8192) : 0; /* its last 8 KiB */
    if (size > 0) buffer.used += size;
    answer(READY, error, &buffer);
}

/* Two lines: the kind of file system, and its mount options. */
static void read_settings(char *kind, char *options, int room) {
    FILE *file = fopen("/settings", "r");
    if (!file || !fgets(kind, room, file) || !fgets(options, room, file)) give_up("/settings");
    kind[strcspn(kind, "\n")] = options[strcspn(options, "\n")] = 0;
    fclose(file);
}

int main(void) {
    char kind[256], options[256];
    pthread_t thread;
    mkdir("/proc", 0755);
    mkdir("/top", 0755);
    if (mount("proc", "/proc", "proc", 0, NULL)) give_up("/proc");
    if (mount("dev", "/dev", "devtmpfs", 0, NULL) && errno != EBUSY) give_up("/dev");
    load_modules();
    port = open_when_there("/dev/vport0p1", O_RDWR);
    read_settings(kind, options, sizeof kind);
    say_ready(mount_disk(kind, options));
    for (int number = 1; number < THREADS; number++)
        if (pthread_create(&thread, NULL, work, NULL)) give_up("no thread");
    work(NULL);
}

"""What takes several calls. Each story tells what it saw; the same is told of tmpfs."""

import ctypes
import fcntl
import mmap
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.posix import calls
from tests.posix.calls import outcome
from tests.posix.cases import ACCESS, DEFAULT, NAMED
from tests.posix.ground import OTHER, USER, Caller, acting, clear

F_OFD_SETLK = 37
OLD_NS = 1_000_000_000
Story = Callable[[Path], Iterator[Any]]
ME = Caller(USER, USER)


def _mode(path: Path) -> str:
    info = path.lstat()
    return f"{oct(info.st_mode)} {info.st_uid}:{info.st_gid}"


def inheritance(top: Path) -> Iterator[Any]:
    """What is made below a setgid directory, with umasks, and below a default ACL."""
    shared = top / "shared"
    shared.mkdir()
    os.chown(shared, USER, OTHER)
    shared.chmod(0o2777)
    defaults = top / "defaults"
    defaults.mkdir()
    defaults.chmod(0o777)
    os.setxattr(defaults, DEFAULT, NAMED)
    for umask in (0, 0o022, 0o077, 0o777):
        for directory in (shared, defaults):
            before = os.umask(umask)
            try:
                with acting(ME):
                    (directory / "directory").mkdir()
                    (directory / "file").touch(0o666)
                    os.close(os.open(directory / "run", os.O_CREAT | os.O_WRONLY, 0o777))
                    os.mkfifo(directory / "fifo", 0o666)
                    os.symlink("x", directory / "link")
            finally:
                os.umask(before)
            for path in sorted(directory.iterdir()):
                attributes = os.listxattr(path, follow_symlinks=False)
                yield path.name, _mode(path), [os.getxattr(path, a).hex() for a in attributes]
            clear(os.fsencode(directory))


def setuid_bits(top: Path) -> Iterator[Any]:
    """They go when others than root change the content or the owner, and stay else."""

    def write(path: Path) -> None:
        with path.open("r+b", buffering=0) as file:
            file.write(b"x")

    def map_write(path: Path) -> None:
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 3) as shared:
            shared[0:1] = b"y"

    def allocate(path: Path) -> None:
        calls.through(os.fsencode(path), os.O_RDWR, lambda fd: os.posix_fallocate(fd, 0, 100))

    changes: dict[str, Callable[[Path], Any]] = {
        "write": write, "truncate": lambda p: os.truncate(p, 1), "map": map_write,
        "allocate": allocate, "extend": lambda p: os.truncate(p, 9999),
        "chown": lambda p: os.chown(p, -1, USER), "chown-both": lambda p: os.chown(p, USER, USER),
        "chmod": lambda p: p.chmod(0o6755), "times": lambda p: os.utime(p),
        "xattr": lambda p: os.setxattr(p, "user.x", b"1"),
    }  # fmt: skip
    for caller in (ME, Caller()):
        for mode in (0o4777, 0o2777, 0o6777, 0o2767, 0o6666):
            for name, change in changes.items():
                path = top / "file"
                path.write_bytes(b"abc")
                os.chown(path, USER, USER)
                path.chmod(mode)
                with acting(caller):
                    result = outcome(change, path)
                yield caller.uid, oct(mode), name, result, _mode(path)
                path.unlink()
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    for caller in (ME, Caller()):
        path = top / "capable"
        path.write_bytes(b"abc")
        path.chmod(0o777)
        os.setxattr(path, "security.capability", capability)
        with acting(caller):
            write(path)
        yield caller.uid, os.listxattr(path)


def _times(top: Path) -> dict[str, tuple[int, int]]:
    return {
        name: (info.st_mtime_ns, info.st_ctime_ns)
        for name in (".", "a", "b", "sub", "sub/in")
        for info in [_stat(top / name)]
        if info is not None
    }


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


def times(top: Path) -> Iterator[Any]:
    """Which mtimes and ctimes each call changes."""
    a, b, sub = top / "a", top / "b", top / "sub"

    def written(size: bytes) -> Callable[[], Any]:
        return lambda: calls.through(os.fsencode(a), os.O_WRONLY, lambda fd: os.write(fd, size))

    def on_a(call: Callable[[int], Any]) -> Callable[[], Any]:
        return lambda: calls.through(os.fsencode(a), os.O_RDWR, call)

    changes: dict[str, Callable[[], Any]] = {
        "write": written(b"x"), "write-nothing": written(b""),
        "open": lambda: calls.open_and_close(os.fsencode(a), os.O_RDWR),
        "open-truncate": lambda: calls.open_and_close(os.fsencode(a), os.O_RDWR | os.O_TRUNC),
        "truncate": lambda: os.truncate(a, 2), "truncate-same": lambda: os.truncate(a, 3),
        "ftruncate-same": on_a(lambda fd: os.ftruncate(fd, 3)),
        "read": a.read_bytes, "chmod": lambda: a.chmod(0o600), "chmod-same": lambda: a.chmod(0o644),
        "chown": lambda: os.chown(a, 5, 5), "chown-nothing": lambda: os.chown(a, -1, -1),
        "link": lambda: os.link(a, b), "unlink": lambda: os.unlink(sub / "in"),
        "mkdir": lambda: (top / "b").mkdir(), "rmdir": lambda: os.rmdir(sub),
        "create": lambda: b.touch(), "symlink": lambda: os.symlink("x", b),
        "mkfifo": lambda: os.mkfifo(b), "rename": lambda: a.rename(b),
        "rename-into": lambda: a.rename(sub / "a"), "rename-directory": lambda: sub.rename(b),
        "rename-over": lambda: a.rename(sub / "in"),
        "setxattr": lambda: os.setxattr(a, "user.x", b"1"),
        "acl": lambda: os.setxattr(a, ACCESS, NAMED),
        "allocate": on_a(lambda fd: os.posix_fallocate(fd, 0, 99)),
        "utime": lambda: os.utime(a, ns=(7, 7)), "rmdir-full": lambda: os.rmdir(sub),
        "exists": lambda: (top / "a").mkdir(),
    }  # fmt: skip
    for name, change in changes.items():
        a.write_bytes(b"abc")
        sub.mkdir()
        (sub / "in").write_bytes(b"in")
        for path in (sub / "in", sub, a, top):
            os.utime(path, ns=(OLD_NS, OLD_NS))
        before = _times(top)
        time.sleep(0.006)  # a tick of the clock that tmpfs reads
        result = outcome(change)
        after = _times(top)
        changed = {
            where: [int(a != b) for a, b in zip(before[where], after[where], strict=True)]
            for where in before
            if where in after
        }  # fmt: skip
        yield name, str(result) if isinstance(result, str) else None, changed
        clear(os.fsencode(top))


def links(top: Path) -> Iterator[Any]:
    """Link counts, also of directories, and of what is open without a name."""
    yield top.stat().st_nlink
    for name in "abc":
        (top / name).mkdir()
        (top / name / "below").mkdir()
    yield top.stat().st_nlink, (top / "a").stat().st_nlink
    (top / "a").rename(top / "b" / "a")
    yield top.stat().st_nlink, (top / "b").stat().st_nlink
    calls.renameat2(os.fsencode(top / "c"), os.fsencode(top / "b" / "a" / "below"), 2)
    yield top.stat().st_nlink, (top / "b/a").stat().st_nlink
    (top / "b/below2").mkdir()
    os.rmdir(top / "b/below")
    yield (top / "b").stat().st_nlink
    (top / "one").write_bytes(b"1")
    for count in range(5):
        os.link(top / "one", top / f"link{count}")
    yield (top / "link3").stat().st_nlink
    (top / "one").unlink()
    yield (top / "link3").stat().st_nlink, (top / "link0").read_bytes()


def unlinked(top: Path) -> Iterator[Any]:
    """A file without a name lives while it is open; a directory is empty and takes nothing."""
    path = top / "file"
    with path.open("w+b", buffering=0) as file:
        file.write(b"one")
        path.unlink()
        file.write(b"two")
        os.fchmod(file.fileno(), 0o600)
        os.ftruncate(file.fileno(), 100)
        info = os.fstat(file.fileno())
        yield info.st_nlink, info.st_size, os.pread(file.fileno(), 10, 0).decode(), path.exists()
        path.write_bytes(b"another")
        yield os.pread(file.fileno(), 3, 0).decode(), path.read_bytes().decode()
        yield outcome(os.link, f"/proc/self/fd/{file.fileno()}", top / "back", follow_symlinks=True)
        os.rename(path, top / "moved")
        os.fsync(file.fileno())
    (top / "directory").mkdir()
    descriptor = os.open(top / "directory", os.O_RDONLY)
    os.rmdir(top / "directory")
    yield os.listdir(descriptor), os.fstat(descriptor).st_nlink
    yield outcome(os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
    yield outcome(os.mkdir, "x", dir_fd=descriptor)
    os.close(descriptor)
    (top / "over").write_bytes(b"old")
    with (top / "over").open("rb") as old:
        (top / "new").write_bytes(b"new")
        (top / "new").rename(top / "over")
        yield old.read().decode(), (top / "over").read_text()


def _in_child(work: Callable[[], Any]) -> int:
    child = os.fork()
    if not child:
        status = 1
        with suppress(OSError):
            work()
            status = 0
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def locks(top: Path) -> Iterator[Any]:
    """flock and byte ranges, between processes."""
    path = top / "file"
    path.write_bytes(b"0123456789")

    def flock(kind: int) -> Callable[[], None]:
        def take() -> None:
            with path.open("rb") as file:
                fcntl.flock(file, kind | fcntl.LOCK_NB)

        return take

    def lockf(kind: int, start: int, size: int) -> Callable[[], None]:
        def take() -> None:
            with path.open("r+b") as file:
                fcntl.lockf(file, kind | fcntl.LOCK_NB, size, start)

        return take

    for mine in (fcntl.LOCK_SH, fcntl.LOCK_EX):
        for other in (fcntl.LOCK_SH, fcntl.LOCK_EX):
            with path.open("r+b") as file:
                fcntl.flock(file, mine)
                yield "flock", mine, other, _in_child(flock(other))
            with path.open("r+b") as file:
                fcntl.lockf(file, mine, 3, 2)
                for start, size in ((0, 2), (0, 3), (4, 1), (5, 0), (2, 3)):
                    yield "range", mine, other, start, _in_child(lockf(other, start, size))
    yield _in_child(flock(fcntl.LOCK_EX)), _in_child(lockf(fcntl.LOCK_EX, 0, 0))
    with path.open("r+b") as one, path.open("r+b") as two:
        query = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
        fcntl.fcntl(one, F_OFD_SETLK, query)
        yield outcome(fcntl.fcntl, two, F_OFD_SETLK, query)


def maps(top: Path) -> Iterator[Any]:
    """What is written through a shared map, and what a map sees of write()."""
    path = top / "file"
    with path.open("w+b", buffering=0) as file:
        file.write(bytes(range(256)) * 64)
        with mmap.mmap(file.fileno(), 16384) as shared, mmap.mmap(file.fileno(), 16384) as second:
            shared[5000:5004] = b"mmap"
            yield second[4999:5005].hex(), os.pread(file.fileno(), 6, 4999).hex()
            os.pwrite(file.fileno(), b"written", 9000)
            yield shared[9000:9007].decode()
            shared.flush()
            os.ftruncate(file.fileno(), 8192)
            os.ftruncate(file.fileno(), 16384)
            yield shared[9000:9007].hex(), shared[5000:5004].decode()
        os.fsync(file.fileno())
    yield path.read_bytes()[4999:5005].hex()
    private = path.open("r+b")
    with mmap.mmap(private.fileno(), 4096, mmap.MAP_PRIVATE) as copy:
        copy[0:3] = b"not"
    private.close()
    yield path.read_bytes()[:3].hex()


def appending(top: Path) -> Iterator[Any]:
    """Two processes with O_APPEND overwrite nothing of each other's."""
    path = top / "log"

    def write(letter: bytes) -> Callable[[], None]:
        def work() -> None:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for number in range(300):
                os.write(descriptor, letter * 50 + b"%04d\n" % number)
            os.close(descriptor)

        return work

    child = os.fork()
    if not child:
        write(b"a")()
        os._exit(0)
    write(b"b")()
    os.waitpid(child, 0)
    lines = path.read_bytes().splitlines()
    yield len(lines), len(set(lines)), {len(line) for line in lines} == {54}
    with path.open("ab") as file:
        os.truncate(path, 5)
        file.write(b"end")
    yield path.read_bytes()[5:].decode()


def direct(top: Path) -> Iterator[Any]:
    """O_DIRECT and the page cache see the same."""
    path = top / "file"
    buffer = mmap.mmap(-1, 8192)
    buffer[:] = b"d" * 8192
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    yield os.pwritev(descriptor, [buffer], 0), path.read_bytes() == b"d" * 8192
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"cached", 4100)
        os.preadv(descriptor, [buffer], 0)
        yield buffer[4099:4107].decode(), os.fstat(descriptor).st_size
        os.ftruncate(file.fileno(), 4096)
        yield os.preadv(descriptor, [buffer], 0)
    os.close(descriptor)


def holes(top: Path) -> Iterator[Any]:
    """Holes read as zeros, also where data was."""
    path = top / "file"
    with path.open("w+b", buffering=0) as file:
        descriptor = file.fileno()
        os.pwrite(descriptor, b"end", 1 << 20)
        yield os.fstat(descriptor).st_size, os.pread(descriptor, 10, 500).hex()
        os.pwrite(descriptor, b"x" * 65536, 0)
        calls.fallocate(descriptor, calls.PUNCH_HOLE | calls.KEEP_SIZE, 4096, 8192)
        data = os.pread(descriptor, 65536, 0)
        yield data.count(0), data[4095:4097].hex(), data[12287:12289].hex()
        yield os.lseek(descriptor, 0, os.SEEK_HOLE), os.lseek(descriptor, 4096, os.SEEK_DATA)
        yield os.lseek(descriptor, 70_000, os.SEEK_DATA) <= 1 << 20
        yield (
            os.lseek(descriptor, 1 << 20, os.SEEK_HOLE),
            outcome(os.lseek, descriptor, 2 << 20, os.SEEK_DATA),
        )
        yield os.copy_file_range(descriptor, descriptor, 100, 0, 200_000)
        yield os.pread(descriptor, 3, 200_050).decode()
        os.posix_fallocate(descriptor, 0, 2 << 20)
        yield os.fstat(descriptor).st_size, os.pread(descriptor, 3, 1 << 20).decode()


def directories(top: Path) -> Iterator[Any]:
    """Entries that come and go while a directory is read, and seekdir() to where one was."""
    for number in range(1000):
        (top / f"f{number:04}").touch()
    seen = []
    with os.scandir(top) as entries:
        for entry in entries:
            seen.append(entry.name)
            if int(entry.name[1:]) % 2:
                os.unlink(entry.path)
    yield len(seen), len(set(seen)), len(os.listdir(top))
    library = ctypes.CDLL(None)
    library.opendir.restype = library.readdir.restype = ctypes.c_void_p
    library.telldir.restype = ctypes.c_long
    stream = ctypes.c_void_p(library.opendir(os.fsencode(top)))
    read = lambda: library.readdir(stream)  # noqa: E731
    for _ in range(100):
        read()
    position = library.telldir(stream)
    following = [ctypes.string_at(read() + 19) for _ in range(5)]
    library.seekdir(stream, ctypes.c_long(position))
    yield following == [ctypes.string_at(read() + 19) for _ in range(5)]
    (top / "later").touch()
    library.rewinddir(stream)
    names = []
    while entry := read():
        names.append(ctypes.string_at(entry + 19))
    library.closedir(stream)
    yield len({*names} - {b".", b".."}), b"later" in names


def deep_paths(top: Path) -> Iterator[Any]:
    """A tree deeper than PATH_MAX, made and removed step by step."""
    here = os.open(top, os.O_RDONLY)
    depth = 0
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=here)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here, depth = below, depth + 1
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    yield os.listdir(here), depth
    os.close(here)


STORIES: dict[str, Story] = {
    story.__name__: story
    for story in (
        inheritance, setuid_bits, times, links, unlinked, locks, maps, appending, direct, holes,
        directories, deep_paths,
    )
}  # fmt: skip


def run_stories(top: bytes) -> Iterator[tuple[str, Any]]:
    """Every story in a new directory."""
    for name, story in STORIES.items():
        ground = Path(os.fsdecode(top)) / name
        ground.mkdir()
        ground.chmod(0o777 | stat.S_ISVTX)
        for number, told in enumerate(story(ground)):
            yield f"{name} {number}", told
        clear(os.fsencode(ground))
        ground.rmdir()

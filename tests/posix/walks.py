"""Random walks: the same calls in two places, which have to answer alike and look alike."""

import os
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.posix import calls
from tests.posix.calls import outcome

NAMES = [b"a", b"b", b"c", b"d", b"n" * 255]
TOLD = 40


class Walk:
    """One seeded walk over `places`, directories that begin alike."""

    def __init__(self, seed: int, *places: Path) -> None:
        self._random = random.Random(seed)
        self._places = [os.fsencode(place) for place in places]
        self._open: list[list[int]] = []
        self._told: deque[Any] = deque(maxlen=TOLD)

    def steps(self, count: int) -> None:
        """Take so many steps. Raises AssertionError where the places differ."""
        kinds = [getattr(self, name) for name in dir(self) if name.startswith("do_")]
        for _ in range(count):
            self._random.choice(kinds)()

    def close(self) -> None:
        """Close all files, before a place goes away for a while."""
        for descriptors in self._open:
            for descriptor in descriptors:
                os.close(descriptor)
        self._open.clear()

    def _path(self) -> bytes:
        depth = self._random.choice((1, 1, 2, 2, 3))
        return b"/".join(self._random.choice(NAMES) for _ in range(depth))

    def _each(self, call: Callable[..., Any], *paths: bytes, **named: Any) -> list[Any]:
        """Call it in each place; the answers, which have to be the same."""
        answers = [
            outcome(call, *(place + b"/" + path for path in paths), **named)
            for place in self._places
        ]
        self._compare((getattr(call, "__name__", call), *paths), answers)
        return answers

    def _compare(self, what: Any, answers: list[Any]) -> None:
        self._told.append((what, answers[0]))
        assert all(answer == answers[0] for answer in answers), (what, answers, [*self._told])

    # ----- names

    def do_mkdir(self) -> None:
        self._each(os.mkdir, self._path())

    def do_create(self) -> None:
        def create(path: bytes) -> None:
            descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK)
            os.write(descriptor, data)
            os.close(descriptor)

        data = self._random.randbytes(self._random.choice((0, 10, 5000, 70_000)))
        self._each(create, self._path())

    def do_node(self) -> None:
        mode = self._random.choice((0o10644, 0o140600, 0o100444, 0o20666))
        self._each(lambda path: os.mknod(path, mode, 259 if mode < 0o30000 else 0), self._path())

    def do_symlink(self) -> None:
        self._each(lambda path: os.symlink(b"a/b", path), self._path())

    def do_link(self) -> None:
        """Of regular files only: others come out of a snapshot as several, as PBS has it."""

        def link(one: bytes, other: bytes) -> None:
            if os.lstat(one).st_mode & 0o170000 == 0o100000:
                os.link(one, other)

        self._each(link, self._path(), self._path())

    def do_unlink(self) -> None:
        self._each(os.unlink, self._path())

    def do_rmdir(self) -> None:
        self._each(os.rmdir, self._path())

    def do_rename(self) -> None:
        flags = self._random.choice((0, 0, 0, 1, 2))
        self._each(lambda a, b: calls.renameat2(a, b, flags), self._path(), self._path())

    do_rename_again = do_rename

    # ----- attributes

    def do_chmod(self) -> None:
        mode = self._random.choice((0o600, 0o755, 0o4711, 0o2775, 0o1777))
        self._each(lambda path: os.chmod(path, mode), self._path())

    def do_chown(self) -> None:
        owner, group = self._random.randrange(9), self._random.randrange(9)
        self._each(lambda path: os.lchown(path, owner, group), self._path())

    def do_times(self) -> None:
        when = self._random.randrange(1 << 60)
        self._each(
            lambda path: os.utime(path, ns=(when, when), follow_symlinks=False), self._path()
        )

    def do_xattr(self) -> None:
        name = self._random.choice(("user.a", "user.b"))
        value = self._random.choice((b"", b"1", b"2" * 300, None))
        if value is None:
            self._each(lambda path: os.removexattr(path, name), self._path())
        else:
            self._each(lambda path: os.setxattr(path, name, value), self._path())

    def do_truncate(self) -> None:
        size = self._random.choice((0, 1, 4095, 4096, 50_000, 1 << 20))
        self._each(lambda path: os.truncate(path, size), self._path())

    # ----- open files

    def do_open(self) -> None:
        flags = os.O_NONBLOCK | self._random.choice(
            (os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_TRUNC, os.O_RDWR | os.O_APPEND)
        )
        path = self._path()
        if len(self._open) > 5:
            return
        descriptors = [outcome(os.open, place + b"/" + path, flags) for place in self._places]
        are_open = [isinstance(descriptor, int) for descriptor in descriptors]
        if all(are_open) and (os.fstat(descriptors[0]).st_mode & 0o170000) == 0o100000:
            self._open.append(descriptors)
            return
        for descriptor, is_open in zip(descriptors, are_open, strict=True):
            if is_open:
                os.close(descriptor)
        what = [
            "opened" if is_open else d for d, is_open in zip(descriptors, are_open, strict=True)
        ]
        self._compare(("open", path, flags), what)

    def do_close(self) -> None:
        if self._open:
            number = self._random.randrange(len(self._open))
            self._compare("close", [outcome(os.close, fd) for fd in self._open.pop(number)])

    def _on_open(self, name: str, call: Callable[[int], Any]) -> None:
        if self._open:
            descriptors = self._random.choice(self._open)
            self._compare(name, [outcome(call, descriptor) for descriptor in descriptors])

    def do_write(self) -> None:
        offset = self._random.choice((0, 100, 4096, 65_536, 300_000))
        data = self._random.randbytes(self._random.choice((1, 10, 4096, 10_000, 140_000)))
        self._on_open(f"write {offset} {len(data)}", lambda fd: os.pwrite(fd, data, offset))

    do_write_again = do_write

    def do_read(self) -> None:
        offset, size = self._random.randrange(400_000), self._random.choice((1, 5000, 200_000))
        self._on_open(f"read {offset} {size}", lambda fd: os.pread(fd, size, offset))

    def do_ftruncate(self) -> None:
        size = self._random.choice((0, 7, 4096, 100_000))
        self._on_open(f"ftruncate {size}", lambda fd: os.ftruncate(fd, size))

    def do_punch(self) -> None:
        start, size = self._random.randrange(100_000), self._random.randrange(1, 100_000)
        self._on_open(f"punch {start} {size}", lambda fd: calls.fallocate(fd, 3, start, size))

    def do_sync(self) -> None:
        self._on_open("fsync", os.fsync)

    def do_fstat(self) -> None:
        self._on_open("fstat", lambda fd: (os.fstat(fd).st_size, os.fstat(fd).st_nlink))

    # ----- looking

    def do_list(self) -> None:
        self._each(lambda path: sorted(os.listdir(path)), self._path())

    def do_read_whole(self) -> None:
        self._each(lambda path: calls.through(path, os.O_RDONLY, _read), self._path())

    def do_stat(self) -> None:
        self._each(lambda path: _facts(path), self._path())


def _read(descriptor: int) -> bytes:
    return os.read(descriptor, 1 << 20)


def _facts(path: bytes) -> tuple[int, ...]:
    info = os.lstat(path)
    is_directory = info.st_mode & 0o170000 == 0o040000
    size = 0 if is_directory else info.st_size
    return info.st_mode, info.st_uid, info.st_gid, size, info.st_rdev

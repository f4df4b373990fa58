"""What programs do to a file they just made, before they close it: in two places alike."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.posix import calls
from tests.posix.calls import outcome

SIZES = (0, 1, 511, 4096, 10_240, 65_536, 200_000)
FEW = 10
FACTS = ("st_mode", "st_uid", "st_gid", "st_nlink", "st_size")


class NewFiles:
    """Files made in `places`, directories that begin alike."""

    def __init__(self, seed: int, *places: Path) -> None:
        self._random = random.Random(seed)
        self._places = [os.fsencode(place) for place in places]
        self._paths: list[bytes] = []
        self._open: list[int] = []
        self._told: list[Any] = []

    def make(self, count: int) -> None:
        """Make so many. Raises AssertionError where the places differ."""
        kinds = [getattr(self, name) for name in dir(self) if name.startswith("do_")]
        for number in range(count):
            self._told = []
            if number % FEW == 0:
                for place in self._places:
                    os.mkdir(b"%s/%d" % (place, number // FEW))
            name = b"%d/%d" % (number // FEW, number)
            self._paths = [place + b"/" + name for place in self._places]
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
            mode = self._random.choice((0o600, 0o666, 0o4755))
            self._open = [os.open(path, flags, mode) for path in self._paths]
            for _ in range(self._random.randrange(9)):
                self._random.choice(kinds)()
            self._look()
            for descriptor in self._open:
                os.close(descriptor)

    def _each(self, call: Callable[..., Any], *arguments: Any) -> None:
        pairs = zip(self._open, self._paths, strict=True)
        answers = [outcome(call, opened, path, *arguments) for opened, path in pairs]
        self._told.append((call.__name__, *arguments, answers[0]))
        assert all(answer == answers[0] for answer in answers), (answers[1:], self._told)

    def _look(self) -> None:
        """All of it, as whoever has it open sees it."""
        self._each(lambda opened, _: [getattr(os.fstat(opened), name) for name in FACTS])
        self._each(lambda opened, _: os.pread(opened, 1 << 20, 0))

    def do_append(self) -> None:
        data = self._random.randbytes(self._random.choice(SIZES))
        self._each(lambda opened, _: os.write(opened, data))

    do_append_more = do_append_again = do_append

    def do_write(self) -> None:
        data, offset = self._random.randbytes(100), self._random.choice(SIZES)
        self._each(lambda opened, _: os.pwrite(opened, data, offset))

    def do_truncate(self) -> None:
        size = self._random.choice(SIZES)
        self._each(lambda opened, _: os.ftruncate(opened, size))

    def do_chmod(self) -> None:
        mode = self._random.choice((0o600, 0o755, 0o6711, 0o2775))
        self._each(lambda opened, _: os.fchmod(opened, mode))

    def do_chown(self) -> None:
        owner = self._random.randrange(9)
        self._each(lambda opened, _: os.fchown(opened, owner, owner + 1))

    def do_times(self) -> None:
        when = self._random.randrange(1 << 60)

        def times(opened: int, _: bytes) -> tuple[int, int, bool]:
            before = os.fstat(opened).st_ctime_ns
            os.utime(opened, ns=(when, when + 1))
            info = os.fstat(opened)
            return info.st_atime_ns, info.st_mtime_ns, info.st_ctime_ns >= before

        self._each(times)

    def do_times_now(self) -> None:
        def times(opened: int, _: bytes) -> bool:
            os.utime(opened)
            info = os.fstat(opened)
            return abs(info.st_mtime - info.st_ctime) < 1 and info.st_atime == info.st_mtime

        self._each(times)

    def do_look(self) -> None:
        self._look()

    def do_look_by_name(self) -> None:
        """A second time opened, and in a listing."""

        def look(_: int, path: bytes) -> tuple[str, int]:
            with os.scandir(os.path.dirname(path)) as found:
                sizes = {entry.name: entry.stat().st_size for entry in found}
            opened = calls.through(path, os.O_RDONLY, lambda file: os.pread(file, 1 << 20, 0).hex())
            return opened, sizes[os.path.basename(path)]

        self._each(look)

    def do_link(self) -> None:
        self._each(lambda _, path: os.link(path, path + b".link"))

    def do_rename(self) -> None:
        self._each(lambda _, path: os.rename(path, path + b".moved"))
        self._paths = [path + b".moved" for path in self._paths]

    def do_unlink(self) -> None:
        self._each(lambda _, path: os.unlink(path))

    def do_sync(self) -> None:
        self._each(lambda opened, _: os.fsync(opened))

    def do_xattr(self) -> None:
        self._each(lambda opened, _: os.setxattr(opened, "user.a", b"1"))
        self._each(lambda opened, _: os.listxattr(opened))

    def do_make_another(self) -> None:
        """In the same directory: what was done to this one is not forgotten."""
        name = b".%d" % self._random.randrange(1000)

        def make(_: int, path: bytes) -> str:
            return calls.open_and_close(path + name, os.O_CREAT | os.O_WRONLY)

        self._each(make)

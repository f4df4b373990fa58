"""One call on one thing or two: for all calls and all kinds of things, as root and as others."""

import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

from tests.posix import calls
from tests.posix.calls import open_and_close, outcome, renameat2, through, utimensat
from tests.posix.ground import (
    KINDS,
    OTHER,
    ROOT,
    USER,
    Caller,
    acting,
    clear,
    make,
    picture,
    spelling,
)  # fmt: skip

Call = Callable[[bytes], Any]
Two = Callable[[bytes, bytes], Any]
Result = tuple[str, Any]

OPENS = {
    "read": os.O_RDONLY, "write": os.O_WRONLY, "both": os.O_RDWR, "create": os.O_RDWR | os.O_CREAT,
    "exclusive": os.O_WRONLY | os.O_CREAT | os.O_EXCL, "truncate": os.O_WRONLY | os.O_TRUNC,
    "create-truncate": os.O_WRONLY | os.O_CREAT | os.O_TRUNC, "directory": os.O_DIRECTORY,
    "nofollow": os.O_NOFOLLOW, "nofollow-create": os.O_NOFOLLOW | os.O_CREAT | os.O_RDWR,
    "path": os.O_PATH, "append": os.O_WRONLY | os.O_APPEND, "read-truncate": os.O_TRUNC,
    "unnamed": os.O_TMPFILE | os.O_RDWR, "noatime": os.O_NOATIME,
}  # fmt: skip


def acl(*entries: tuple[int, int, int]) -> bytes:
    """The value of an ACL attribute: (tag, permissions, id) each."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
MINIMAL = acl((1, 6, NOBODY), (4, 4, NOBODY), (0x20, 0, NOBODY))
NAMED = acl((1, 7, NOBODY), (2, 6, OTHER), (4, 5, NOBODY), (0x10, 6, NOBODY), (0x20, 1, NOBODY))
WITHOUT_MASK = acl((1, 7, NOBODY), (2, 6, OTHER), (4, 5, NOBODY), (0x20, 1, NOBODY))
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


def _opens() -> dict[str, Call]:
    return {
        f"open-{name}": (lambda path, flags=flags: open_and_close(path, flags))
        for name, flags in OPENS.items()
    }


def _xattr_calls() -> dict[str, Call]:
    found: dict[str, Call] = {
        "getxattr": lambda p: os.getxattr(p, "user.none").hex(),
        "listxattr": lambda p: sorted(os.listxattr(p)),
        "removexattr": lambda p: os.removexattr(p, "user.none"),
        "setxattr": lambda p: os.setxattr(p, "user.a", b"1"),
        "setxattr-empty": lambda p: os.setxattr(p, "user.a", b""),
        "lsetxattr": lambda p: os.setxattr(p, "user.a", b"1", follow_symlinks=False),
        "setxattr-replace": lambda p: os.setxattr(p, "user.a", b"1", os.XATTR_REPLACE),
        "setxattr-trusted": lambda p: os.setxattr(p, "trusted.a", b"1"),
        "ltrusted": lambda p: os.setxattr(p, "trusted.a", b"1", follow_symlinks=False),
        "setxattr-unknown": lambda p: os.setxattr(p, "nothing.a", b"1"),
        "setxattr-long": lambda p: os.setxattr(p, "user." + "n" * 251, b"1"),
        "setxattr-nameless": lambda p: os.setxattr(p, "user.", b"1"),
        "setxattr-large": lambda p: os.setxattr(p, "user.a", b"1" * 65537),
        "get-acl": lambda p: os.getxattr(p, ACCESS).hex(),
        "remove-acl": lambda p: os.removexattr(p, ACCESS),
        "lacl": lambda p: os.setxattr(p, ACCESS, NAMED, follow_symlinks=False),
        "acl-rubbish": lambda p: os.setxattr(p, ACCESS, b"rubbish"),
        "capability": lambda p: os.setxattr(
            p, "security.capability", bytes.fromhex("0100000200200000000000000000000000000000")
        ),
    }
    for name, value in (("minimal", MINIMAL), ("named", NAMED), ("maskless", WITHOUT_MASK)):
        found[f"acl-{name}"] = lambda p, value=value: os.setxattr(p, ACCESS, value)
        found[f"default-{name}"] = lambda p, value=value: os.setxattr(p, DEFAULT, value)
    return found


def _attribute_calls() -> dict[str, Call]:
    found: dict[str, Call] = {
        "chown-same": lambda p: os.chown(p, -1, -1),
        "chown-user": lambda p: os.chown(p, USER, -1),
        "chown-group": lambda p: os.chown(p, -1, OTHER),
        "chown-own-group": lambda p: os.chown(p, -1, USER),
        "lchown": lambda p: os.lchown(p, USER, OTHER),
        "utimes-now": lambda p: os.utime(p),
        "utimes-set": lambda p: os.utime(p, ns=(5, 1_234_567_891)),
        "utimes-nofollow": lambda p: os.utime(p, ns=(5, 7), follow_symlinks=False),
        "utimes-old": lambda p: utimensat(p, (-10, 5), (-20, 999_999_999)),
        "utimes-omit": lambda p: utimensat(p, (0, calls.UTIME_OMIT), (0, calls.UTIME_OMIT)),
        "utimes-mixed": lambda p: utimensat(p, (0, calls.UTIME_NOW), (0, calls.UTIME_OMIT)),
        "utimes-bad": lambda p: utimensat(p, (0, 1_000_000_000), (0, 0)),
    }
    for mode in (0, 0o644, 0o777, 0o1777, 0o2755, 0o4755, 0o6777):
        found[f"chmod-{mode:o}"] = lambda p, mode=mode: os.chmod(p, mode)
    for size in (0, 3, 100_000, -1, 1 << 62):
        found[f"truncate-{size}"] = lambda p, size=size: os.truncate(p, size)
        found[f"ftruncate-{size}"] = lambda p, size=size: through(
            p, os.O_RDWR, lambda fd: os.ftruncate(fd, size)
        )
    return found


def _allocations() -> dict[str, Call]:
    kinds = (0, 1, 3, 2, 8, 32, 64, 19)  # 16, zeros: tmpfs has none
    ranges = ((0, 4096), (2, 3), (0, 0), (-1, 5), (4, -1), ((1 << 63) - 2, 100))
    return {
        f"fallocate-{mode}-{start}-{size}": lambda p, mode=mode, start=start, size=size: through(
            p, os.O_RDWR, lambda fd: calls.fallocate(fd, mode, start, size)
        )
        for mode in kinds
        for start, size in ranges
    }


ONE: dict[str, Call] = {
    **_opens(), **_xattr_calls(), **_attribute_calls(),
    "mkdir": lambda p: os.mkdir(p, 0o777), "mkdir-sticky": lambda p: os.mkdir(p, 0o7777),
    "mknod-file": lambda p: os.mknod(p, stat.S_IFREG | 0o664),
    "mknod-typeless": lambda p: os.mknod(p, 0o664),
    "mknod-setuid": lambda p: os.mknod(p, stat.S_IFREG | 0o6775),
    "mknod-fifo": lambda p: os.mknod(p, stat.S_IFIFO | 0o664),
    "mknod-socket": lambda p: os.mknod(p, stat.S_IFSOCK | 0o664),
    "mknod-device": lambda p: os.mknod(p, stat.S_IFCHR | 0o664, os.makedev(511, 1_000_000)),
    "mknod-directory": lambda p: os.mknod(p, stat.S_IFDIR | 0o664),
    "symlink": lambda p: os.symlink(b"target", p), "symlink-empty": lambda p: os.symlink(b"", p),
    "symlink-longest": lambda p: os.symlink(b"t" * 4095, p),
    "symlink-too-long": lambda p: os.symlink(b"t" * 4096, p),
    "rmdir": os.rmdir, "unlink": os.unlink, "readlink": lambda p: os.readlink(p).decode(),
    "stat": lambda p: oct(os.stat(p).st_mode), "lstat": lambda p: oct(os.lstat(p).st_mode),
    "list": lambda p: sorted(map(os.fsdecode, os.listdir(p))),
    "may-read": lambda p: os.access(p, os.R_OK, effective_ids=True),
    "may-write": lambda p: os.access(p, os.W_OK, effective_ids=True),
    "may-run": lambda p: os.access(p, os.X_OK, effective_ids=True),
    "read-directory": lambda p: through(p, os.O_RDONLY, lambda fd: os.read(fd, 5).decode()),
    "write-to-reader": lambda p: through(p, os.O_RDONLY, lambda fd: os.write(fd, b"x")),
    "write": lambda p: through(p, os.O_WRONLY, lambda fd: os.write(fd, b"x")),
}  # fmt: skip

TWO: dict[str, Two] = {
    "link": lambda a, b: os.link(a, b, follow_symlinks=False),
    "link-follow": lambda a, b: os.link(a, b, follow_symlinks=True),
    **{
        f"rename-{flags}": lambda a, b, flags=flags: renameat2(a, b, flags)
        for flags in (0, 1, 2, 3, 4, 6, 8)
    },
    "into-itself": lambda a, b: os.rename(a, a + b"/inner"),
    "onto-parent": lambda a, b: os.rename(a, os.path.dirname(a)),
    "same": lambda a, b: os.rename(a, a),
}
TWO_FIRST = KINDS
TWO_SECOND = (
    "file", "directory", "full", "to-file", "to-directory", "dangling", "fifo", "missing",
    "missing/", "directory/", "dot", "below-file", "below-missing", "longest", "too-long",
)  # fmt: skip

USERS = {
    # who calls, the directory's mode and owner, the thing's owner
    "root": (ROOT, 0o755, 0, 0),
    "own": (Caller(USER, USER), 0o755, USER, USER),
    "member": (Caller(USER, USER, (OTHER,)), 0o755, USER, USER),
    "foreign-thing": (Caller(USER, USER), 0o777, USER, OTHER),
    "sticky": (Caller(USER, USER), 0o1777, 0, OTHER),
    "sticky-own-thing": (Caller(USER, USER), 0o1777, 0, USER),
    "sticky-own-directory": (Caller(USER, USER), 0o1777, USER, OTHER),
    "read-only": (Caller(USER, USER), 0o555, USER, USER),
    "closed": (Caller(USER, USER), 0o600, USER, USER),
    "group-directory": (Caller(USER, USER), 0o2777, OTHER, USER),
}


def run_cases(top: bytes, who: str, *, pairs: bool, step: int = 1) -> Iterator[Result]:
    """Every call on everything, or on every two, as one of USERS; with a step each nth case."""
    caller, mode, owner, thing_owner = USERS[who]
    ground = top + b"/ground"
    first, second = ground + b"/first", ground + b"/second"
    cases: Iterator[tuple[str, tuple[str, ...], Callable[..., Any]]] = (
        ((name, (one, two), call) for name, call in TWO.items() for one in TWO_FIRST
         for two in TWO_SECOND)
        if pairs
        else ((name, (one,), call) for name, call in {**ONE, **_allocations()}.items()
              for one in KINDS if not name.startswith("fallocate") or one in ("file", "fifo"))
    )  # fmt: skip
    is_fresh = False
    for name, kinds, call in islice(cases, 0, None, step):
        if not is_fresh:
            _prepare(ground, mode, owner)
        is_fresh = "dotdot" not in kinds and name != "onto-parent"
        for kind, path in zip(kinds, (first, second), strict=False):
            make(kind, path, thing_owner)
        paths = [spelling(kind, path) for kind, path in zip(kinds, (first, second), strict=False)]
        with acting(caller):
            result = outcome(call, *paths)
        yield " ".join((who, name, *kinds)), [result, picture(ground)]
        clear(ground)
    os.rmdir(ground)


def _prepare(ground: bytes, mode: int, owner: int) -> None:
    """The directory the things are in, new: what a call did to it does not go on."""
    with suppress(FileNotFoundError):
        os.rmdir(ground)
    os.mkdir(ground)
    os.chown(ground, owner, owner)
    os.chmod(ground, mode)

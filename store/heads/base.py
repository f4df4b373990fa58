"""What the gateways see of a head: the shape of its trees and images."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, ParamSpec, Protocol, TypeVar

from store.format.buffer import Buffer
from store.names import BackupGroup, Namespace, Snapshot
from store.progress import SILENT, Progress

FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 16
"""Linux' numbers, for `Tree.fallocate`."""
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
"""Linux' numbers, for `Tree.rename`."""

P = ParamSpec("P")
T = TypeVar("T")


class WouldWait(Exception):
    """What was asked for needs the datastore or the disk: nothing was done, ask in a thread."""


class Attributes(Protocol):
    """An inode as stat() shows it. Read it, do not keep it: it changes with the inode.

    number: unique in the tree, from 1 (the root) to below 2^46; the same for all names of a file,
        as long as the head is open, and across seals.
    mode: with the file type. Times are nanoseconds since 1970, 64 bits with sign.
    size: bytes of a file, length of a symlink's target, 0 for the rest.
    rdev: as os.makedev() makes it.
    blocks: of 512 bytes, what the file has data for.
    """

    @property
    def number(self) -> int: ...
    @property
    def mode(self) -> int: ...
    @property
    def nlink(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def rdev(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def atime_ns(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...
    @property
    def ctime_ns(self) -> int: ...
    @property
    def xattrs(self) -> Mapping[bytes, bytes]: ...


class DirectoryEntry(NamedTuple):
    """One name in a directory. `cookie` continues the listing behind it."""

    name: bytes
    attributes: Attributes
    cookie: int


@dataclass(frozen=True, slots=True)
class FileSystemStatus:
    """Bytes of the journal's disk, within its budget; how many inodes were made."""

    total: int
    available: int
    files: int


class Tree(Protocol):
    """A tree archive of a head, as an inode table. Permissions are not checked: the kernel does.

    Names are bytes of 1 to 255, without `/`, not `.` or `..` (EINVAL, ENAMETOOLONG). Every method
    raises ESTALE for a number that no inode has (any more), and ENOTDIR for a parent that is none.
    Times of inodes and their directories change as POSIX has it; `read` leaves atime alone.
    """

    root: int

    def at_once(self, operation: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """The result of `operation`, a method of this tree, if it needs not wait.

        Raises WouldWait else, before anything is changed.
        """

    # Looking

    def at_hand(self, number: int) -> Attributes:
        """The inode if it is in memory, without a lock: raises WouldWait else."""

    def find(self, parent: int, name: bytes) -> Attributes | None:
        """The inode of this name, if there is one; not of `.` or `..`."""

    def getattr(self, number: int) -> Attributes: ...

    def lookup(self, parent: int, name: bytes) -> Attributes:
        """The inode of this name, `..` too. Raises ENOENT."""

    def iterate(self, directory: int, after: int = 0) -> Iterator[DirectoryEntry]:
        """The names in a directory but `.` and `..`, behind the entry of cookie `after`.

        Names that are made or removed meanwhile may or may not be there; no other comes twice or
        is left out. Cookies are below 2^63, greater than 0, and in no order of their own.
        Close it when leaving early. It may wait at every step: call it in a thread, or take
        `listing` with `at_once`.
        """

    def listing(self, directory: int, after: int = 0, count: int = 128) -> list[DirectoryEntry]:
        """At most `count` of them; none when there are no more."""

    def parent(self, directory: int) -> int:
        """The number of `..`; of the root its own."""

    def readlink(self, number: int) -> bytes: ...

    # Making and removing names. New inodes take uid and gid as given, or the gid of a parent with
    # the setgid bit; `mode` comes without the file type and with umask applied. A parent's default
    # ACL goes to what is made in it.

    def create(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, *, holds: int = 0
    ) -> Attributes:
        """A new, empty regular file, held so many times. Raises EEXIST."""

    def create_unlinked(self, parent: int, mode: int, uid: int, gid: int) -> Attributes:
        """A regular file without a name (O_TMPFILE), held once; `link` may give it one."""

    def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Attributes: ...

    def mknod(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0
    ) -> Attributes:
        """A device, fifo, socket or regular file: `mode` with the file type."""

    def symlink(
        self, parent: int, name: bytes, target: bytes, uid: int, gid: int
    ) -> Attributes: ...

    def link(self, number: int, parent: int, name: bytes) -> Attributes:
        """Another name. Raises EPERM (a directory), EEXIST."""

    def unlink(self, parent: int, name: bytes) -> None:
        """Raises EISDIR. The inode stays while it has other names or is held."""

    def rmdir(self, parent: int, name: bytes) -> None:
        """Raises ENOTDIR, ENOTEMPTY."""

    def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int = 0,
        *,
        uid: int = 0,
        gid: int = 0,
    ) -> None:
        """`uid` and `gid` are a whiteout's.

        Raises EINVAL (into itself, unknown flags), EEXIST, ENOTEMPTY, EISDIR, ENOTDIR.
        """

    # Attributes

    def setattr(
        self,
        number: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
    ) -> Attributes:
        """Change what is given; `mode` may come with or without the file type.

        A new size is truncate(). ctime becomes now unless it is given. Clearing setuid and setgid
        is the caller's: the kernel sends the new mode.
        """

    def getxattr(self, number: int, name: bytes) -> bytes:
        """Raises ENODATA. ACLs are `system.posix_acl_access` and `_default`."""

    def listxattr(self, number: int) -> list[bytes]: ...

    def setxattr(self, number: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """`flags`: os.XATTR_CREATE (EEXIST), os.XATTR_REPLACE (ENODATA).

        An access ACL sets the mode's permissions, too. Raises E2BIG, ERANGE, EOPNOTSUPP.
        """

    def removexattr(self, number: int, name: bytes) -> None: ...

    # Content

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Up to `size` bytes, fewer only at the end. Raises EISDIR, EINVAL."""

    def write(self, number: int, offset: int, data: Buffer) -> int:
        """All of `data`; its length. Raises EFBIG, ENOSPC. Waits while the budget is used up."""

    def room(self) -> int:
        """How many bytes `complete` may bring soon; 0 while writers have to wait for something."""

    def complete(
        self,
        number: int,
        data: Buffer,
        mode: int,
        uid: int,
        gid: int,
        atime_ns: int,
        mtime_ns: int,
        ctime_ns: int,
        *,
        releases: bool = False,
    ) -> None:
        """The content and attributes of a file that was just made, and that nobody looked at since.

        `data` has at most `room` bytes; with `releases` the file is released as well. It was
        acknowledged before: nothing waits for room, which `room` promised, and if it fails
        all the same, the head has failed. Raises StoreError, OSError.
        """

    def append(self, number: int, data: Buffer) -> int:
        """The same at the end as it is now; the offset it went to (O_APPEND)."""

    def fallocate(self, number: int, offset: int, length: int, mode: int = 0) -> None:
        """FALLOC_*; 0 only grows the file. Raises EOPNOTSUPP."""

    def seek(self, number: int, offset: int, whence: int) -> int:
        """os.SEEK_DATA or os.SEEK_HOLE. Raises ENXIO."""

    # Being open

    def hold(self, number: int) -> None:
        """The inode is open, or known to the kernel: keep it when its last name goes."""

    def release(self, number: int) -> None:
        """Once for each `hold`. Without names and holders an inode is gone."""

    def sync(self, number: int | None = None, *, data_only: bool = False) -> None:
        """fsync() of one inode or all: what was done to it before is durable. Many share one."""

    def statfs(self) -> FileSystemStatus: ...


class Image(Protocol):
    """An image of a head, a disk. What is never written reads as the snapshot below, or zeros.

    Ranges must lie inside (EINVAL; ENOSPC for a write past the end). Two requests at once on the
    same bytes leave one or the other, sector by sector of 512 bytes. Zeros cost no room.
    `peek`, `prefetch` and `is_zero` are those of an IndexedStream, so a Device may read from it.
    """

    size: int

    def read(self, offset: int, size: int) -> bytes: ...

    def peek(self, offset: int, size: int) -> Buffer | None:
        """The same if it needs not wait, else None."""

    def prefetch(self, offset: int) -> None:
        """Start decoding the base's chunk at `offset`; a hint."""

    def is_zero(self, position: int) -> bool:
        """Whether the 4 MiB at chunk number `position` are known to be zeros."""

    def extents(self, offset: int, size: int) -> Iterator[tuple[int, int, bool]]:
        """`(offset, length, is_zero)`, neighbours of one kind merged, without gaps."""

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None: ...

    def write_at_once(self, offset: int, data: Buffer) -> None:
        """Write without waiting; past the end the image grows.

        Raises WouldWait: nothing is written then. OSError(EFBIG).
        """

    def zero(self, offset: int, size: int, *, fua: bool = False) -> None: ...

    def trim(self, offset: int, size: int, *, fua: bool = False) -> None:
        """The range reads as zeros afterwards."""

    def flush(self) -> None:
        """All writes that returned before are durable, whoever's they were (multi-conn)."""

    def grow(self, size: int) -> None:
        """Make it larger, durably. Raises EINVAL when it is smaller."""


@dataclass(frozen=True, slots=True)
class HeadInfo:
    """What `head list` shows.

    base: the snapshot it was made from; None for nothing.
    dirty_bytes: of the journal on the local disk, and what was moved from there to the datastore; 0
        means that there is nothing to seal. moved_bytes: the latter alone.
    created, changed: seconds since 1970; changed: the last commit.
    holder: `process 123 on host`, None when nobody has it open.
    label: of a clone; empty for the group's head.
    """

    namespace: Namespace
    group: BackupGroup
    repository: str
    base: Snapshot | None
    archives: tuple[str, ...]
    dirty_bytes: int
    moved_bytes: int
    created: float
    changed: float
    holder: str | None
    encrypted: bool
    label: str = ""


class Head(Protocol):
    """An open head of one group; the only one of it anywhere. For use in a `with`."""

    namespace: Namespace
    group: BackupGroup

    @property
    def base(self) -> Snapshot | None:
        """The snapshot it stands on now; None: on nothing."""

    @property
    def archives(self) -> list[str]:
        """`root.pxar`, `drive-scsi0.img`, `qemu-server.conf`, …: what sealing it would make."""

    @property
    def dirty_bytes(self) -> int:
        """As `HeadInfo` has it."""

    def tree(self, name: str) -> Tree:
        """The same object at every call. Raises NotFound."""

    def create_tree(self, name: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Tree:
        """An empty tree archive, `NAME.pxar`, and its root's facts. Raises AlreadyExists."""

    def image(self, name: str) -> Image: ...

    def create_image(self, name: str, size: int) -> Image:
        """An image archive of zeros, `NAME.img`. Raises AlreadyExists."""

    def read_blob(self, name: str) -> bytes: ...

    def write_blob(self, name: str, content: bytes) -> None:
        """Make or replace a blob, `NAME.conf`, durably."""

    def remove(self, name: str) -> None:
        """Leave an archive out of the next snapshot, durably. Raises NotFound."""

    def sync(self) -> None:
        """All archives."""

    def seal(self, *, strict: bool = False, progress: Progress = SILENT) -> Snapshot:
        """Make the state of this moment the group's next snapshot, verified, and stand on it.

        With nothing changed: no new snapshot, the base is returned. A head whose base is no longer
        the group's newest seals all the same, later than the newest, with a WARNING that names
        both; with `strict` that raises AlreadyExists.
        """

    def close(self) -> None:
        """Make all durable and let another process have it."""

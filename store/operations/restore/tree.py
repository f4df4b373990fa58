"""Building a tree under one directory, so that nothing can ever land outside of it.

Every step is relative to the descriptor of the directory it happens in, directories are opened
without following links, and each name was checked by the decoder (no `/`, no `..`). So neither an
archive with a symlink where later entries expect a directory, nor someone who swaps directories
while we write, can lead us elsewhere. Until a directory is complete only its restorer may enter it
(mode 0700); then it gets its own metadata.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from store import native
from store.errors import AlreadyExists, FormatError, StoreError
from store.format.pxar.acl import DEFAULT_XATTR
from store.format.pxar.entries import Entry, EntryKind
from store.operations.directories import OPEN_DIRECTORIES, Inode, inode_of_file, open_parent
from store.operations.restore.attributes import Attributes
from store.operations.restore.background import BackgroundFiller
from store.operations.restore.problems import Warnings, show, target_error
from store.operations.restore.writing import HOLE_SIZE, write_sparse

LOST_AND_FOUND = b"lost+found"
LARGE_FILE = 256 << 10
"""From this size on a file is filled in the background: less would cost more to hand over."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NODE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DEVICES = (EntryKind.CHAR_DEVICE, EntryKind.BLOCK_DEVICE)
_NODE_TYPES = {
    EntryKind.SYMLINK: stat.S_IFLNK,
    EntryKind.CHAR_DEVICE: stat.S_IFCHR,
    EntryKind.BLOCK_DEVICE: stat.S_IFBLK,
    EntryKind.FIFO: stat.S_IFIFO,
    EntryKind.SOCKET: stat.S_IFSOCK,
}
Made = TypeVar("Made")
MakeFiles = Callable[
    [memoryview, memoryview | None, int, int, tuple[int, int, int, int]], tuple[int, int, int]
]

small_files: MakeFiles | None = None  # without the C module every file is made by itself
if native.is_usable("store.operations._inode"):
    from store.operations import _inode

    small_files = _inode.small_files


@dataclass(slots=True)
class _Directory:
    """A directory on the way to where we are, made when something below it is restored.

    `inode` is None before that. `file` is -1 then, and while many others are open below it.
    """

    name: bytes
    entry: Entry
    file: int = -1
    inode: Inode | None = None
    inherits_acl: bool = False

    def close(self) -> None:
        """Give the descriptor back."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


class _NewFile(NamedTuple):
    """An empty file just created: its descriptor, its directory's, and what it is to become."""

    file: int
    parent: int
    name: bytes
    entry: Entry


class TreeWriter:
    """Creates inodes in the order of the archive: enter a directory, its children, leave it.

    root: descriptor of the target directory; stays the caller's. overwrite: replace existing files
    and merge into existing directories. Without it only empty directories are
        taken over, and anything else that exists is AlreadyExists.

    Methods raise SourceError, OutOfSpace or AlreadyExists, naming the path in the archive.
    """

    def __init__(
        self, root: int, attributes: Attributes, warnings: Warnings, *, overwrite: bool = False
    ) -> None:
        self._root = root
        self._attributes = attributes
        self._warnings = warnings
        self._overwrite = overwrite
        self._open: list[_Directory] = []
        self._background = BackgroundFiller()
        self.entries = 0
        self.bytes = 0

    def close(self) -> None:
        """Let go of all descriptors, whether the tree is complete or not."""
        self._background.close()
        for directory in self._open[1:]:
            directory.close()
        self._open.clear()

    def path(self, name: bytes = b"") -> bytes:
        """Where we are in the archive, and `name` below it."""
        parts = [directory.name for directory in self._open[1:]]
        return b"/".join([*parts, name] if name else parts) or b"/"

    def begin(self, entry: Entry) -> None:
        """Start with the archive's root, which becomes the target directory itself."""
        inode, inherits = inode_of_file(self._root), self._has_default_acl(self._root)
        self._open.append(_Directory(b"", entry, self._root, inode, inherits))

    def finish(self, *, apply: bool) -> None:
        """End with the root; `apply` its metadata to the target directory."""
        self._background.finish()
        if apply:
            self._apply(self._root, self._open[0].entry, b".")
            self.entries += 1
        self.close()

    def enter(self, entry: Entry, *, create: bool) -> None:
        """Go into a directory.

        Without `create` it comes into being only when something below it does.
        """
        self._open.append(_Directory(entry.name, entry))
        if create:
            self._here()

    def leave(self) -> None:
        """Give the directory its metadata, now that nothing more comes into it."""
        directory = self._open[-1]
        if directory.inode is not None:
            try:
                self._reopen(self._open[-2], directory.file)
                self._apply(directory.file, directory.entry, self.path())
            finally:
                directory.close()
            self.entries += 1
        self._open.pop()

    def _reopen(self, directory: _Directory, child: int) -> None:
        """Get the descriptor of a directory back, from one in it, while we may still look there."""
        if directory.file < 0 and directory.inode is not None:
            try:
                directory.file = open_parent(child, directory.inode)
            except OSError as error:
                raise target_error(error, show(self.path())) from error

    def file(self, entry: Entry, content: Iterable[memoryview], name: bytes = b"") -> None:
        """Create a regular file.

        `name`: if it is not the entry's own (a hard link that became a copy).
        """
        name = name or entry.name
        parent = self._here()
        with _naming(lambda: self.path(name)):
            new = _NewFile(self._create(parent, name, self._new_file), parent, name, entry)
            if self._open[-1].inherits_acl:
                self._attributes.drop_inherited_acl(new.file, name)
            if entry.size < LARGE_FILE:
                self._fill(new, content)
            else:
                self._fill_later(new, content)
        self._background.check()
        self.entries += 1
        self.bytes += entry.size

    def small_files(self, items: memoryview, payload: memoryview | None, start: int) -> int:
        """Create the ordinary small files that come next, many at a time.

        Args:
            items: of the archive, from the next entry on.
            payload: of a split archive's payload stream, from offset `start`.

        Returns the bytes of items that were used. 0: `file` and the others know what to do.
        """
        if small_files is None or self._open[-1].inherits_acl:
            return 0
        target = (self._here(), *self._attributes.ids, self._attributes.foreign_owners)
        files, length, size = small_files(items, payload, start, HOLE_SIZE, target)
        self._background.check()
        self.entries += files
        self.bytes += size
        return length

    def _fill_later(self, new: _NewFile, content: Iterable[memoryview]) -> None:
        path = self.path(new.name)
        try:
            new = new._replace(parent=os.dup(new.parent))  # by then we may have left it
        except OSError:
            self._remove(new)
            os.close(new.file)
            raise

        def fill(pieces: Iterable[memoryview]) -> None:
            try:
                with _naming(lambda: path):
                    self._fill(new, pieces)
            finally:
                os.close(new.parent)

        self._background.fill(fill, content)

    def _fill(self, new: _NewFile, content: Iterable[memoryview]) -> None:
        """Give the empty file its content and metadata, and close it."""
        metadata = new.entry.metadata
        try:
            if metadata.flags:
                self._attributes.before_content(new.file, metadata, new.name)
            size = write_sparse(new.file, content)
            if size != new.entry.size:
                raise FormatError(f"{size} bytes of content, not {new.entry.size}")
            self._attributes.apply(new.file, metadata, new.name)
        except BaseException:
            self._remove(new)
            raise
        finally:
            os.close(new.file)

    @staticmethod
    def _remove(new: _NewFile) -> None:
        """Leave no half file under a whole one's name; another one of that name stays."""
        with suppress(FileNotFoundError):
            found = os.stat(new.name, dir_fd=new.parent, follow_symlinks=False)
            if not os.path.samestat(found, os.fstat(new.file)):
                return
            try:
                os.unlink(new.name, dir_fd=new.parent)
            except PermissionError:  # filled in the background, and its directory has its mode
                os.chmod(new.parent, 0o700)
                os.unlink(new.name, dir_fd=new.parent)

    def node(self, entry: Entry) -> bool:
        """Create a symlink, device, fifo or socket.

        False, with a warning, for a device only root may create.
        """
        parent = self._here()
        path = self.path(entry.name)
        try:
            self._create(
                parent, entry.name, lambda name, directory: self._make(entry, name, directory)
            )
            file = os.open(entry.name, _NODE, dir_fd=parent)
            try:
                found = os.fstat(file)
                if stat.S_IFMT(found.st_mode) != _NODE_TYPES[entry.kind] or found.st_nlink != 1:
                    raise FileExistsError(errno.EEXIST, "replaced")
                # Through the descriptor: someone may have put the name on another inode since.
                self._attributes.apply_to_node(f"/proc/self/fd/{file}", entry.metadata, path)
            finally:
                os.close(file)
        except OSError as error:
            if error.errno != errno.EPERM or entry.kind not in _DEVICES:
                raise target_error(error, show(path)) from error
            self._warnings.once(
                "devices", f"{show(path)}: devices not restored (not root), here and below"
            )
            return False
        self.entries += 1
        return True

    def link(self, name: bytes, target: bytes) -> bool:
        """Make `name` another name of the restored file `target` (path from the root).

        Returns False where that is not possible here: no such regular file, or the file system has
        no hard links.
        """
        self._background.finish()  # or a second name would keep what is removed if it fails
        parent = self._here()
        *directories, last = target.split(b"/")
        try:
            source = self._walk(directories)
        except OSError:
            return False
        try:
            if not stat.S_ISREG(os.stat(last, dir_fd=source, follow_symlinks=False).st_mode):
                return False
            self._create(
                parent,
                name,
                lambda new, directory: os.link(
                    last, new, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False
                ),
            )
        except FileExistsError as error:
            raise target_error(error, show(self.path(name))) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise target_error(error, show(self.path(name))) from error
            return False
        finally:
            os.close(source)
        self.entries += 1
        return True

    def _here(self) -> int:
        """Descriptor of the directory we are in, created now if it is not there yet."""
        if self._open[-1].inode is None:
            missing = next(i for i, directory in enumerate(self._open) if directory.inode is None)
            for depth in range(missing, len(self._open)):
                self._make_directory(self._open[depth - 1], self._open[depth], depth)
                if depth > OPEN_DIRECTORIES:
                    self._open[depth - OPEN_DIRECTORIES].close()
        return self._open[-1].file

    def _make_directory(self, parent: _Directory, directory: _Directory, depth: int) -> None:
        name = directory.name
        try:
            existed = False
            try:
                os.mkdir(name, 0o700, dir_fd=parent.file)
            except FileExistsError:
                existed = self._make_room_for_directory(name, parent.file)
            file = os.open(name, _DIRECTORY, dir_fd=parent.file)
            try:
                if existed:
                    self._check_adopted(file, depth)
                if parent.inherits_acl and not existed:
                    self._drop_default_acl(file)
                directory.inherits_acl = existed and self._has_default_acl(file)
                if directory.entry.metadata.flags:
                    self._attributes.before_content(file, directory.entry.metadata, name)
                directory.inode = inode_of_file(file)
            except BaseException:
                os.close(file)
                raise
            directory.file = file
        except OSError as error:
            path = b"/".join(directory.name for directory in self._open[1 : depth + 1])
            raise target_error(error, show(path)) from error

    def _make_room_for_directory(self, name: bytes, parent: int) -> bool:
        """Something has this name already. True: a directory, which may do.

        False: replaced by a new one.
        """
        if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return True
        if not self._overwrite:
            raise FileExistsError(errno.EEXIST, "exists already")
        os.unlink(name, dir_fd=parent)
        os.mkdir(name, 0o700, dir_fd=parent)
        return False

    def _check_adopted(self, file: int, depth: int) -> None:
        if not self._overwrite and os.listdir(file):
            path = b"/".join(directory.name for directory in self._open[1 : depth + 1])
            raise AlreadyExists(f"{show(path)}: a directory of this name exists and is not empty")

    def _create(self, parent: int, name: bytes, make: Callable[[bytes, int], Made]) -> Made:
        """Call make(name, parent).

        When the name is taken and overwriting is asked, once more without what was there.
        """
        try:
            return make(name, parent)
        except FileExistsError:
            if not self._overwrite or stat.S_ISDIR(
                os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
            ):
                raise
        os.unlink(name, dir_fd=parent)
        return make(name, parent)

    @staticmethod
    def _new_file(name: bytes, parent: int) -> int:
        return os.open(name, _NEW_FILE, 0o600, dir_fd=parent)

    @staticmethod
    def _make(entry: Entry, name: bytes, parent: int) -> None:
        if entry.kind is EntryKind.SYMLINK:
            os.symlink(entry.target, name, dir_fd=parent)
        else:
            device = os.makedev(*entry.device)
            os.mknod(name, _NODE_TYPES[entry.kind] | 0o600, device, dir_fd=parent)

    def _walk(self, directories: list[bytes]) -> int:
        """Open a directory by its path from the root, through real directories only.

        Raises OSError.
        """
        file = os.dup(self._root)
        for name in directories:
            try:
                below = os.open(name, _DIRECTORY, dir_fd=file)
            finally:
                os.close(file)
            file = below
        return file

    def _apply(self, file: int, entry: Entry, path: bytes) -> None:
        try:
            self._attributes.apply(file, entry.metadata, path)
        except OSError as error:
            raise target_error(error, show(path)) from error

    @staticmethod
    def _has_default_acl(file: int) -> bool:
        with suppress(OSError):
            return bool(os.getxattr(file, os.fsdecode(DEFAULT_XATTR)))
        return False

    def _drop_default_acl(self, file: int) -> None:
        """A new directory inherits a default ACL, and with it an access ACL."""
        with suppress(OSError):
            os.removexattr(file, os.fsdecode(DEFAULT_XATTR))
        self._attributes.drop_inherited_acl(file, b"")


@contextmanager
def _naming(path: Callable[[], bytes]) -> Iterator[None]:
    """Have every error name the path in the archive."""
    try:
        yield
    except OSError as error:
        raise target_error(error, show(path())) from error
    except StoreError as error:
        error.args = (f"{show(path())}: {error}",)
        raise

"""Walks the source tree and feeds a tree archive: each inode once, names in byte order.

Everything is opened relative to its directory's descriptor and no symlink is followed, so a tree
that is renamed or relinked meanwhile can't lead the walk elsewhere. What vanishes or can't be read
is named and left out; the rest goes on.
"""

import errno
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from store.errors import FormatError, SourceError
from store.format.pxar.entries import encode_stat
from store.format.pxar.items import MAX_TARGET_LENGTH
from store.format.pxar.patterns import Match, PatternList
from store.operations.backup.archive import TreeArchive
from store.operations.backup.content import FileCopier
from store.operations.backup.inode import FileSystem, FileSystems, encode_plain
from store.operations.backup.links import LinkTable
from store.operations.backup.listing import DIRECTORY, FILE, KIND_SIZE, OTHER, has_file, read_names
from store.operations.backup.opening import is_within, open_child, open_directory
from store.operations.backup.previous import NOTHING, OldDirectory, PreviousTree
from store.operations.directories import OPEN_DIRECTORIES, Inode, open_parent
from store.progress import Progress

EXCLUDE_FILE = b".pxarexclude"
EXCLUDE_CLI_FILE = b".pxarexclude-cli"
MAX_EXCLUDE_FILE = 16 << 20
TICK_NS = 20_000_000
"""Two writes this far apart get different times: twice the slowest kernel clock tick."""

_VANISHED = frozenset((errno.ENOENT, errno.ESTALE))
_OUT_OF_MEANS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))


@dataclass
class WalkReport:
    """What the walk met: bytes of regular files, and how many names it had to leave out."""

    source_bytes: int = 0
    unreadable: int = 0


@dataclass(slots=True)
class _Directory:
    """A directory the walk is in. `names` are those to come, the next one last."""

    file: int
    inode: Inode
    name: bytes
    names: list[bytes]
    previous: OldDirectory
    patterns: int = 0
    last: bytes = b""

    def close(self) -> None:
        """Give the descriptor back; `open_parent` gets another one when it is needed again."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


@dataclass
class TreeWalker:
    """One walk over one tree.

    `patterns` holds the command line's; `.pxarexclude` files come and go on it. `devices` are the
    file systems to enter beside the root's. `forbidden` are the datastore's own directories.
    """

    source: str
    archive: TreeArchive
    patterns: PatternList
    previous: PreviousTree | None
    devices: set[int]
    all_file_systems: bool
    on_warning: Callable[[str], None]
    progress: Progress
    cli_patterns: bytes | None = None
    forbidden: frozenset[Inode] = frozenset()
    report: WalkReport = field(default_factory=WalkReport)

    def __post_init__(self) -> None:
        self._file_systems = FileSystems()
        self._links = LinkTable()
        self._copier = FileCopier(self._where, self._warn)
        self._stack: list[_Directory] = []
        self._path = b""  # of the innermost directory, slash at its end; empty for the root
        self._name = b""  # of the child being archived

    def walk(self) -> WalkReport:
        """Archive the whole tree.

        Raises:
            SourceError: the source is no directory, is the datastore, or lies on a virtual file
                system; a file in it fails while it is read.
        """
        try:
            self._begin(open_directory(self.source))
            while self._stack:
                self._step()
        finally:
            self._close()
        self.archive.finish()
        return self.report

    def _begin(self, file: int) -> None:
        try:
            info = os.fstat(file)
            system = self._file_systems.of(info.st_dev)
            if system.is_virtual:
                raise SourceError(f"{self.source}: is a virtual file system ({system.type})")
            if is_within(self.source, self.forbidden):
                raise SourceError(f"{self.source}: is the datastore that the backup goes to")
            self.devices.add(info.st_dev)
            self.archive.begin(self._metadata(system, file, info))
        except BaseException:
            os.close(file)
            raise
        self._push(file, info, b"", self.previous.root() if self.previous else NOTHING)

    def _step(self) -> None:
        """Archive the next child of the innermost directory, or leave it."""
        directory = self._stack[-1]
        if not directory.names:
            self._leave()
            return
        if self._unchanged(directory):
            return
        item = directory.names.pop()
        name = item[:-KIND_SIZE]
        if name == directory.last:
            return
        directory.last = self._name = name
        try:
            self._child(directory, name, item[-1])
        except OSError as error:
            self._leave_out(error)

    def _unchanged(self, directory: _Directory) -> bool:
        """Archive the files to come that are as the previous archive has them, many at once.

        False where the next one is not among them, or can't be told without a closer look.
        """
        names, device = directory.names, directory.inode[0]
        question = self._file_systems.of(device).question(directory.file, device)
        if self.previous is None or self.patterns or names[-1][-1] != FILE or question is None:
            return False
        if names[-1][:-KIND_SIZE] <= directory.last:
            return False
        run = directory.previous.unchanged(names, question)
        count = self.archive.unchanged(names, run) if run else 0
        if run is None or not count:
            return False
        directory.previous.pass_over(run, count)
        directory.last = self._name = names[-count][:-KIND_SIZE]
        del names[-count:]
        size = sum(run.sizes[:count])
        self.report.source_bytes += size
        self.progress.advance(size)
        return True

    def _child(self, directory: _Directory, name: bytes, kind: int) -> None:
        """Archive one name, by the kind it was listed as; if it is another by now, by that."""
        if self.patterns and self._is_excluded(name, kind):
            return
        if not self._archive(directory, name, kind):
            kind = _kind_now(name, directory.file)
            if not self._archive(directory, name, kind):
                raise FileNotFoundError(errno.ENOENT, "changes its kind again and again")

    def _is_excluded(self, name: bytes, kind: int) -> bool:
        path = b"/" + self._path + name
        return self.patterns.matches(path, kind == DIRECTORY) is Match.EXCLUDE

    def _archive(self, directory: _Directory, name: bytes, kind: int) -> bool:
        """False when it is not of this kind (any more)."""
        if kind == FILE:
            return self._file(directory, name)
        if kind == DIRECTORY:
            return self._enter(directory, name)
        return self._other(directory, name)

    def _file(self, directory: _Directory, name: bytes) -> bool:
        file = open_child(name, directory.file)
        if file is None:
            return False
        try:
            info = os.fstat(file)
            if not stat.S_ISREG(info.st_mode):
                return False
            if info.st_nlink == 1 or not self._link(name, info):
                self._content(directory, name, file, _settled(file, info))
        finally:
            os.close(file)
        return True

    def _content(self, directory: _Directory, name: bytes, file: int, info: os.stat_result) -> None:
        metadata = self._metadata(self._file_systems.of(info.st_dev), file, info)
        old, copy = directory.previous.find(name), partial(self._copier.copy, file, info)
        offset = self.archive.file(name, metadata, info, old, copy)
        if info.st_nlink > 1:
            self._links.add(info, offset, self._path + name)
        self.report.source_bytes += info.st_size
        self.progress.advance(info.st_size)

    def _link(self, name: bytes, info: os.stat_result) -> bool:
        """Write a later name of an inode that is in the archive."""
        known = self._links.find(info)
        if known is None or len(known[1]) > MAX_TARGET_LENGTH:
            return False
        self.archive.hardlink(name, *known)
        return True

    def _other(self, directory: _Directory, name: bytes) -> bool:
        info = os.lstat(name, dir_fd=directory.file)
        if stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode):
            return False
        if stat.S_ISLNK(info.st_mode):
            try:
                target = os.readlink(name, dir_fd=directory.file)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return False
            self.archive.symlink(name, encode_plain(info), target)
        else:
            self.archive.special(name, encode_plain(info), info)
        return True

    def _enter(self, directory: _Directory, name: bytes) -> bool:
        file = open_child(name, directory.file, os.O_DIRECTORY)
        if file is None:
            return False
        try:
            info = os.fstat(file)
            system = self._file_systems.of(info.st_dev)
            self.archive.enter_directory(name, self._metadata(system, file, info))
        except BaseException:
            os.close(file)
            raise
        if self._is_entered(system, info):
            old = directory.previous.find(name)
            self._push(file, info, name, self.previous.directory(old) if self.previous else NOTHING)
        else:
            os.close(file)
            self.archive.leave_directory()
        return True

    def _is_entered(self, system: FileSystem, info: os.stat_result) -> bool:
        if system.is_virtual:
            return False
        if (info.st_dev, info.st_ino) in self.forbidden:
            self._warn("is the datastore that the backup goes to, its contents are left out")
            return False
        if info.st_dev in self.devices or self.all_file_systems:
            return True
        self._warn("another file system is mounted here, its contents are left out")
        return False

    def _push(self, file: int, info: os.stat_result, name: bytes, previous: OldDirectory) -> None:
        inode = info.st_dev, info.st_ino
        self._stack.append(directory := _Directory(file, inode, name, [], previous))
        if name:
            self._path += name + b"/"
        if len(self._stack) > OPEN_DIRECTORIES:
            self._stack[-OPEN_DIRECTORIES - 1].close()
        names, failed = read_names(file)
        if failed and not name:
            raise SourceError(f"{self.source}: {failed.strerror}") from failed
        if failed:
            self.report.unreadable += 1
            self._name = b""
            self._warn(f"contents are left out: {failed.strerror}")
        if has_file(names, EXCLUDE_FILE):
            directory.patterns = self._read_exclude_file(file)
        if not name and self.cli_patterns is not None:
            names = [item for item in names if item[:-KIND_SIZE] != EXCLUDE_CLI_FILE]
        directory.names = names

    def _read_exclude_file(self, file: int) -> int:
        """Add the directory's own patterns; returns how many, to take them off again."""
        self._name = EXCLUDE_FILE
        try:
            content = _read_exclude_file(file)
        except OSError as error:
            self._warn(f"not honoured: {error.strerror}")
            return 0
        added, bad = self.patterns.push_exclude_file(content, self._path[:-1])
        for line in bad:
            self._warn(f"bad pattern {os.fsdecode(line)!r} ignored")
        return added

    def _leave(self) -> None:
        """Go back to the directory around the innermost one, whose names are used up."""
        directory, self._name = self._stack.pop(), b""
        try:
            if self._stack and self._stack[-1].file < 0:
                self._stack[-1].file = open_parent(directory.file, self._stack[-1].inode)
        except OSError as error:
            raise SourceError(f"{self._where()}: was moved while it was read") from error
        finally:
            directory.close()
        self.patterns.pop(directory.patterns)
        if self._stack:
            self._path = self._path[: -len(directory.name) - 1]
            self.archive.leave_directory()
        elif self.cli_patterns is not None:
            self._write_cli_patterns(self.cli_patterns)

    def _write_cli_patterns(self, text: bytes) -> None:
        metadata = encode_stat(stat.S_IFREG | 0o600, 0, os.getuid(), os.getgid(), 0, 0)
        self.archive.generated(EXCLUDE_CLI_FILE, metadata, text)

    def _metadata(self, system: FileSystem, file: int, info: os.stat_result) -> bytes:
        try:
            return system.encode(file, info)
        except (OSError, FormatError) as error:
            self._warn(f"extended attributes are left out: {error}")
            return encode_plain(info)

    def _leave_out(self, error: OSError) -> None:
        if error.errno in _OUT_OF_MEANS:
            raise SourceError(f"{self._where()}: {error.strerror}") from error
        if error.errno in _VANISHED:
            self._warn("vanished while its directory was read")
        else:
            self.report.unreadable += 1
            self._warn(f"left out: {error.strerror}")

    def _where(self) -> str:
        path = os.fsdecode(self._path + self._name).rstrip("/")
        return os.path.join(self.source, path) if path else self.source

    def _warn(self, text: str) -> None:
        self.on_warning(f"{self._where()}: {text}")

    def _close(self) -> None:
        for directory in self._stack:
            directory.close()
        self._links.close()


def _kind_now(name: bytes, directory: int) -> int:
    mode = os.lstat(name, dir_fd=directory).st_mode
    if stat.S_ISREG(mode):
        return FILE
    return DIRECTORY if stat.S_ISDIR(mode) else OTHER


def _settled(file: int, info: os.stat_result) -> os.stat_result:
    """The facts of a file, taken when what is written to it from now on gives it another time.

    Metadata mode takes a file of the same time and size for unchanged. So one that was written to
    within this tick of the kernel's clock is given the time for a last write.
    """
    age = time.time_ns() - info.st_mtime_ns
    if not 0 <= age < TICK_NS:
        return info
    time.sleep((TICK_NS - age) / 1e9)
    return os.fstat(file)


def _read_exclude_file(directory: int) -> bytes:
    file = open_child(EXCLUDE_FILE, directory)
    if file is None:
        return b""
    try:
        if os.fstat(file).st_size > MAX_EXCLUDE_FILE:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return os.read(file, MAX_EXCLUDE_FILE)
    finally:
        os.close(file)

"""A source that changes, or refuses to be read, while it is backed up."""

import errno
import fcntl
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from store.errors import SourceError
from store.format.pxar.entries import EntryKind
from store.operations.backup import ChangeDetectionMode, listing, walk
from tests.fakes.datastores import local_datastore
from tests.unit.store.operations.backup.conftest import MIB, Hook, Vault, noise

OnCall = Callable[[str, Hook], None]
NOBODY = 65534


def failing(wanted: object, code: int) -> Hook:
    """Fails on one name (or any, when None), calls through for the others."""

    def hook(original: Hook, name: Any, *arguments: Any, **options: Any) -> Any:
        if wanted is None or name == wanted:
            raise OSError(code, os.strerror(code))
        return original(name, *arguments, **options)

    return hook


def first(wanted: object, action: Callable[[], object]) -> Hook:
    """Does something before the first call for one name."""
    done = []

    def hook(original: Hook, name: Any, *arguments: Any, **options: Any) -> Any:
        if name == wanted and not done:
            done.append(name)
            action()
        return original(name, *arguments, **options)

    return hook


def test_a_file_vanishes(
    vault: Vault, source: Path, on_call: OnCall, mode: ChangeDetectionMode
) -> None:
    for name in "abc":
        (source / name).write_text(name)
    on_call("open", first(b"b", (source / "b").unlink))
    result = vault.backup(f"root.pxar:{source}", change_detection_mode=mode)
    assert vault.open(result.snapshot).contents == {"a": b"a", "c": b"c"}
    assert vault.warnings == [f"{source}/b: vanished while its directory was read"]
    assert (result.warnings, result.unreadable) == (1, 0)


def test_a_directory_vanishes(vault: Vault, source: Path, on_call: OnCall) -> None:
    (source / "b/c").mkdir(parents=True)
    (source / "d").mkdir()
    on_call("open", first(b"b", lambda: shutil.rmtree(source / "b")))
    assert vault.tree(source).names == ["d"]
    assert vault.warnings == [f"{source}/b: vanished while its directory was read"]


def test_a_file_shrinks(
    vault: Vault, source: Path, on_call: OnCall, mode: ChangeDetectionMode
) -> None:
    """It keeps its size: zeros follow, and the next file is where it should be."""
    for name, size in (("a", 9 * MIB), ("b", 5)):
        (source / name).write_bytes(noise(size, size))

    def shrink(original: Hook, file: int, buffers: Any) -> Any:
        if len(buffers[0]) == 4 * MIB and (source / "a").stat().st_size > 5 * MIB:
            count = original(file, buffers)
            os.truncate(source / "a", 5 * MIB)
            return count
        return original(file, buffers)

    on_call("readv", shrink)
    tree = vault.tree(source, mode)
    assert tree.read("a") == noise(9 * MIB, 9 * MIB)[: 5 * MIB] + bytes(4 * MIB)
    assert tree.read("b") == noise(5, 5)
    assert vault.warnings == [f"{source}/a: shrank by {4 * MIB} bytes while it was read"]


@pytest.mark.parametrize("grow", [True, False], ids=["grows", "is written to"])
def test_a_file_changes(
    vault: Vault, source: Path, on_call: OnCall, mode: ChangeDetectionMode, grow: bool
) -> None:
    path = source / "a"
    path.write_bytes(b"first")

    def change(original: Hook, *arguments: Any) -> Any:
        count = original(*arguments)
        path.write_bytes(b"first and more" if grow else b"later")
        return count

    on_call("readv", change)
    assert vault.tree(source, mode).read("a") == b"first"
    assert vault.warnings == [f"{source}/a: changed while it was read"]


def remake(path: Path, kind: str) -> None:
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    make: dict[str, Callable[[], object]] = {
        "file": lambda: path.write_bytes(b"now a file"),
        "directory": path.mkdir,
        "symlink": lambda: path.symlink_to("/etc/passwd"),
        "fifo": lambda: os.mkfifo(path),
        "socket": lambda: socket.socket(socket.AF_UNIX).bind(str(path)),
    }
    make[kind]()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("now", ["file", "directory", "symlink", "fifo", "socket"])
@pytest.mark.parametrize("before", ["file", "directory", "symlink", "fifo"])
def test_a_name_changes_its_kind(
    vault: Vault, source: Path, on_call: OnCall, mode: ChangeDetectionMode, before: str, now: str
) -> None:
    """It is archived as what it is by then; nothing is followed, nothing hangs."""
    path = source / "a"
    remake(path, before)
    on_call("open", first(b"a", lambda: remake(path, now)))
    on_call("lstat", first(b"a", lambda: remake(path, now)))
    tree = vault.tree(source, mode)
    assert tree["a"].kind is EntryKind[now.upper()]
    if now == "file":
        assert tree.read("a") == b"now a file"
    assert vault.warnings == []


def test_a_name_that_never_stops_changing(vault: Vault, source: Path, on_call: OnCall) -> None:
    path = source / "a"
    path.write_bytes(b"")

    def flip(original: Hook, name: Any, *arguments: Any, **options: Any) -> Any:
        if name == b"a":
            remake(path, "symlink")
        return original(name, *arguments, **options)

    def flop(original: Hook, name: Any, *arguments: Any, **options: Any) -> Any:
        if name == b"a":
            remake(path, "file")
        return original(name, *arguments, **options)

    on_call("open", flip)
    on_call("lstat", flop)
    assert vault.tree(source).names == []
    assert len(vault.warnings) == 1


def test_a_directory_is_moved_while_it_is_walked(
    vault: Vault, source: Path, on_call: OnCall
) -> None:
    """The walk goes on in the one it has opened, and cannot be led astray by the new one."""
    (source / "a").mkdir()
    for name in "xyz":
        (source / "a" / name).write_text(name)

    def move() -> None:
        (source / "a").rename(source.parent / "elsewhere")
        (source / "a").symlink_to("/etc")

    on_call("open", first(b"y", move))
    tree = vault.tree(source)
    assert tree.contents == {"a/x": b"x", "a/y": b"y", "a/z": b"z"}


def test_deep_directories_are_moved(
    vault: Vault, source: Path, on_call: OnCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only so many levels are kept open; the way back up is checked."""
    monkeypatch.setattr(walk, "OPEN_DIRECTORIES", 2)
    (source / "a/b/c/d").mkdir(parents=True)
    (source / "other").mkdir()
    (source / "a/b/c/d/file").write_bytes(b"")
    tree = vault.tree(source)
    assert tree.names == ["a", "a/b", "a/b/c", "a/b/c/d", "a/b/c/d/file", "other"]
    on_call("open", first(b"file", lambda: (source / "a/b/c").rename(source / "other/c")))
    with pytest.raises(SourceError, match="was moved while it was read"):
        vault.tree(source)
    assert (len(vault.snapshots), vault.leftovers) == (1, [])


def test_names_listed_twice(
    vault: Vault, source: Path, monkeypatch: pytest.MonkeyPatch, mode: ChangeDetectionMode
) -> None:
    for name in "ab":
        (source / name).write_text(name)

    def twice(file: int) -> tuple[list[bytes], OSError | None]:
        names, failed = read_names(file)
        return sorted(names * 2, reverse=True), failed

    read_names = listing.read_names
    monkeypatch.setattr(walk, "read_names", twice)
    assert vault.tree(source, mode).contents == {"a": b"a", "b": b"b"}


class Breaking:
    """A scandir that fails after its second name."""

    def __init__(self, entries: Any) -> None:
        self._entries = entries

    def __enter__(self) -> Iterator[Any]:
        return self._iterate()

    def __exit__(self, *_: object) -> None:
        self._entries.close()

    def _iterate(self) -> Iterator[Any]:
        yield from (next(self._entries), next(self._entries))
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_directory_that_fails_half_way(vault: Vault, source: Path, on_call: OnCall) -> None:
    """What was listed is kept, and the rest is missed."""
    (source / "d").mkdir()
    for name in "abc":
        (source / "d" / name).write_text(name)
    (source / "z").write_text("z")

    def scandir(original: Hook, place: int | str) -> Any:
        is_d = isinstance(place, int) and os.fstat(place).st_ino == (source / "d").stat().st_ino
        return Breaking(original(place)) if is_d else original(place)

    on_call("scandir", scandir)
    result = vault.backup(f"root.pxar:{source}")
    assert len(vault.open(result.snapshot).contents) == 3
    assert vault.warnings == [f"{source}/d: contents are left out: Input/output error"]
    assert result.unreadable == 1


def test_a_source_that_cannot_be_listed(vault: Vault, source: Path, on_call: OnCall) -> None:
    """An empty snapshot would look as if there was nothing to lose."""

    def scandir(original: Hook, place: int | str) -> Any:
        if isinstance(place, int) and os.fstat(place).st_ino == source.stat().st_ino:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(place)

    on_call("scandir", scandir)
    with pytest.raises(SourceError, match=f"{source}: Input/output error"):
        vault.tree(source)
    assert (vault.snapshots, vault.leftovers) == ([], [])


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ETIMEDOUT])
def test_a_file_that_cannot_be_opened(
    vault: Vault, source: Path, on_call: OnCall, mode: ChangeDetectionMode, code: int
) -> None:
    for name in "abc":
        (source / name).write_text(name)
    on_call("open", failing(b"b", code))
    result = vault.backup(f"root.pxar:{source}", change_detection_mode=mode)
    assert vault.open(result.snapshot).contents == {"a": b"a", "c": b"c"}
    assert vault.warnings == [f"{source}/b: left out: {os.strerror(code)}"]
    assert (result.warnings, result.unreadable) == (1, 1)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM])
def test_no_means_to_open_a_file(vault: Vault, source: Path, on_call: OnCall, code: int) -> None:
    """That is no fault of the file's: a backup without half the tree would be worse than none."""
    (source / "a").write_text("a")
    on_call("open", failing(b"a", code))
    with pytest.raises(SourceError, match=f"{source}/a: {os.strerror(code)}"):
        vault.tree(source)
    assert (vault.snapshots, vault.leftovers) == ([], [])


@pytest.mark.parametrize("at", [0, 1])
def test_a_file_that_cannot_be_read(
    vault: Vault, source: Path, on_call: OnCall, mode: ChangeDetectionMode, at: int
) -> None:
    """One clear error, and nothing is left; the next backup is none the worse."""
    (source / "d").mkdir()
    (source / "d/a").write_bytes(bytes(5 * MIB))
    calls: list[int] = []

    def fail(original: Hook, *arguments: Any) -> Any:
        calls.append(0)
        if len(calls) == at + 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(*arguments)

    on_call("readv", fail)
    with pytest.raises(SourceError) as caught:
        vault.tree(source, mode)
    assert str(caught.value) == f"{source}/d/a: Input/output error at byte {at * 4 * MIB}"
    assert (vault.snapshots, vault.leftovers) == ([], [])
    assert vault.tree(source, mode).read("d/a") == bytes(5 * MIB)


def test_a_file_removed_on_the_server(vault: Vault, source: Path, on_call: OnCall) -> None:
    """NFS says ESTALE: on opening it has vanished, on reading it has shrunk to nothing."""
    for name in "ab":
        (source / name).write_text(name)
    on_call("open", failing(b"a", errno.ESTALE))
    on_call("readv", failing(None, errno.ESTALE))
    assert vault.tree(source).contents == {"b": b"\0"}
    assert vault.warnings == [
        f"{source}/a: vanished while its directory was read",
        f"{source}/b: shrank by 1 bytes while it was read",
    ]


def test_a_lease_is_broken(vault: Vault, source: Path) -> None:
    """Opening without blocking fails as long as somebody (Samba) has a lease on the file."""
    path = source / "file"
    path.write_bytes(b"content")
    os.utime(path, ns=(0, 0))
    with path.open("r+b") as file:

        def release(*_: object) -> None:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)

        previous = signal.signal(signal.SIGIO, release)
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            assert vault.tree(source).read("file") == b"content"
        finally:
            signal.signal(signal.SIGIO, previous)


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that everybody can reach."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o777)
    yield place
    shutil.rmtree(place)


@pytest.mark.needs("root")
def test_without_privileges(open_place: Path, mode: ChangeDetectionMode) -> None:
    """Files of others that may be read are (without O_NOATIME), the rest is named."""
    source = open_place / "source"
    for name in ("closed-directory", "unlistable", "open"):
        (source / name).mkdir(parents=True)
        (source / name / "file").write_text(name)
    (source / "closed").write_text("secret")
    (source / "closed").chmod(0o600)
    (source / "closed-directory").chmod(0o700)
    (source / "unlistable").chmod(0o711)
    os.seteuid(NOBODY)
    try:
        vault = Vault(local_datastore(open_place / "vault"))
        result = vault.backup(f"root.pxar:{source}", change_detection_mode=mode)
        tree = vault.open(result.snapshot)
    finally:
        os.seteuid(0)
    assert tree.contents == {"open/file": b"open"}
    assert vault.warnings == [
        f"{source}/closed: left out: Permission denied",
        f"{source}/closed-directory: left out: Permission denied",
        f"{source}/unlistable: left out: Permission denied",
    ]
    assert result.unreadable == 3

"""Whatever an archive says and a neighbour does, nothing lands outside the target."""

import os
import random
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from store.errors import AlreadyExists, FormatError, OutOfSpace, StoreError
from store.operations.restore import RestoreOptions, restore_archive
from store.operations.restore import tree as tree_module
from store.operations.restore.writing import write_sparse
from tests.unit.store.operations.handmade import (
    Builder,
    archive,
    device,
    directory,
    file,
    hardlink,
    symlink,
    tree,
)

pytestmark = pytest.mark.usefixtures("small_files")
one_by_one = pytest.mark.parametrize("small_files", [False], indirect=True)
"""For tests that look into how a file is made in Python."""

SECRET = b"nobody may change this"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory beside the target; the test fails if anything in it changes."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_bytes(SECRET)
    (folder / "file").chmod(0o600)
    folder.chmod(0o750)
    before = facts(folder)
    yield folder
    assert facts(folder) == before


def facts(folder: Path) -> list[tuple[Any, ...]]:
    found = []
    for path in [folder, *sorted(folder.rglob("*"))]:
        info = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
        found.append(
            (path.name, info.st_mode, info.st_uid, info.st_nlink, info.st_mtime_ns, content)
        )
    return found


def attack(target: Path, *children: bytes, overwrite: bool = False) -> None:
    restore_archive(
        tree(archive(*children)), "root.pxar", str(target), RestoreOptions(overwrite=overwrite)
    )


@pytest.fixture
def target(tmp_path: Path, outside: Path) -> Path:
    del outside
    return tmp_path / "target"


@pytest.mark.parametrize(
    "text", [b"..", b".", b"", b"../outside/file", b"/etc/evil", b"a/b", b"a\0b", b"x" * 4097]
)
@pytest.mark.parametrize("make", [file, directory])
def test_names_that_lead_elsewhere(
    target: Path, text: bytes, make: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(FormatError, match=r"root\.pxar: "):
        attack(target, make(text))
    assert not any(target.parent.glob("evil*"))


@pytest.mark.parametrize("overwrite", [False, True])
class TestSymlinks:
    def test_a_symlink_where_a_directory_follows(self, target: Path, overwrite: bool) -> None:
        children = (symlink(b"d", b"../outside"), directory(b"d", file(b"file")))
        if overwrite:  # the later entry replaces the earlier
            attack(target, *children, overwrite=True)
            assert (target / "d/file").read_bytes() == b"content"
            assert not (target / "d").is_symlink()
        else:
            with pytest.raises(AlreadyExists, match="d: exists"):
                attack(target, *children)

    def test_a_symlink_where_a_file_follows(self, target: Path, overwrite: bool) -> None:
        children = (symlink(b"f", b"../outside/file"), file(b"f"))
        if overwrite:
            attack(target, *children, overwrite=True)
            assert (target / "f").read_bytes() == b"content"
        else:
            with pytest.raises(AlreadyExists):
                attack(target, *children)

    def test_a_symlink_where_a_device_follows(self, target: Path, overwrite: bool) -> None:
        children = (symlink(b"f", b"../outside/file"), device(b"f", 0o020666, 1, 3))
        if overwrite:
            attack(target, *children, overwrite=True)
            if os.geteuid() == 0:
                assert stat.S_ISCHR((target / "f").lstat().st_mode)
            else:  # a warning: only root makes devices
                assert not os.path.exists(target / "f")
        else:
            with pytest.raises(StoreError):
                attack(target, *children)

    def test_a_hard_link_through_a_symlink(self, target: Path, overwrite: bool) -> None:
        children = (symlink(b"d", b"../outside"), hardlink(b"h", b"d/file"))
        with pytest.raises(FormatError):
            attack(target, *children, overwrite=overwrite)

    def test_a_hard_link_to_a_symlink(self, target: Path, overwrite: bool) -> None:
        children = (symlink(b"s", b"../outside/file"), hardlink(b"h", b"s"))
        with pytest.raises(FormatError):
            attack(target, *children, overwrite=overwrite)

    def test_symlinks_in_the_target_are_not_followed(self, target: Path, overwrite: bool) -> None:
        target.mkdir()
        (target / "d").symlink_to("../outside")
        if not overwrite:
            with pytest.raises(AlreadyExists):
                attack(target, directory(b"d", file(b"file")))
            return
        attack(target, directory(b"d", file(b"file")), overwrite=True)
        assert not (target / "d").is_symlink()


@pytest.mark.parametrize("path", [b"../outside/file", b"/etc/passwd", b"d/../../outside/file", b""])
def test_hard_links_that_lead_elsewhere(target: Path, path: bytes) -> None:
    with pytest.raises(FormatError):
        attack(target, directory(b"d"), hardlink(b"h", path))


def test_a_hard_link_to_what_is_not_there(target: Path) -> None:
    with pytest.raises(FormatError):
        attack(target, file(b"a"), hardlink(b"h", b"b"))


def test_a_hard_link_into_an_existing_file_of_the_target(target: Path) -> None:
    """The path says one file, the offset another: the worst is a link within the target."""
    target.mkdir()
    (target / "mine").write_bytes(b"mine")
    attack(target, file(b"a"), hardlink(b"h", b"mine"), overwrite=True)
    assert (target / "mine").read_bytes() == b"mine"


def test_equal_names(target: Path) -> None:
    with pytest.raises(AlreadyExists, match="a: exists"):
        attack(target, file(b"a", b"1"), file(b"a", b"2"))
    assert (target / "a").read_bytes() == b"1"


def test_a_directory_twice(target: Path) -> None:
    with pytest.raises(AlreadyExists, match=r"d: .*not empty"):
        attack(target, directory(b"d", file(b"a")), directory(b"d", file(b"b")))


def test_names_that_the_file_system_refuses(target: Path) -> None:
    with pytest.raises(StoreError, match="File name too long"):
        attack(target, file(b"x" * 300))


def test_messages_stay_one_line(target: Path) -> None:
    with pytest.raises(AlreadyExists) as caught:
        attack(target, file(b"a\nb\x1b[31m\xff"), file(b"a\nb\x1b[31m\xff"))
    assert str(caught.value).startswith(r"a\nb\x1b[31m\\xff: exists already")
    assert str(caught.value).isprintable()


def test_setuid_only_for_its_recorded_owner(target: Path) -> None:
    reader = tree(archive(file(b"f", mode=0o106755)))
    restore_archive(reader, "root.pxar", str(target), RestoreOptions(ignore_ownership=True))
    mode = stat.S_IMODE((target / "f").stat().st_mode)
    assert mode == (0o6755 if (os.geteuid(), os.getegid()) == (0, 0) else 0o755)


@one_by_one
def test_a_large_file_that_fails_when_another_has_its_name(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = threading.Event()

    def full_later(opened: int, pieces: Iterable[memoryview]) -> int:
        if threading.current_thread() is threading.main_thread():
            made.set()
            return write_sparse(opened, pieces)
        assert sum(map(len, pieces)) == tree_module.LARGE_FILE
        assert made.wait(10)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tree_module, "write_sparse", full_later)
    large, second = file(b"a", bytes(tree_module.LARGE_FILE)), file(b"a", b"the second")
    with pytest.raises(OutOfSpace, match=r"^a: no space left"):
        attack(target, large, second, overwrite=True)
    assert (target / "a").read_bytes() == b"the second"


class TestSwaps:
    """Someone exchanges directories while we write."""

    def swap_while_writing(self, monkeypatch: pytest.MonkeyPatch, swap: Callable[[], None]) -> None:
        done = []

        def write(opened: int, pieces: Iterable[memoryview]) -> int:
            if not done:
                done.append(True)
                swap()
            return write_sparse(opened, pieces)

        monkeypatch.setattr(tree_module, "write_sparse", write)

    @one_by_one
    def test_the_directory_we_are_in(
        self, target: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def swap() -> None:
            (target / "d").rename(target / "moved")
            (target / "d").symlink_to(outside)

        self.swap_while_writing(monkeypatch, swap)
        attack(target, directory(b"d", file(b"a"), file(b"file"), directory(b"e", file(b"b"))))
        assert (target / "moved/e/b").read_bytes() == b"content"

    @one_by_one
    def test_the_directory_above(
        self, target: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def swap() -> None:
            (target / "d").rename(target / "moved")
            (target / "d").symlink_to(outside)

        self.swap_while_writing(monkeypatch, swap)
        attack(target, directory(b"d", directory(b"e", file(b"a")), file(b"file")))
        assert (target / "moved/file").read_bytes() == b"content"

    @one_by_one
    def test_the_target_of_a_hard_link(
        self, target: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        builder = Builder(split=True)
        builder.enter(b"a")
        builder.file(b"file", b"content")
        builder.leave()
        builder.file(b"b", b"x")
        builder.hardlink(b"h", b"file", b"a/file")
        written = []

        def write(opened: int, pieces: Iterable[memoryview]) -> int:
            written.append(opened)
            if len(written) == 2:
                (target / "a").rename(target / "moved")
                (target / "a").symlink_to(outside)
            return write_sparse(opened, pieces)

        monkeypatch.setattr(tree_module, "write_sparse", write)
        restore_archive(builder.snapshot(), "root.pxar", str(target))
        assert (target / "h").read_bytes() == b"content"
        assert (target / "h").stat().st_nlink == 1

    def test_a_racing_neighbour(self, target: Path, outside: Path) -> None:
        """Exchanges `d` for a symlink as fast as it can."""
        stop = threading.Event()

        def race() -> None:
            while not stop.is_set():
                try:
                    (target / "d").rename(target / "moved")
                    (target / "d").symlink_to(outside)
                    (target / "d").unlink()
                    (target / "moved").rename(target / "d")
                except OSError:
                    continue

        below = [directory(b"e%d" % n, file(b"file"), symlink(b"s", b"x")) for n in range(100)]
        racer = threading.Thread(target=race)
        racer.start()
        try:
            for _ in range(5):
                try:
                    attack(target, directory(b"d", *below, file(b"file")), overwrite=True)
                except StoreError:
                    continue
        finally:
            stop.set()
            racer.join()


def test_a_device_name_taken_by_another_inode(
    target: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a new node gets its owner, its name becomes a hard link to a file outside."""
    open_node = os.open

    def swapped(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_PATH and path == b"s":
            (target / "s").unlink()
            os.link(outside / "file", target / "s")
        return open_node(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(AlreadyExists):
        attack(target, symlink(b"s", b"nowhere"))
    (target / "s").unlink()


def test_generated_archives(target: Path, outside: Path) -> None:
    """Random mixtures of hostile entries: each restore ends well or with a StoreError."""
    rng = random.Random(3)
    texts = [b"a", b"b", b"c", b"..", b"lost+found", b"\xff"]
    targets = [b"a", b"../outside", b"../outside/file", str(outside).encode(), b"/"]

    def child(depth: int) -> bytes:
        text = rng.choice(texts)
        kind = rng.randrange(6 if depth < 4 else 5)
        if kind == 0:
            return symlink(text, rng.choice(targets))
        if kind == 1:
            return hardlink(text, rng.choice([*targets[:3], b"a/file"]), rng.randrange(1, 300))
        if kind == 2:
            return device(text, rng.choice([0o020666, 0o060600]), 1, 3)
        if kind in (3, 4):
            return file(text, b"evil", rng.choice([0o100666, 0o106777]))
        return directory(text, *(child(depth + 1) for _ in range(rng.randrange(4))))

    for number in range(300):
        children = [child(0) for _ in range(rng.randrange(1, 8))]
        place = target.parent / f"target-{number}"
        try:
            attack(place, *children, overwrite=bool(rng.randrange(2)))
        except StoreError:
            continue

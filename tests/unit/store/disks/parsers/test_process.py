"""The parent's side of a parser, with real children: good ones, and such as break every rule."""

import contextlib
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.disks.parsers import process as module
from store.disks.parsers import wire
from store.disks.parsers.process import Crew, Limits, ParserProcess
from store.disks.parsers.tree import ParsedTree
from store.errors import BackendError, IntegrityError
from store.format.buffer import BytesReadAt
from tests.fakes.disk_files import DiskFile
from tests.guest_disks import children_of

FILES = 30


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ext4 with a few files, made without being root."""
    folder = tmp_path_factory.mktemp("image")
    source = folder / "source" / "folder"
    source.mkdir(parents=True)
    rng = random.Random(1)
    for number in range(FILES):
        (source / f"file-{number}").write_bytes(rng.randbytes(number * 700))
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", "-d", folder / "source", disk], check=True)
    return disk


@pytest.fixture
def disk(image: Path) -> Iterator[DiskFile]:
    stream = DiskFile(image)
    yield stream
    stream.close()


@pytest.fixture
def crew() -> Iterator[Crew]:
    made = Crew()
    yield made
    made.close()
    assert children_of(os.getpid()) == []


def names(tree: ParsedTree) -> list[bytes]:
    folder = tree.lookup(tree.root(), b"folder")
    assert folder is not None
    return sorted(entry.name for entry in tree.iterate(folder))


def test_the_bounds_of_a_directory_and_of_a_file(disk: DiskFile, crew: Crew) -> None:
    tree = ParsedTree(ParserProcess(disk, "ext4", crew, "disk"))
    assert len(names(tree)) == FILES
    folder = tree.lookup(tree.root(), b"folder")
    assert folder is not None
    assert tree.lookup(folder, b"nothing") is None
    assert tree.lookup(folder, b"n" * 5000) is None
    entry = tree.lookup(folder, b"file-3")
    assert entry is not None
    assert (entry.size, len(tree.read(entry, 2000, 5000)), tree.read(entry, 9999, 5)) == (
        2100, 100, b"",
    )  # fmt: skip


def test_entries_are_found_again_by_a_new_child(disk: DiskFile, crew: Crew) -> None:
    process = ParserProcess(disk, "ext4", crew, "disk")
    tree = ParsedTree(process)
    before = {entry.name: entry for entry in tree.iterate(tree.root())}
    (child,) = children_of(os.getpid())
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    for entry in before.values():
        again = tree.entry_at(entry.offset)
        assert (again.kind, again.raw_metadata) == (entry.kind, entry.raw_metadata)
    assert len(names(tree)) == FILES


def test_a_crew_is_small(disk: DiskFile) -> None:
    crew = Crew(2)
    trees = [ParsedTree(ParserProcess(disk, "ext4", crew, f"disk {n}")) for n in range(5)]
    for tree in (*trees, *trees):
        assert len(names(tree)) == FILES
        assert len(children_of(os.getpid())) <= 2
    crew.close()
    assert children_of(os.getpid()) == []
    trees[-1].close()
    with pytest.raises(IntegrityError, match="closed"):
        names(trees[-1])


def test_what_the_storage_says_is_raised_as_it_is(disk: DiskFile, crew: Crew) -> None:
    class Moody:
        size = disk.size
        away = False

        def read(self, offset: int, size: int) -> bytes:
            if self.away:
                raise BackendError("the storage is away", retryable=True)
            return disk.read(offset, size)

    stream = Moody()
    tree = ParsedTree(ParserProcess(stream, "ext4", crew, "disk"))
    crew.close()
    tree = ParsedTree(process := ParserProcess(stream, "ext4", crew, "disk"))
    process.rest()
    stream.away = True
    with pytest.raises(BackendError, match="the storage is away"):
        names(tree)
    stream.away = False
    assert len(names(tree)) == FILES


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("noise", "answered with"),
        ("flood", "answered with 4294967295"),
        ("beyond", "what is not there"),
        ("greedy", "what is not there"),
        ("reader", "reads more than"),
        ("mute", "takes too long"),
        ("dead", "ended"),
        ("rude", r"\?\[31mred\?"),
        ("slow", "too slow"),
    ],
)
def test_children_that_break_the_rules(
    monkeypatch: pytest.MonkeyPatch, kind: str, says: str
) -> None:
    monkeypatch.setattr(module, "CHILD", "tests.fakes.bad_parser")
    monkeypatch.setattr(module, "START_S", 0.5)
    crew = Crew(limits=Limits(seconds=0.5, fetched=1 << 20))
    process = ParserProcess(BytesReadAt(bytes(8192)), kind, crew, "disk")
    started = time.monotonic()
    for _ in range(2):
        with pytest.raises(IntegrityError, match=f"disk: .*{says}"):
            process.ask(wire.ROOT)
    assert time.monotonic() - started < 10
    crew.close()
    assert children_of(os.getpid()) == []


def test_only_a_child_that_starts_has_time_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHILD", "tests.fakes.bad_parser")
    crew = Crew(limits=Limits(seconds=0.2))
    tree = ParsedTree(ParserProcess(BytesReadAt(bytes(8192)), "tired", crew, "disk"))
    started = time.monotonic()
    with pytest.raises(IntegrityError, match="takes too long"):
        [*tree.iterate(tree.root())]
    assert time.monotonic() - started < module.START_S / 2
    crew.close()


def test_an_answer_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHILD", "tests.fakes.bad_parser")
    crew = Crew()
    with pytest.raises(IntegrityError, match="disk: "):
        ParsedTree(ParserProcess(BytesReadAt(bytes(8192)), "liar", crew, "disk"))
    crew.close()


@pytest.mark.parametrize("kind", ["endless", "hesitant"])
def test_a_directory_without_end_ends(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(module, "CHILD", "tests.fakes.bad_parser")
    crew = Crew(limits=Limits(entries=1000))
    tree = ParsedTree(ParserProcess(BytesReadAt(bytes(8192)), kind, crew, "disk"))
    with pytest.raises(IntegrityError, match="disk: a directory without an end"):
        [*tree.iterate(tree.root())]
    crew.close()


def test_a_child_takes_nothing_from_the_directory_we_are_in(
    disk: DiskFile, crew: Crew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "__init__.py").write_text("open('taken', 'w')")
    monkeypatch.chdir(tmp_path)
    assert len(names(ParsedTree(ParserProcess(disk, "ext4", crew, "disk")))) == FILES
    assert not Path("taken").exists()


FORBIDDEN = """
import os, socket, subprocess, sys, resource
from store.disks.parsers import sandbox
sandbox.enter(1 << 30)
tries = {
    "open": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "create": lambda: os.open("/tmp/x", os.O_WRONLY | os.O_CREAT),
    "socket": lambda: socket.socket(socket.AF_INET),
    "pair": lambda: socket.socketpair(),
    "fork": os.fork,
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "kill": lambda: os.kill(os.getppid(), 0),
    "listdir": lambda: os.listdir("/"),
    "root": lambda: os.setuid(0),
    "unlimit": lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)),
    "memory": lambda: bytearray(2 << 30),
    "directory": lambda: os.mkdir("/tmp/never"),
    "ptrace": lambda: os.readlink("/proc/self/exe"),
}
for name, attempt in tries.items():
    try:
        attempt()
    except (OSError, MemoryError, ValueError):
        continue
    os.write(1, name.encode() + b" ")
os.write(1, b"end")
"""


def test_the_sandbox_refuses_all() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORBIDDEN], capture_output=True, text=True, timeout=60, check=False,
        env={"PYTHONPATH": str(module.PACKAGES)},
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("end", 0), done.stderr


@pytest.mark.expect_warnings
def test_a_bad_name_hides_no_others(
    crew: Crew, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = tmp_path / "fat.raw"
    with disk.open("wb") as file:
        file.truncate(2 << 20)
    subprocess.run(["/usr/sbin/mkfs.vfat", disk], check=True, capture_output=True)
    for name in ("ONE.TXT", "BAD.TXT", "TWO.TXT"):
        subprocess.run(["mcopy", "-i", disk, "/etc/hostname", f"::/{name}"], check=True)
    disk.write_bytes(disk.read_bytes().replace(b"BAD     TXT", b"B/D     TXT"))
    with contextlib.closing(DiskFile(disk)) as stream:
        tree = ParsedTree(ParserProcess(stream, "fat", crew, "disk"))
        for _ in range(2):
            found = [entry.name for entry in tree.iterate(tree.root())]
            assert found == [b"ONE.TXT", b"TWO.TXT"]
        assert tree.lookup(tree.root(), b"B/D.TXT") is None
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert warnings == ["disk: a file of the name b'B/D.TXT' is left out"]

"""Trees, guests and machines over a process that plays the agent."""

import errno
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from store.disks.base import Part, Segment, SegmentStream
from store.disks.microvm import guest as guest_module
from store.disks.microvm.accelerator import Accelerator
from store.disks.microvm.engine import MicroVmEngine
from store.disks.microvm.guest import Guest
from store.disks.microvm.machine import Command
from store.disks.microvm.pool import Pool
from store.disks.microvm.protocol import Key
from store.disks.microvm.tree import GuestFiles, Numbers
from store.errors import BackendError, FormatError, IntegrityError
from store.format.buffer import BytesReadAt, ReadAt
from store.format.pxar.entries import Entry
from tests.fakes.guest_agent import CONTENT

HOUSE = Path(__file__).parents[5]


class FakeAppliance:
    """A Python process in QEMU's place."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.starts = 0

    def kernel_image(self) -> bytes:
        return b""

    def first_root(self, kind: str) -> bytes:
        assert kind == "ext4"
        return self.word.encode()

    def command(self, accelerator: str) -> Command:
        assert accelerator == "tcg"
        self.starts += 1
        agent = ["-m", "tests.fakes.guest_agent"]
        environment = ["env", f"PYTHONPATH={HOUSE}", sys.executable]
        return lambda port, _disk, _kernel, first_root: [
            *environment,
            *agent,
            str(port),
            str(first_root),
        ]


@pytest.fixture(autouse=True)
def _as_ourselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is confined may not be let near this Python."""
    monkeypatch.setattr("store.disks.microvm.machine.confined", lambda command, _: command)


def new_guest(
    appliance: FakeAppliance, blocks: ReadAt | None = None, pool: Pool | None = None
) -> Guest:
    stream = blocks or BytesReadAt(bytes(4096))
    return Guest("part3", "ext4", stream, appliance, Accelerator("tcg"), pool or Pool())


@contextmanager
def opened(word: str, blocks: ReadAt | None = None) -> Iterator[tuple[GuestFiles, FakeAppliance]]:
    appliance = FakeAppliance(word)
    guest = new_guest(appliance, blocks)
    try:
        with closing(GuestFiles(guest)) as tree:
            yield tree, appliance
    finally:
        guest.close()


def file_in(tree: GuestFiles) -> Entry:
    found = tree.lookup(tree.root(), b"seven")
    assert found is not None
    return found


def test_a_tree() -> None:
    with opened("well") as (tree, _):
        names = [entry.name for entry in tree.iterate(tree.root())]
        assert names == [b"f%d" % number for number in range(12)]
        assert tree.lookup(tree.root(), b"eight") is None
        file = file_in(tree)
        assert (file.name, file.offset, file.size, file.links) == (b"seven", 7, len(CONTENT), 1)
        assert tree.read(file, 5, 10) == CONTENT[5:15]
        assert tree.read(file, len(CONTENT) - 3, 10) == CONTENT[-3:]
        assert tree.entry_at(7).raw_metadata == file.raw_metadata
        with pytest.raises(FormatError):
            [*tree.iterate(file)]
        with pytest.raises(FormatError):
            tree.content(tree.root())
        with pytest.raises(FormatError):
            tree.content(file)[0].read(len(CONTENT), 1)


def test_a_stopped_guest_starts_again() -> None:
    with opened("well") as (tree, appliance):
        file, first = file_in(tree), tree.guest.pid
        tree.guest.stop()
        assert tree.guest.pid is None
        assert tree.read(file, 0, 9) == CONTENT[:9]
        assert tree.guest.pid != first
        assert appliance.starts == 2


def test_a_closed_one_does_not() -> None:
    with opened("well") as (tree, appliance):
        tree.close()
        with pytest.raises(IntegrityError, match="part3: closed"):
            tree.entry_at(7)
        assert appliance.starts == 1


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("panics-on-read", "crashed the micro-VM: .* Kernel panic - not syncing: .31mfake"),
        ("dies-on-read", "the micro-VM: it has gone"),
        ("silent-on-read", "no answer within 0.5 s"),
        ("nonsense-on-read", "a reply of 4294967295 bytes"),
        ("answers-another", "an answer to question"),
        ("short", "a file ends at 4095, not 4096"),
        (f"errno={errno.EUCLEAN}", "damaged, says Linux: Structure needs cleaning"),
    ],
)
def test_what_a_guest_does_wrong_costs_an_error(
    word: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(word) as (tree, _):
        file = file_in(tree)
        monkeypatch.setattr(guest_module, "REQUEST_TIMEOUT_S", 0.5 if "silent" in word else 30)
        with pytest.raises(IntegrityError, match=f"part3: .*{message.replace('.31m', '..31m')}"):
            tree.read(file, 0, file.size)
        monkeypatch.setattr(guest_module, "REQUEST_TIMEOUT_S", 30)
        assert tree.entry_at(7).offset == 7  # it is back


def test_a_disk_that_crashes_each_guest_is_left_alone() -> None:
    with opened("dies-on-read") as (tree, appliance):
        file = file_in(tree)
        for _ in range(3):
            with pytest.raises(IntegrityError, match="it has gone"):
                tree.read(file, 0, 1)
        with pytest.raises(IntegrityError, match="made its micro-VM fail 3 times"):
            tree.read(file, 0, 1)
        assert appliance.starts == 3


@pytest.mark.parametrize(
    ("word", "error", "message"),
    [
        ("unmountable", FormatError, "part3: Linux does not mount it as ext4: ext4: no such magic"),
        ("panic", IntegrityError, "part3: its file system crashed the micro-VM: "),
        ("deaf", IntegrityError, "part3: the micro-VM: it did not start within 0.5 s"),
    ],
)
def test_guests_that_do_not_come_up(
    word: str, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator = Accelerator("tcg")
    if word == "deaf":
        monkeypatch.setattr("store.disks.microvm.accelerator.BOOT_TIMEOUT_S", 0.5)
    guest = Guest("part3", "ext4", BytesReadAt(b""), FakeAppliance(word), accelerator, Pool())
    with pytest.raises(error, match=message):
        GuestFiles(guest)
    guest.close()


def test_a_directory_without_end_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.disks.microvm.tree.MAX_ENTRIES", 100)
    with opened("endless") as (tree, _), pytest.raises(FormatError, match="more than 100 entries"):
        [*tree.iterate(tree.root())]


class Failing:
    """A disk that cannot be read."""

    size = 4096

    def read(self, offset: int, size: int) -> bytes:
        raise BackendError("the bucket is away", retryable=True)


def test_a_disk_that_cannot_be_read_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest only knows that its disk had an error."""
    with opened(f"errno={errno.EIO}", Failing()) as (tree, appliance):
        file, guest = file_in(tree), tree.guest
        ask = guest._running().talk.ask

        def ask_with_a_read(*arguments: object) -> object:
            with pytest.raises(BackendError):
                guest._blocks.read(0, 1)  # as QEMU would, by the door
            return ask(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(guest._running().talk, "ask", ask_with_a_read)
        with pytest.raises(BackendError, match="part3: the bucket is away") as caught:
            tree.read(file, 0, 1)
        assert caught.value.retryable
        tree.entry_at(7)
        assert appliance.starts == 2  # what it had made of the error is gone


def test_a_guest_that_does_not_come_up_is_closed_at_once() -> None:
    guest = new_guest(FakeAppliance("deaf"))
    with ThreadPoolExecutor(1) as threads:
        opening = threads.submit(GuestFiles, guest)
        while guest.pid is None:
            assert not opening.done()
        guest.close()
        with pytest.raises(IntegrityError, match="part3: closed"):
            opening.result(30)


def test_a_guest_closed_before_it_is_started_is_not_waited_for() -> None:
    class Slow(FakeAppliance):
        def kernel_image(self) -> bytes:
            closing.submit(guest.close)
            while not guest._closed:
                pass
            return b""

    guest = new_guest(Slow("deaf"))
    with ThreadPoolExecutor(1) as closing, pytest.raises(IntegrityError, match="part3: closed"):
        GuestFiles(guest)
    assert guest.pid is None


class Found(FakeAppliance):
    """One that knows every file system."""

    def has(self, module: str) -> bool:
        return True


def test_closing_the_engine_ends_a_guest_that_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    deaf = Found("deaf")
    monkeypatch.setattr("store.disks.microvm.engine.find_appliance", lambda: deaf)
    engine = MicroVmEngine(accelerator=Accelerator("tcg"))
    part, blocks = Part("part1", "ext4", (Segment(0, 4096),)), BytesReadAt(bytes(4096))
    with ThreadPoolExecutor(1) as threads:
        opening = threads.submit(engine.open, part, blocks)
        while not (guests := [*engine._guests]) or guests[0].pid is None:
            time.sleep(0.01)
        engine.close()
        for late in (opening.result, lambda: engine.open(part, blocks)):
            with pytest.raises(IntegrityError, match="part1: closed"):
                late()
    assert deaf.starts == 1
    assert os.listdir(tmp_path) == []


def test_numbers_stay_when_a_part_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of Btrfs are by order of appearance, and who has one may use it at any time."""
    monkeypatch.setattr("store.disks.microvm.engine.find_appliance", lambda: Found("well"))
    engine = MicroVmEngine(accelerator=Accelerator("tcg"))
    segments = (Segment(0, 4096),)
    blocks = SegmentStream(BytesReadAt(bytes(4096)), segments, "disk: part1")
    part, given = Part("part1", "ext4", segments), []
    for keys in ([Key(257, 300), Key(258, 300)], [Key(258, 300), Key(257, 300)]):
        with closing(engine.open(part, blocks)) as tree:
            assert isinstance(tree, GuestFiles)
            given.append({key: tree._numbers.number(key) for key in keys})
    assert given[0] == given[1]


def test_nothing_is_left_of_a_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with opened("well") as (tree, _):
        pid = tree.guest.pid
        assert os.listdir(tmp_path) == []  # not even if we were killed now
    assert not Path(f"/proc/{pid}").exists()


def test_numbers() -> None:
    plain, btrfs = Numbers("part1"), Numbers("part1")
    assert plain.key(plain.number(Key(0, 12345))) == Key(0, 12345)
    keys = [Key(5, 256), Key(257, 256), Key(5, 300), Key(1 << 40, 257)]
    found = [btrfs.number(key) for key in keys]
    assert len({*found}) == 4
    assert all(0 < number < 1 << 46 for number in found)
    assert [btrfs.key(number) for number in found] == keys
    for numbers, key in ((plain, Key(0, 0)), (plain, Key(0, 1 << 46)), (btrfs, Key(5, 1 << 32))):
        with pytest.raises(FormatError):
            numbers.number(key)
    with pytest.raises(FormatError):
        btrfs.key(99 << 32 | 5)
    for place in range((1 << 14) - 3):
        btrfs.number(Key(1000 + place, 256))
    with pytest.raises(FormatError, match="more than 16384"):
        btrfs.number(Key(7, 256))

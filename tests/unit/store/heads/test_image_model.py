"""A head's image does what a bytearray does, across seals, crashes and reopening."""

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from store.datastore.snapshots import SyncLevel
from store.format.crypt import CryptConfig
from store.heads import Heads, WouldWait
from store.heads.head import OpenHead
from tests.fakes.datastores import GROUP, ROOT, local_datastore
from tests.fakes.heads import move_all

if TYPE_CHECKING:
    from store.heads.image import HeadImage

MIB = 1 << 20
SIZE = 9 * MIB + 512
SECTORS = st.one_of(
    st.integers(0, SIZE // 512 - 1),
    st.integers(8 * 1024 - 16, 8 * 1024 + 16),  # about the border of two regions
)
LENGTHS = st.sampled_from([512, 1024, 4096, 65536, 5 * MIB])
KEY = CryptConfig(bytes(range(32)))


def crash(head: OpenHead) -> None:
    """End it as kill -9 does: no last commit."""
    head.abandon()


class ImageMachine(RuleBasedStateMachine):
    """The same writes to an image and to a bytearray."""

    key: CryptConfig | None = None

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp())
        self.datastore = local_datastore(self.place / "vault")
        self.heads = Heads(
            self.datastore, self.place / "heads", key=self.key, sync_level=SyncLevel.NONE
        )
        self.head = self.heads.open(ROOT, GROUP)
        self.image: HeadImage = self.head.create_image("disk.img", SIZE)
        self.model = bytearray(SIZE)
        self.fill = 0

    def teardown(self) -> None:
        self.check()
        self.head.close()
        shutil.rmtree(self.place)

    def range(self, sector: int, length: int) -> tuple[int, int]:
        offset = sector * 512
        return offset, min(length, len(self.model) - offset)

    @rule(sector=SECTORS, length=LENGTHS, fua=st.booleans())
    def write(self, sector: int, length: int, fua: bool) -> None:
        offset, size = self.range(sector, length)
        self.fill += 1
        data = os.urandom(16) * (size // 16)
        self.image.write(offset, data, fua=fua)
        self.model[offset : offset + size] = data

    @rule(sector=SECTORS, length=LENGTHS)
    def write_at_once(self, sector: int, length: int) -> None:
        """It may end past the end."""
        offset, data = sector * 512, os.urandom(16) * (length // 512 * 32)
        try:
            self.image.write_at_once(offset, data)
        except WouldWait:  # its rows are not at hand, or being committed
            return
        if data:
            self.model += bytes(max(0, offset + len(data) - len(self.model)))
            self.model[offset : offset + len(data)] = data

    @rule(sector=SECTORS, length=LENGTHS)
    def zero(self, sector: int, length: int) -> None:
        offset, size = self.range(sector, length)
        self.image.zero(offset, size)
        self.model[offset : offset + size] = bytes(size)

    @rule(more=st.integers(0, 3 * MIB))
    def grow(self, more: int) -> None:
        if len(self.model) < 30 * MIB:
            self.model += bytes(more // 512 * 512)
            self.image.grow(len(self.model))

    @rule()
    def flush(self) -> None:
        self.image.flush()

    @rule()
    def commit(self) -> None:
        self.head.journal.commit()

    @rule()
    def seal(self) -> None:
        self.head.seal()

    @rule()
    def move(self) -> None:
        move_all(self.head)

    @rule(crashes=st.booleans())
    def reopen(self, crashes: bool) -> None:
        self.image.flush()
        if crashes:
            crash(self.head)
        else:
            self.head.close()
        self.head = self.heads.open(ROOT, GROUP)
        self.image = self.head.image("disk.img")

    @rule(sector=SECTORS, length=LENGTHS)
    def read(self, sector: int, length: int) -> None:
        offset, size = self.range(sector, length)
        expected = self.model[offset : offset + size]
        assert self.image.read(offset, size) == expected
        peeked = self.image.peek(offset, size)
        assert peeked is None or peeked == expected

    @rule()
    def check(self) -> None:
        assert self.image.size == len(self.model)
        assert self.image.read(0, len(self.model)) == self.model
        end = 0
        for offset, size, zero in self.image.extents(0, len(self.model)):
            assert offset == end
            end = offset + size
            if zero:
                assert not any(self.model[offset:end])
        assert end == len(self.model)


class EncryptedMachine(ImageMachine):
    key = KEY


MACHINES = {"plain": ImageMachine, "encrypted": EncryptedMachine}


@pytest.mark.parametrize("kind", MACHINES)
def test_an_image_is_as_a_bytearray(kind: str) -> None:
    case = MACHINES[kind].TestCase
    case.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
    case().runTest()


def test_what_follows_a_clean_close_is_recovered(tmp_path: Path) -> None:
    """The segments before it may all be gone: new ones go on from where recovery reads."""
    heads = Heads(local_datastore(tmp_path / "vault"), tmp_path / "heads")
    with heads.open(ROOT, GROUP) as head:
        head.create_image("disk.img", MIB).grow(2 * MIB)
    head = heads.open(ROOT, GROUP)
    image = head.image("disk.img")
    image.grow(3 * MIB)
    image.write(0, b"x" * 4096, fua=True)
    crash(head)
    with heads.open(ROOT, GROUP) as head:
        image = head.image("disk.img")
        assert (image.size, image.read(0, 4096)) == (3 * MIB, b"x" * 4096)


def test_who_may_not_wait_writes_nothing_while_somebody_has_the_lock(tmp_path: Path) -> None:
    heads = Heads(local_datastore(tmp_path / "vault"), tmp_path / "heads")
    with heads.open(ROOT, GROUP) as head:
        image = head.create_image("disk.img", 4096)
        with ThreadPoolExecutor(1) as pool, head.journal.lock:
            waiting = pool.submit(image.write_at_once, 4096, b"x" * 4096)
            assert isinstance(waiting.exception(), WouldWait)
        assert image.size == 4096
        image.write_at_once(4096, b"x" * 4096)
        assert (image.size, image.read(4096, 4096)) == (8192, b"x" * 4096)

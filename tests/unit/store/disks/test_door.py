"""The door is spoken to by other people's programs: qemu-io and nbdinfo."""

import socket
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.disks.door import Door
from store.disks.overlay import BLOCK, LONG, Budget, Overlay
from store.errors import FormatError, OutOfSpace
from store.format.buffer import BytesReadAt

SIZE = 300 * BLOCK + 100
BASE = bytes(number % 251 for number in range(SIZE))

writes = st.lists(
    st.tuples(
        st.integers(0, SIZE),
        st.integers(0, 3 * BLOCK) | st.integers(LONG * BLOCK, SIZE),
        st.integers(0, 255),
        st.booleans(),
    ),
    max_size=12,
)


@given(writes, st.sampled_from([0, 3 * BLOCK, 1 << 20]))
def test_an_overlay_is_its_base_with_what_was_written(
    steps: list[tuple[int, int, int, bool]], memory: int
) -> None:
    overlay, model = Overlay(BytesReadAt(BASE), memory=memory), bytearray(BASE)
    for offset, length, value, zero in steps:
        length = min(length, SIZE - offset)
        if zero:
            overlay.zero(offset, length)
        else:
            overlay.write(offset, bytes([value]) * length)
        model[offset : offset + length] = bytes([0 if zero else value]) * length
        assert overlay.read(offset, length) == model[offset : offset + length]
    assert overlay.read(0, SIZE) == model
    assert overlay.read(BLOCK - 1, 2 * BLOCK) == model[BLOCK - 1 : 3 * BLOCK - 1]
    overlay.close()


def test_an_overlay_has_an_end_and_a_budget() -> None:
    overlay = Overlay(BytesReadAt(BASE), memory=0, share=BLOCK)
    with pytest.raises(FormatError):
        overlay.write(SIZE - 1, b"xx")
    overlay.write(0, b"x")
    with pytest.raises(OutOfSpace):
        overlay.write(BLOCK, b"x")
    assert overlay.read(BLOCK, 1) == BASE[BLOCK : BLOCK + 1]
    overlay.close()


class Endless:
    """A base of ones."""

    size = 5 << 30

    def read(self, offset: int, size: int) -> bytes:
        return b"\1" * size


def test_long_stretches_of_zeros_take_no_room() -> None:
    overlay = Overlay(Endless(), memory=0, share=3 * BLOCK)
    overlay.write(BLOCK, b"old")
    overlay.zero(100, 4 << 30)
    end = 100 + (4 << 30)
    assert overlay.read(0, 3 * BLOCK) == b"\1" * 100 + bytes(3 * BLOCK - 100)
    assert overlay.read(end - BLOCK, 2 * BLOCK) == bytes(BLOCK) + b"\1" * BLOCK
    overlay.write(5 * BLOCK, b"new")  # in the place of what was forgotten
    assert overlay.read(5 * BLOCK, 5) == b"new\0\0"
    overlay.zero(0, 2 << 20)
    assert overlay.read(0, 2 << 20) == bytes(2 << 20)
    overlay.close()


def test_overlays_share_one_budget() -> None:
    budget = Budget(3 * BLOCK)
    one, other = (Overlay(BytesReadAt(BASE), 0, 2 * BLOCK, budget) for _ in range(2))
    one.write(0, b"x" * 2 * BLOCK)
    other.write(0, b"y" * BLOCK)
    with pytest.raises(OutOfSpace):
        other.write(BLOCK, b"y")
    one.close()
    other.write(BLOCK, b"y" * BLOCK)
    assert other.read(0, 2 * BLOCK) == b"y" * 2 * BLOCK
    del other
    assert budget.take(3 * BLOCK)


def _qemu_io(door: Door, *commands: str, read_only: bool = False) -> str:
    arguments = [word for command in commands for word in ("-c", command)]
    flags = ["-r"] if read_only else []
    done = subprocess.run(
        ["qemu-io", "-f", "raw", *flags, *arguments, door.uri],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.needs("qemu")
def test_qemu_reads_and_writes_through_the_door() -> None:
    overlay = Overlay(BytesReadAt(BASE))
    with Door(overlay) as door:
        said = _qemu_io(
            door, "write -P 7 4096 8192", "write -z 20480 4096", "flush", "read -P 7 4096 8192"
        )
        folder = door.path.parent
        assert folder.stat().st_mode & 0o777 == 0o700
    assert "rror" not in said, said
    assert "verification" not in said, said
    assert overlay.read(4096, 8192) == b"\7" * 8192
    assert overlay.read(20480, 4096) == bytes(4096)
    assert overlay.read(0, 4096) == BASE[:4096]
    assert not folder.exists()


@pytest.mark.needs("qemu", "nbd")
def test_what_cannot_be_written_is_read_only() -> None:
    with Door(BytesReadAt(BASE)) as door:
        said = subprocess.run(
            ["nbdinfo", door.uri], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        assert "is_read_only: true" in said, said
        assert f"export-size: {SIZE}" in said, said
        assert "rror" not in _qemu_io(door, "read 0 4096", read_only=True)


@pytest.mark.needs("qemu")
def test_a_full_overlay_and_a_broken_base_are_errors_for_the_client() -> None:
    class Broken(BytesReadAt):
        def read(self, offset: int, size: int) -> bytes:
            raise FormatError("damaged")

    with Door(Overlay(Broken(BASE), memory=0, share=0)) as door:
        assert "Input/output error" in _qemu_io(door, "read 0 4096")
        assert "No space left" in _qemu_io(door, "write 0 4096")


def test_closing_hangs_up_on_a_client_that_says_nothing() -> None:
    with Door(BytesReadAt(BASE)) as door, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(door.path))
        client.recv(18)


def test_who_inherits_a_connection_needs_no_way_to_the_socket() -> None:
    door = Door(BytesReadAt(BASE))
    with door.let_in() as client:
        door.shut()
        assert not door.path.exists()
        assert client.recv(18)[:8] == b"NBDMAGIC"
        door.close()
        assert client.recv(1) == b""

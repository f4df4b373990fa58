"""A storage that fails, a user who interrupts: an error, no snapshot, and the next one is whole."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from store.backends.memory import MemoryBackend
from store.errors import OutOfSpace, StoreError
from store.operations.backup import ChangeDetectionMode
from tests.fakes.datastores import ROOT, open_on
from tests.fakes.faults import FaultyBackend
from tests.unit.store.operations.backup.conftest import (
    LEGACY,
    METADATA,
    Hook,
    Vault,
    contents,
    noise,
)

OnCall = Callable[[str, Hook], None]
MODES = [LEGACY, METADATA]


@pytest.fixture
def filled(source: Path) -> Path:
    (source / "d").mkdir()
    for number in range(4):
        (source / f"d/{number}").write_bytes(noise(number, 100_000))
    (source / "disk").write_bytes(noise(9, 50_000))
    return source


def sources(filled: Path) -> tuple[str, ...]:
    return f"root.pxar:{filled}", f"disk.img:{filled}/disk", f"a.conf:{filled}/disk"


@pytest.fixture(autouse=True)
def nothing_stays_behind() -> Iterator[None]:
    """No thread and no descriptor of a backup outlives it."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("chunk", "image"))]
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def memory_vault(backend: Any) -> Vault:
    return Vault(open_on(backend))


def fresh_backend() -> MemoryBackend:
    backend = MemoryBackend()
    backend.create()
    return backend


@pytest.mark.expect_warnings
@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_every_call_to_the_storage_may_fail(
    filled: Path, mode: ChangeDetectionMode, after: bool
) -> None:
    """With a snapshot before it, which must stay whole, as the next one must be."""
    number, wanted = 0, contents(filled)
    while True:
        backend = fresh_backend()
        memory_vault(backend).backup(*sources(filled), change_detection_mode=mode)
        (filled / "d/0").write_bytes(noise(number + 10, 100_000))
        faulty = FaultyBackend(backend, after=after)
        failed = False
        vault = memory_vault(backend)
        vault.day = 1
        vault.datastore = open_on(faulty)
        faulty.fail_at = faulty.calls + number
        try:
            vault.backup(*sources(filled), change_detection_mode=mode)
        except StoreError:
            failed = True
        reached = faulty.calls > faulty.fail_at
        faulty.bury()
        vault.datastore = open_on(backend)
        assert len(vault.snapshots) in ((1, 2) if failed else (2,))
        result = vault.backup(*sources(filled), change_detection_mode=mode)
        assert vault.leftovers == []
        assert vault.open(result.snapshot).contents == contents(filled)
        first = vault.open(vault.snapshots[0]).contents
        assert {name: first[name] for name in ("d/1", "disk")} == {
            name: wanted[name] for name in ("d/1", "disk")
        }
        if not reached:
            break
        number += 1
    assert number > 30


@pytest.mark.parametrize("mode", MODES)
def test_the_storage_is_full_at_the_nth_chunk(
    vault: Vault, filled: Path, mode: ChangeDetectionMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, left, number = vault.datastore.chunks.insert, [0], 0

    def insert(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OutOfSpace("no room")
        return original(*arguments, **options)

    monkeypatch.setattr(vault.datastore.chunks, "insert", insert)
    while not vault.snapshots:
        left[0] = number
        with contextlib.suppress(OutOfSpace):
            vault.backup(*sources(filled), change_detection_mode=mode)
        assert vault.leftovers == []
        if not vault.snapshots:
            for digest in list(vault.datastore.chunks.iterate()):
                vault.datastore.backend.delete(vault.datastore.chunks.name(digest))
            number += 1
    assert number > 4
    assert vault.open(vault.snapshots[-1]).contents == contents(filled)


@pytest.mark.parametrize("call", ["open", "readv", "scandir", "listxattr"])
@pytest.mark.parametrize("mode", MODES)
def test_interrupted(
    vault: Vault, filled: Path, mode: ChangeDetectionMode, call: str, on_call: OnCall
) -> None:
    """Ctrl-C at any of these calls: nothing is left, and the next backup succeeds."""
    left = [0]

    def interrupt(original: Hook, *arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == -1:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    on_call(call, interrupt)
    for number in range(6):
        left[0] = number
        with contextlib.suppress(KeyboardInterrupt):
            vault.backup(*sources(filled), change_detection_mode=mode)
        left[0] = -1
        assert vault.leftovers == []
    result = vault.backup(*sources(filled), change_detection_mode=mode)
    assert vault.open(result.snapshot).contents == contents(filled)


@pytest.mark.expect_warnings
def test_a_new_group_goes_with_its_failed_first_snapshot(filled: Path) -> None:
    backend = fresh_backend()
    faulty = FaultyBackend(backend)
    vault = memory_vault(faulty)
    original = vault.datastore.chunks.insert

    def fail(*_: Any, **__: Any) -> None:
        raise OutOfSpace("no room")

    vault.datastore.chunks.insert = fail  # type: ignore[method-assign, assignment]
    with pytest.raises(OutOfSpace):
        vault.backup(*sources(filled))
    assert vault.datastore.list_groups(ROOT, empty=True) == []
    vault.datastore.chunks.insert = original  # type: ignore[method-assign]
    assert vault.backup(*sources(filled)).new_chunks > 0

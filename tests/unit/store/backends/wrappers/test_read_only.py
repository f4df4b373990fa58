"""What may only be read."""

from collections.abc import Callable

import pytest

from store.backends.base import Backend
from store.backends.memory import MemoryBackend
from store.backends.wrappers.read_only import ReadOnly
from store.errors import PermissionDenied

CHANGES: dict[str, Callable[[Backend], object]] = {
    "create": lambda backend: backend.create(),
    "write": lambda backend: backend.write("a", (b"1",)),
    "temporary": lambda backend: backend.create_temporary("b", "b.tmp"),
    "touch": lambda backend: backend.touch("a"),
    "rename": lambda backend: backend.rename("a", "b"),
    "delete": lambda backend: backend.delete("a"),
    "mkdir": lambda backend: backend.mkdir("d"),
    "rmdir": lambda backend: backend.rmdir("d"),
    "remove_tree": lambda backend: backend.remove_tree("d"),
}
NAMES = [(".lock", False), ("a", False), (".chunks", True)]


@pytest.fixture
def inner() -> MemoryBackend:
    backend = MemoryBackend()
    backend.create()
    backend.write("a", (b"0",))
    return backend


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_are_refused_with_the_reason(
    inner: MemoryBackend, change: Callable[[Backend], object]
) -> None:
    with pytest.raises(PermissionDenied, match="memory is read-only: because"):
        change(ReadOnly(inner, "because"))
    assert inner.scan("") == NAMES
    assert inner.read("a") == b"0"


def test_reading_goes_on_and_locks_hold_nothing(inner: MemoryBackend) -> None:
    backend = ReadOnly(inner, "because")
    with (
        backend.lock("a", (), exclusive=True) as lock,
        backend.lock("a", (), exclusive=True),
        backend.lock_store(exclusive=True),
        inner.lock("a", (), exclusive=True),
    ):
        lock.check()
        assert backend.read("a") == b"0"
    backend.forget_lock(("a",))
    backend.repair("a", b"other")
    assert inner.read("a") == b"0"

"""How a command opens what it reads."""

import threading
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest

from store.backends.memory import MemoryBackend
from store.cli.reading import Reading
from store.errors import Locked, NotFound

MANIFEST: Any = object()


class Datastore:
    """Says which thread asked it for what."""

    def __init__(self, error: Exception | None = None) -> None:
        self.backend, self.error = MemoryBackend(), error
        self.asked: dict[str, threading.Thread] = {}
        self.released = 0

    def lock_snapshot_shared(self, *_: object) -> AbstractContextManager[None]:
        self.asked["lock"] = threading.current_thread()
        if isinstance(self.error, Locked):
            raise self.error
        held = ExitStack()
        held.callback(self._release)
        held.enter_context(nullcontext())
        return cast("AbstractContextManager[None]", held)

    def _release(self) -> None:
        self.released += 1

    def read_manifest(self, *_: object) -> Any:
        self.asked["manifest"] = threading.current_thread()
        if isinstance(self.error, NotFound):
            raise self.error
        return MANIFEST


def lock(datastore: Datastore, held: ExitStack) -> Any:
    reading: Any = SimpleNamespace(datastore=datastore, namespace=None)
    return Reading._lock(reading, cast("Any", None), held)


def test_the_lock_is_taken_where_an_interrupt_can_give_it_back() -> None:
    """An interrupt ends the storage's calls in other threads, also that which takes a lock back."""
    datastore = Datastore()
    with ExitStack() as held:
        assert lock(datastore, held) is MANIFEST
        assert datastore.released == 0
    assert datastore.released == 1
    assert datastore.asked["lock"] is threading.current_thread()
    assert datastore.asked["manifest"] is not threading.current_thread()


@pytest.mark.parametrize("error", [Locked("in use"), NotFound("gone")])
def test_what_fails_is_told_and_nothing_stays_locked(error: Exception) -> None:
    datastore = Datastore(error)
    with pytest.raises(type(error)), ExitStack() as held:
        lock(datastore, held)
    assert datastore.released == isinstance(error, NotFound)

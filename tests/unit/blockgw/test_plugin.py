"""What the plugin does besides answering. With nbdkit itself: tests/e2e."""

import errno
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from store.backends.local.backend import LocalBackend
from store.errors import ChunkMissing, Locked, OutOfSpace, PermissionDenied
from store.repositories.settings import RepositorySettings
from tests.fakes.datastores import bare_backend


@pytest.fixture
def errors() -> list[int]:
    """The numbers that clients got."""
    return []


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, errors: list[int]) -> Any:
    nbdkit = ModuleType("nbdkit")
    vars(nbdkit).update(
        EXTENT_HOLE=1, EXTENT_ZERO=2, FLAG_FUA=2, FLAG_REQ_ONE=8, FUA_NONE=0, FUA_NATIVE=2
    )
    vars(nbdkit).update(set_error=errors.append)
    monkeypatch.setitem(sys.modules, "nbdkit", nbdkit)
    monkeypatch.delitem(sys.modules, "blockgw.plugin", raising=False)
    yield importlib.import_module("blockgw.plugin")
    sys.modules.pop("blockgw.plugin", None)


def test_cleanup_closes_the_datastore(
    plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a bucket, its leases would stay."""
    bare_backend(tmp_path).close()
    closed: list[str] = []
    close = LocalBackend.close

    def noting(self: LocalBackend) -> None:
        closed.append(self.location)
        close(self)

    monkeypatch.setattr(LocalBackend, "close", noting)
    plugin.State.settings = SimpleNamespace(
        threads=1, key=None, repository=RepositorySettings(str(tmp_path)), selection=None
    )
    plugin.after_fork()
    plugin.cleanup()
    assert closed == [str(tmp_path)]


class FakeDevice:
    """Notes what is asked of it, or fails."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure, self.log = failure, list[tuple[object, ...]]()

    def _do(self, *what: object) -> None:
        if self.failure is not None:
            raise self.failure
        self.log.append(what)

    def write(self, offset: int, data: bytes, *, fua: bool) -> None:
        self._do("write", offset, data, fua)

    def zero(self, offset: int, size: int, *, fua: bool) -> None:
        self._do("zero", offset, size, fua)

    def trim(self, offset: int, size: int, *, fua: bool) -> None:
        self._do("trim", offset, size, fua)

    def flush(self) -> None:
        self._do("flush")

    def extents(self, offset: int, size: int, *, one: bool) -> Iterator[tuple[int, int, bool]]:
        self._do("extents", one)
        for number in range(offset, offset + size):
            yield number, 1, number % 2 == 0


def test_requests_that_write(plugin: Any) -> None:
    device = FakeDevice()
    plugin.thread.kept = True
    plugin.pwrite(device, b"x", 5, 0)
    plugin.pwrite(device, b"x", 5, 2)
    plugin.zero(device, 10, 5, 2)
    plugin.trim(device, 10, 5, 0)
    plugin.flush(device, 0)
    assert device.log == [
        ("write", 5, b"x", False),
        ("write", 5, b"x", True),
        ("zero", 5, 10, True),
        ("trim", 5, 10, False),
        ("flush",),
    ]


def test_extents_are_bounded(plugin: Any) -> None:
    found = list(plugin.extents(FakeDevice(), 1 << 20, 1, 0))
    assert found[:2] == [(1, 1, 0), (2, 1, 3)]
    assert len(found) == plugin.MOST_EXTENTS


@pytest.mark.parametrize(
    ("failure", "number"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (OutOfSpace("the disk of the head's journal is full"), errno.ENOSPC),
        (Locked("another process has it"), errno.EIO),
        (ChunkMissing("gone"), errno.EIO),
        (PermissionDenied("no"), errno.EPERM),
    ],
)
def test_numbers_that_clients_get(
    plugin: Any, errors: list[int], failure: Exception, number: int
) -> None:
    device = FakeDevice(failure)
    plugin.thread.kept = True
    calls = (
        lambda: plugin.pwrite(device, b"x", 0, 0),
        lambda: plugin.zero(device, 1, 0, 0),
        lambda: plugin.trim(device, 1, 0, 0),
        lambda: plugin.flush(device, 0),
        lambda: plugin.extents(device, 1, 0, 0),
    )
    for call in calls:
        with pytest.raises(type(failure)):
            call()
    assert errors == [number] * len(calls)
    assert plugin.format_exception(failure) == [str(failure)]

"""What the plugin does besides answering. With nbdkit itself: tests/e2e."""

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from store.backends.local import LocalBackend
from store.repositories.settings import RepositorySettings
from tests.fakes.datastores import bare_backend


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    nbdkit = ModuleType("nbdkit")
    vars(nbdkit).update(EXTENT_HOLE=1, EXTENT_ZERO=2, FLAG_FUA=2, FUA_NONE=0, FUA_NATIVE=2)
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

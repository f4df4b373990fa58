import pytest

from store.operations.restore import tree


@pytest.fixture(params=[True, False], ids=["many-at-once", "one-by-one"])
def small_files(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restore with the C module, and as if it had not been built."""
    if request.param:
        pytest.importorskip("store.operations._inode")
    else:
        monkeypatch.setattr(tree, "small_files", None)

"""What a user may write as a repository."""

from pathlib import Path

import pytest

from store.datastore.repository import local_path, open_datastore
from store.errors import InvalidName, NotFound
from tests.fakes.datastores import bare_backend


def test_local_repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare_backend(tmp_path / "store").close()
    monkeypatch.chdir(tmp_path)
    for repository in (
        str(tmp_path / "store"),
        f"file://{tmp_path}/store",
        "./store",
        f"{tmp_path}/store/../store",
    ):
        with open_datastore(repository) as datastore:
            assert datastore.name == "store"
            assert datastore.list_groups() == []


@pytest.mark.parametrize(
    "repository",
    [
        "",
        "file://relative",
        "s3://bucket/store",
        "root@pam@host:store",
        "host:store",
        "store",
        "ftp://x/y",
    ],
)
def test_repositories_that_do_not_work(repository: str) -> None:
    with pytest.raises(InvalidName):
        local_path(repository)


def test_no_datastore(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        open_datastore(str(tmp_path / "none"))
    with pytest.raises(NotFound, match="not a datastore"):
        open_datastore(str(tmp_path))
    with pytest.raises(InvalidName, match="name too long"):
        open_datastore(f"/{'x' * 5000}")

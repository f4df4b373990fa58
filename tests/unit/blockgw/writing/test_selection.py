"""What `--writable WHAT` means."""

from pathlib import Path

import pytest

from blockgw.settings import Settings
from blockgw.writing.selection import HeadOptions, HeadSelection, select_head
from store.datastore.datastore import Datastore
from store.errors import InvalidName, NotFound
from store.format.manifest import CryptMode
from store.heads.sealing.policy import SealPolicy
from store.names import BackupGroup
from store.repositories.settings import RepositorySettings
from tests.fakes.datastores import GROUP, ROOT, local_datastore, snapshot, write_snapshot

OPTIONS = HeadOptions(SealPolicy(60, at_end=True), CryptMode.ENCRYPT, "/heads", 1 << 30, 1 << 20)


@pytest.fixture
def datastore(tmp_path: Path) -> Datastore:
    made = local_datastore(tmp_path / "vault")
    for day in (1, 2):
        write_snapshot(made, snapshot(day))
    return made


def select(datastore: Datastore, text: str, label: str = "") -> HeadSelection:
    return select_head(datastore, ROOT, text, label, HeadOptions())


def test_current(datastore: Datastore) -> None:
    assert select(datastore, "host/web01/current") == HeadSelection(ROOT, GROUP)
    assert select(datastore, "host/new/current/a.img") == HeadSelection(
        ROOT, BackupGroup("host", "new"), "a.img"
    )


def test_clones(datastore: Datastore) -> None:
    newest = select(datastore, "host/web01")
    assert (newest.clone_of, newest.archive, newest.is_temporary) == (snapshot(2), None, True)
    assert newest.label != select(datastore, "host/web01").label
    kept = select(datastore, f"{snapshot(1)}/disk.img", "test")
    assert kept == HeadSelection(ROOT, GROUP, "disk.img", snapshot(1), "test")
    assert not kept.is_temporary


@pytest.mark.parametrize(
    ("text", "label", "error"),
    [
        ("host/web01/current/a/b", "", InvalidName),
        ("host/web01/current", "x", InvalidName),
        ("host/web01", "export-1", InvalidName),
        ("host/web01", "a/b", InvalidName),
        ("host/none", "", NotFound),
        ("host", "", InvalidName),
    ],
)
def test_refused(datastore: Datastore, text: str, label: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        select(datastore, text, label)


def test_a_size_is_of_one_image(datastore: Datastore) -> None:
    with pytest.raises(InvalidName, match="--size is of one image"):
        select_head(datastore, ROOT, "host/web01/current", "", OPTIONS)


@pytest.mark.parametrize(
    "selection",
    [
        HeadSelection(ROOT, GROUP),
        HeadSelection(ROOT, GROUP, "disk.img", snapshot(1), "test", OPTIONS),
    ],
)
def test_through_the_pipe(selection: HeadSelection) -> None:
    settings = Settings(RepositorySettings("/v"), selection, 3, bytes(32))
    assert Settings.decode(settings.encode()) == settings

"""`vaultway head`: what it prints, and what it refuses."""

import json
from pathlib import Path

import pytest

from store.heads import Heads
from store.heads.control import Control
from tests.fakes.datastores import GROUP, ROOT, local_datastore
from tests.fakes.heads import move_all
from tests.unit.store.cli.conftest import KEYS, Vaultway


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A vault, and a head with a file in it."""
    with Heads(local_datastore(tmp_path / "vault"), tmp_path / "heads").open(ROOT, GROUP) as head:
        tree = head.create_tree("root.pxar")
        tree.write(tree.create(tree.root, b"f", 0o644, 0, 0).number, 0, b"content")
    return tmp_path


def options(place: Path) -> list[str]:
    return ["--repository", str(place / "vault"), "--heads", str(place / "heads")]


def test_list_and_seal(vaultway: Vaultway, place: Path) -> None:
    listed = vaultway("head", "list", *options(place), "--output-format", "json")
    (record,) = json.loads(listed.out)
    assert record["group"] == "host/web01"
    assert record["dirty"] > 0
    assert record["holder"] is None
    text = vaultway("head", "list", *options(place)).out
    assert "root.pxar" in text
    assert "sealed host/web01/" in vaultway("head", "seal", "host/web01", *options(place)).out
    again = vaultway("head", "seal", "host/web01", *options(place))
    assert "nothing to seal: host/web01 is as host/web01/" in again.out
    (record,) = json.loads(vaultway("head", "list", *options(place), "--output-format", "json").out)
    assert record["dirty"] == 0


def test_list_counts_what_was_moved_to_the_datastore(vaultway: Vaultway, place: Path) -> None:
    with Heads(local_datastore_again(place), place / "heads").open(ROOT, GROUP) as head:
        head.create_image("disk.img", 8 << 20).write(0, b"x" * (8 << 20))
        move_all(head)
    (record,) = json.loads(vaultway("head", "list", *options(place), "--output-format", "json").out)
    assert record["moved"] == (8 << 20) + len(b"content")
    assert record["dirty"] >= record["moved"]
    assert " 8 MiB " in vaultway("head", "list", *options(place)).out


def test_discard_asks(vaultway: Vaultway, place: Path) -> None:
    refused = vaultway("head", "discard", "host/web01", *options(place))
    assert refused.code == 2
    assert "use --yes" in refused.err
    done = vaultway("head", "discard", "host/web01", "--yes", *options(place))
    assert done.out == "discarded the head of host/web01\n"
    gone = vaultway("head", "seal", "host/web01", *options(place))
    assert gone.code == 10
    assert "has no head on this machine" in gone.err


def test_a_head_in_use(vaultway: Vaultway, place: Path) -> None:
    with Heads(local_datastore_again(place), place / "heads").open(ROOT, GROUP):
        refused = vaultway("head", "seal", "host/web01", *options(place))
    assert refused.code == 12
    assert "is in use by process" in refused.err


def local_datastore_again(place: Path):  # type: ignore[no-untyped-def] # noqa: ANN201
    from store.backends.local.nfs import open_directory
    from store.datastore.datastore import Datastore

    return Datastore("vault", open_directory(str(place / "vault")))


def test_who_has_the_head_has_the_key(vaultway: Vaultway, place: Path) -> None:
    """In a cron job nobody can be asked for its passphrase."""
    locked = str(KEYS / "scrypt.json")
    key = ["--keyfile", locked, "--crypt-mode", "encrypt"]
    heads = Heads(local_datastore_again(place), place / "heads")
    sealed = {"snapshot": "host/web01/2025-01-01T00:00:00Z"}
    with Control(heads.path(ROOT, GROUP), {"seal": lambda _: sealed}):
        done = vaultway("head", "seal", "host/web01", *options(place), *key)
    assert done.out == "sealed host/web01/2025-01-01T00:00:00Z\n"
    refused = vaultway("head", "seal", "host/web01", *options(place), *key)
    assert refused.code == 13
    assert "no terminal to ask on" in refused.err

"""What PBS's client printed for the golden datastore, we print for it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from store.datastore.datastore import Datastore
from store.format.manifest import Manifest
from store.names import Namespace, Snapshot
from tests.unit.store.cli.conftest import EXPECTED, Vaultway

NAMESPACES = {
    "root": "",
    "prod": "prod",
    "prod_customer-x": "prod/customer-x",
    "a_b_c_d_e_f_g": "a/b/c/d/e/f/g",
}


@pytest.fixture
def datastore(golden: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = golden / "datastore"
    monkeypatch.setenv("PBS_REPOSITORY", str(path))
    return path


@pytest.fixture
def writable(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy without chunks: only manifests are read and changed here."""
    path = tmp_path / "datastore"
    shutil.copytree(golden / "datastore", path, ignore=shutil.ignore_patterns(".chunks"))
    (path / ".chunks").mkdir()
    monkeypatch.setenv("PBS_REPOSITORY", str(path))
    return path


def json_of(vaultway: Vaultway, *arguments: object) -> Any:
    done = vaultway(*arguments, "--output-format", "json")
    assert (done.code, done.err) == (0, "")
    return json.loads(done.out)


def by_name(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """PBS lists in the order of the directory; ours is sorted."""
    for row in rows:
        if row["files"] and isinstance(row["files"][0], str):
            row["files"].sort()
    return sorted(rows, key=lambda r: (r["backup-type"], r["backup-id"], r.get("backup-time")))


@pytest.mark.parametrize("name", NAMESPACES)
@pytest.mark.parametrize("noun", ["snapshot", "group"])
def test_json(vaultway: Vaultway, datastore: Path, noun: str, name: str) -> None:
    expected = json.loads((EXPECTED / f"{noun}-list.{name}.json").read_bytes())
    assert by_name(json_of(vaultway, noun, "list", "--ns", NAMESPACES[name])) == by_name(expected)


@pytest.mark.parametrize(
    "snapshot",
    [
        "host/v1/2025-01-01",
        "host/split/2025-01-02",
        "host/encrypted/2025-01-01",
        "vm/100/2025-01-01",
    ],
)
def test_files_json(vaultway: Vaultway, datastore: Path, snapshot: str) -> None:
    name = f"snapshot-files.{snapshot.replace('/', '_')}T00:00:00Z.json"
    expected = json.loads((EXPECTED / name).read_bytes())
    assert json_of(vaultway, "snapshot", "files", f"{snapshot}T00:00:00Z") == expected


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("snapshot", "list", "host/v1"), "snapshot-list.v1.txt"),
        (("snapshot", "files", "host/v1/2025-01-01T00:00:00Z"), "snapshot-files.v1.txt"),
        (("group", "list"), "group-list.txt"),
    ],
)
def test_text(vaultway: Vaultway, datastore: Path, arguments: tuple[str, ...], name: str) -> None:
    done = vaultway(*arguments)
    assert (done.code, done.err) == (0, "")
    assert done.out == (EXPECTED / name).read_text()


def test_namespaces(vaultway: Vaultway, datastore: Path) -> None:
    expected = json.loads((EXPECTED / "namespace-list.json").read_bytes())
    assert json_of(vaultway, "namespace", "list") == expected
    names = json_of(vaultway, "namespace", "list", "--ns", "a", "--max-depth", "1")
    assert names == {"data": [{"ns": "a"}, {"ns": "a/b"}]}


def test_status(vaultway: Vaultway, datastore: Path) -> None:
    expected = json.loads((EXPECTED / "status.json").read_bytes())
    found = json_of(vaultway, "datastore", "status")
    assert set(found) == set(expected)
    assert found["backend-type"] == "filesystem"
    assert 0 < found["used"] < found["total"]


def test_namespace_of_the_environment(
    vaultway: Vaultway, datastore: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PBS_NAMESPACE", "prod/customer-x")
    assert [row["backup-id"] for row in json_of(vaultway, "group", "list")] == ["200"]
    assert len(json_of(vaultway, "group", "list", "--ns", "")) == 8


def test_show(vaultway: Vaultway, datastore: Path) -> None:
    manifest = json_of(vaultway, "snapshot", "show", "host/v1/2025-01-01T00:00:00Z")
    assert set(manifest) == {
        "backup-id", "backup-time", "backup-type", "files", "signature", "unprotected",
    }  # fmt: skip
    text = vaultway("snapshot", "show", "vm/101").out
    assert "vm/101/2025-01-02T00:00:00Z" in text
    assert "17:8c:0c:37:f9:27:f7:0f" in text


def test_notes(vaultway: Vaultway, writable: Path) -> None:
    old = "first line\nsecond line, ünïcödé"
    snapshot = "host/v1/2025-01-01T00:00:00Z"
    assert vaultway("snapshot", "notes", "show", snapshot).out == f"{old}\n"
    assert vaultway("snapshot", "notes", "update", snapshot, "new\nnotes").code == 0
    assert json_of(vaultway, "snapshot", "notes", "show", snapshot) == {"notes": "new\nnotes"}
    listed = json_of(vaultway, "snapshot", "list", "host/v1")
    assert listed[0]["comment"] == "new"
    assert vaultway("snapshot", "notes", "update", snapshot, "").code == 0
    assert vaultway("snapshot", "notes", "show", snapshot).out == ""
    assert "comment" not in json_of(vaultway, "snapshot", "list", "host/v1")[0]


def test_protection(vaultway: Vaultway, writable: Path) -> None:
    snapshot = "host/v1/2025-01-01T00:00:00Z"
    assert vaultway("snapshot", "protected", "show", snapshot).out == "true\n"
    done = vaultway("snapshot", "forget", snapshot)
    assert done.code == 11
    assert snapshot in done.err
    assert vaultway("snapshot", "protected", "update", snapshot, "false").code == 0
    assert json_of(vaultway, "snapshot", "protected", "show", snapshot) == {"protected": False}
    assert vaultway("snapshot", "forget", snapshot).code == 0
    assert vaultway("snapshot", "files", snapshot).code == 10
    assert vaultway("snapshot", "protect", "host/v1").code == 0
    assert json_of(vaultway, "snapshot", "list", "host/v1")[0]["protected"] is True


def test_forget_wants_the_whole_name(vaultway: Vaultway, datastore: Path) -> None:
    done = vaultway("snapshot", "forget", "host/v1")
    assert done.code == 2
    assert "in full" in done.err


def test_groups_change(vaultway: Vaultway, writable: Path) -> None:
    assert vaultway("group", "change-owner", "vm/100", "me@pbs!token").code == 0
    assert json_of(vaultway, "snapshot", "list", "vm/100")[0]["owner"] == "me@pbs!token"
    assert vaultway("group", "change-owner", "vm/100", "nobody").code == 2
    assert vaultway("group", "forget", "vm/100").code == 0
    assert json_of(vaultway, "snapshot", "list", "vm/100") == []
    assert vaultway("group", "forget", "host/v1").code == 11


def test_namespaces_change(vaultway: Vaultway, writable: Path) -> None:
    assert vaultway("namespace", "create", "prod/web").code == 0
    assert vaultway("namespace", "create", "prod/web").code == 10
    assert vaultway("namespace", "create", "none/web").code == 10
    assert vaultway("namespace", "create", "prod/.web").code == 2
    assert vaultway("namespace", "create").code == 2
    assert vaultway("namespace", "delete", "--ns", "prod/web").code == 0
    assert vaultway("namespace", "delete", "prod/customer-x").code == 11
    assert vaultway("namespace", "delete", "prod/customer-x", "--delete-groups").code == 0
    assert {"ns": "prod/customer-x"} not in json_of(vaultway, "namespace", "list")["data"]


@pytest.mark.expect_warnings
def test_a_damaged_manifest_is_listed_with_a_warning(vaultway: Vaultway, writable: Path) -> None:
    manifest = writable / "host/v1/2025-01-02T00:00:00Z/index.json.blob"
    raw = bytearray(manifest.read_bytes())
    raw[-1] ^= 1
    manifest.write_bytes(raw)
    done = vaultway("snapshot", "list", "host/v1", "--output-format", "json")
    assert done.code == 0
    assert done.err.startswith("warning: ")
    first, second = json.loads(done.out)
    assert first["size"] == 80766540
    assert {"filename": "root.pxar.didx"} in second["files"]
    assert vaultway("snapshot", "files", "host/v1").code in {14, 15}


@pytest.mark.expect_warnings
@pytest.mark.parametrize("name", ["index.json.blob", "../owner"])
def test_a_file_that_cannot_be_read_does_not_end_a_list(
    vaultway: Vaultway, writable: Path, name: str
) -> None:
    path = writable / "host/v1/2025-01-02T00:00:00Z" / name
    path.unlink()
    os.mkfifo(path)
    for noun in ("snapshot", "group"):
        done = vaultway(noun, "list", "--output-format", "json")
        assert done.code == 0
        assert "host/v1" in done.err
        assert {row["backup-id"] for row in json.loads(done.out)} > {"v1", "split"}


@pytest.mark.expect_warnings
def test_a_group_without_an_owner_is_listed_with_a_warning(
    vaultway: Vaultway, writable: Path
) -> None:
    (writable / "host/v1/owner").unlink()
    for noun in ("snapshot", "group"):
        done = vaultway(noun, "list", "--output-format", "json")
        assert done.code == 0
        assert "host/v1 has no owner" in done.err
        rows = json.loads(done.out)
        assert {row["backup-id"] for row in rows if "owner" not in row} == {"v1"}
        assert any("owner" in row for row in rows)


def test_a_snapshot_removed_while_it_is_listed(
    vaultway: Vaultway, writable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Datastore.read_manifest

    def remove_first(self: Datastore, namespace: Namespace, snapshot: Snapshot) -> Manifest:
        if str(snapshot) == "host/v1/2025-01-02T00:00:00Z":
            shutil.rmtree(writable / str(snapshot), ignore_errors=True)
        return read(self, namespace, snapshot)

    monkeypatch.setattr(Datastore, "read_manifest", remove_first)
    group = next(row for row in json_of(vaultway, "group", "list") if row["backup-id"] == "v1")
    assert (group["backup-count"], group["last-backup"]) == (1, 1735689600)
    shutil.copytree(
        writable / "host/v1/2025-01-01T00:00:00Z", writable / "host/v1/2025-01-02T00:00:00Z"
    )
    found = json_of(vaultway, "snapshot", "list", "host/v1")
    assert [row["backup-time"] for row in found] == [1735689600]


@pytest.mark.parametrize("arguments", [("forget",), ("change-owner", "me@pbs")])
def test_no_such_group(vaultway: Vaultway, datastore: Path, arguments: tuple[str, ...]) -> None:
    verb, *owner = arguments
    done = vaultway("group", verb, "vm/999", *owner, "--ns", "prod")
    assert done == (10, "", "vaultway: backup group vm/999 does not exist in namespace prod\n")


def test_missing_things(vaultway: Vaultway, datastore: Path) -> None:
    for arguments in (
        ("snapshot", "files", "host/none"),
        ("snapshot", "files", "host/v1/2020-01-01T00:00:00Z"),
        ("group", "list", "--ns", "none"),
        ("snapshot", "list", "--repository", "/nonexistent"),
    ):
        done = vaultway(*arguments)
        assert (done.code, done.out) == (10, "")
        assert len(done.err.splitlines()) == 1

"""`snapshot files`, `find`, `cat`, `diff`, `catalog dump` and `restore ARCHIVE/PATH` on what a PBS
wrote."""

import hashlib
import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from tests.golden_snapshots import KEY_PASSWORD
from tests.unit.store.cli.conftest import EXPECTED, KEYS, Vaultway

SPLIT, V1, VM = "host/split/2025-01-01T00:00:00Z", "host/v1/2025-01-01T00:00:00Z", "vm/100"


@pytest.fixture(autouse=True)
def datastore(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PBS_REPOSITORY", str(golden / "datastore"))


@pytest.fixture(scope="module")
def tree() -> dict[str, dict[str, Any]]:
    """What list-tree.py said of the source, by path."""
    lines = (EXPECTED / "tree.1.jsonl").read_text().splitlines()
    return {fact["path"]: fact for fact in map(json.loads, lines)}


def lines_of(vaultway: Vaultway, *arguments: object) -> list[str]:
    done = vaultway(*arguments)
    assert (done.code, done.err) == (0, "")
    return done.out.splitlines()


def records(vaultway: Vaultway, *arguments: object) -> list[dict[str, Any]]:
    out = lines_of(vaultway, *arguments, "--output-format", "json")
    return [json.loads(line) for line in out]


def test_files_of_the_snapshot_itself(vaultway: Vaultway) -> None:
    assert any("root.mpxar.didx" in line for line in lines_of(vaultway, "snapshot", "files", SPLIT))
    done = vaultway("snapshot", "files", SPLIT, "-R")
    assert done.code == 2
    assert "name an archive" in done.err


@pytest.mark.parametrize("snapshot", [SPLIT, V1])
def test_files_in_an_archive(vaultway: Vaultway, snapshot: str) -> None:
    found = lines_of(vaultway, "snapshot", "files", snapshot, "root.pxar/names")
    assert r"$'root.pxar/names/new\nline'" in found
    assert r"$'root.pxar/names/\xff\xfe-not-utf8'" in found
    everything = lines_of(vaultway, "snapshot", "files", snapshot, "root.pxar", "-R")
    assert set(found) < set(everything)
    assert lines_of(vaultway, "snapshot", "files", snapshot, "root.pxar/names/-dash", "-l") == [
        "-rw-r--r--     0     0            5 2023-11-14T22:30:40Z root.pxar/names/-dash"
    ]


@pytest.mark.parametrize("snapshot", [SPLIT, V1])
def test_every_fact_of_every_file(
    vaultway: Vaultway, tree: dict[str, dict[str, Any]], snapshot: str
) -> None:
    found = {}
    for record in records(vaultway, "snapshot", "find", snapshot):
        raw = (
            b64decode(record["path-base64"]) if "path-base64" in record else record["path"].encode()
        )
        found[raw.removeprefix(b"root.pxar/").decode("latin-1")] = record
    assert len(found) > 800
    expected = {path: fact for path, fact in tree.items() if path not in ("", ".")}
    assert sorted(found) == sorted(expected)
    for path, fact in expected.items():
        record = found[path]
        assert record["mode"] == int(fact["mode"], 8), path
        assert (record["uid"], record["gid"]) == (fact["uid"], fact["gid"]), path
        assert record["mtime"] == fact["mtime_ns"] // 10**9, path
        assert record.get("size") == fact.get("size"), path


def test_find(vaultway: Vaultway) -> None:
    def find(*options: object) -> list[str]:
        return lines_of(vaultway, "snapshot", "find", *options)

    assert find(SPLIT, "--type", "f", "--size", "+30M") == ["root.pxar/big/sparse-40m.bin"]
    assert find(V1, "--type", "f", "--size", "+30M") == ["root.pxar/big/sparse-40m.bin"]
    assert find(SPLIT, "root.pxar/many", "--iname", "FILE-000[01].TXT") == [
        "root.pxar/many/file-0000.txt",
        "root.pxar/many/file-0001.txt",
    ]
    assert find(SPLIT, "--path", "/big/*", "--older", "2000-01-01T00:00:00Z") == [
        "root.pxar/big/one-byte"
    ]
    assert find(SPLIT, "--path", "/big/*", "--size", "-2") == find(
        SPLIT, "root.pxar/big", "--size=-2"
    )
    assert find("host/split", "--all-snapshots", "--name", "added.txt") == [
        "host/split/2025-01-02T00:00:00Z/root.pxar/new/added.txt",
        "host/split/2025-01-03T00:00:00Z/root.pxar/new/added.txt",
    ]
    assert find("host/several", "many.pxar", "--all-snapshots", "--name", "no") == []


def test_find_prints_names_as_they_are_for_xargs(vaultway: Vaultway) -> None:
    done = vaultway("snapshot", "find", SPLIT, "--name", "*not-utf8", "-0")
    assert done.out.endswith("-not-utf8\0")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["find", SPLIT, "--size", "big"], 2, "size 'big'"),
        (["find", SPLIT, "--type", "q"], 2, "use letters"),
        (["find", SPLIT, "--name", "["], 2, "pattern"),
        (["find", SPLIT, "--newer", "soon"], 2, "not a time"),
        (["find", SPLIT, "root.pxar/none"], 10, "no none"),
        (["find", SPLIT, "none.pxar"], 10, "there are root.pxar"),
        (["find", SPLIT, "--all-snapshots"], 2, "takes a group"),
        (["find", "host/none", "--all-snapshots"], 10, "host/none"),
        (["files", VM, "qemu-server.conf"], 2, "snapshot cat"),
        (["cat", SPLIT, "root.pxar/names"], 2, "is a directory"),
        (["cat", SPLIT, "root.pxar/special/fifo"], 2, "is a fifo"),
        (["cat", SPLIT, "root.pxar/links/symlink-dangling"], 10, "no links/no"),
        (["cat", "host/encrypted", "root.pxar/names/-dash"], 13, "needs the key"),
        (["find", "host/encrypted", "root.pxar"], 13, "needs the key"),
        (["diff", SPLIT, V1, "nothing"], 10, "no such archive"),
    ],
)
def test_what_goes_wrong(vaultway: Vaultway, arguments: list[str], code: int, text: str) -> None:
    done = vaultway("snapshot", *arguments)
    assert (done.code, done.out) == (code, "")
    assert text in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("snapshot", [SPLIT, V1])
def test_cat(vaultway: Vaultway, tree: dict[str, dict[str, Any]], snapshot: str) -> None:
    names = ["attributes/access-acl", "many/file-0007.txt"]
    out = b""
    for name in names:
        out += vaultway("snapshot", "cat", snapshot, f"root.pxar/{name}").out.encode()
    both = vaultway("snapshot", "cat", snapshot, *(f"root.pxar/{name}" for name in names))
    assert both.out.encode() == out
    file = vaultway("snapshot", "cat", snapshot, "root.pxar/many/file-0007.txt").out.encode()
    assert hashlib.sha256(file).hexdigest() == tree["many/file-0007.txt"]["sha256"]


def test_with_a_key(vaultway: Vaultway, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEY_PASSWORD.items():
        monkeypatch.setenv(name, value)
    key = ("--keyfile", KEYS / "scrypt.json")
    found = lines_of(
        vaultway, "snapshot", "find", "host/encrypted", "--all-snapshots", "--name=-dash", *key
    )
    assert len(found) == 2
    done = vaultway("snapshot", "diff", "host/split/2025-01-02T00:00:00Z", "host/encrypted", *key)
    assert (done.code, done.out, done.err) == (0, "", "no differences\n")


def test_diff(vaultway: Vaultway) -> None:
    done = vaultway("snapshot", "diff", SPLIT, "host/split/2025-01-02T00:00:00Z")
    assert done.err == "3 added, 2 removed, 11 modified, 4 changed\n"
    out = done.out.splitlines()
    assert "+ root.pxar/new/" in out
    assert "M root.pxar/links/b-hardlink" in out
    assert "U root.pxar/many/file-0333.txt" in out
    found = records(
        vaultway, "snapshot", "diff", SPLIT, "host/split/2025-01-02T00:00:00Z", "root.pxar/new"
    )
    assert [record["change"] + record["path"] for record in found] == [
        "+root.pxar/new",
        "+root.pxar/new/added.txt",
    ]
    done = vaultway("snapshot", "diff", SPLIT, V1, "--content")
    assert (done.out, done.err) == ("", "no differences\n")


def test_diff_of_images(vaultway: Vaultway) -> None:
    days = [f"vm/100/2025-01-{day:02d}T00:00:00Z" for day in (1, 2)]
    done = vaultway("snapshot", "diff", *days, "drive-scsi0.img", "-v", "--quiet")
    assert done.out == "M drive-scsi0.img: 1 chunk, 4 MiB\n    0xc00000 4 MiB\n"
    assert done.err == ""
    (record,) = records(vaultway, "snapshot", "diff", *days, "drive-scsi0.img")
    assert record["stretches"] == [{"offset": 0xC00000, "size": 4 << 20}]


def test_dump_says_the_same_of_both_formats(vaultway: Vaultway) -> None:
    dumps = [sorted(lines_of(vaultway, "catalog", "dump", name)) for name in (SPLIT, V1)]
    assert dumps[0] == dumps[1]
    assert "f root.pxar/names/-dash 5 2023-11-14T22:30:40Z" in dumps[0]


def test_restore_of_a_directory(vaultway: Vaultway, tmp_path: Path) -> None:
    done = vaultway("restore", SPLIT, "root.pxar/names", tmp_path / "out", "--ignore-ownership")
    assert done.code == 0
    assert (tmp_path / "out/-dash").exists()

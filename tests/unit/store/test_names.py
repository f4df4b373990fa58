"""The value types: what they take, what they refuse, how they are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.errors import InvalidName
from store.names import (
    BackupGroup,
    Digest,
    Fingerprint,
    Namespace,
    Snapshot,
    check_file_name,
    check_safe_id,
    format_backup_time,
    parse_backup_time,
)

LAST_SECOND = 253_402_300_799  # of the year 9999
SAFE_IDS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._\-]{0,20}", fullmatch=True)


@given(st.integers(1, LAST_SECOND))
def test_times_round_trip(seconds: int) -> None:
    assert parse_backup_time(format_backup_time(seconds)) == seconds


@given(st.text(max_size=30))
def test_a_time_is_read_or_refused(text: str) -> None:
    try:
        seconds = parse_backup_time(text)
    except InvalidName:
        return
    assert format_backup_time(seconds) == text


@pytest.mark.parametrize(
    "text",
    [
        "1970-01-01T00:00:00Z",
        "2025-02-30T00:00:00Z",
        "2025-01-01T00:00:00+00:00",
        "2025-1-1T0:0:0Z",
    ],
)
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(InvalidName, match="backup time"):
        parse_backup_time(text)


@pytest.mark.parametrize("seconds", [0, -1, LAST_SECOND + 1])
def test_seconds_out_of_range(seconds: int) -> None:
    with pytest.raises(InvalidName):
        format_backup_time(seconds)


@given(st.lists(SAFE_IDS, max_size=7).map(tuple))
def test_namespaces_round_trip(components: tuple[str, ...]) -> None:
    namespace = Namespace(components)
    assert Namespace.parse(str(namespace)) == namespace
    assert namespace.path == "/".join(f"ns/{component}" for component in components)


@pytest.mark.parametrize(
    "text", ["/", "a//b", "a/..", ".", "a/b/c/d/e/f/g/h", "x" * 257, "a\0b", "é"]
)
def test_namespaces_that_are_none(text: str) -> None:
    with pytest.raises(InvalidName):
        Namespace.parse(text)


def test_namespace_family() -> None:
    namespace = Namespace.parse("a/b")
    assert namespace.parent == Namespace(("a",))
    assert namespace.child("c") == Namespace(("a", "b", "c"))
    assert Namespace().parent == Namespace()
    assert (str(Namespace()), Namespace().path) == ("", "")


@given(SAFE_IDS, st.integers(1, LAST_SECOND))
def test_snapshots_round_trip(identifier: str, seconds: int) -> None:
    snapshot = Snapshot(BackupGroup("vm", identifier), seconds)
    assert Snapshot.parse(str(snapshot)) == snapshot
    assert snapshot.path(Namespace(("a",))) == f"ns/a/{snapshot}"
    assert snapshot.path(Namespace()) == str(snapshot)


@pytest.mark.parametrize("text", ["vm", "vm/", "lxc/1", "vm/../x", "vm/1/2", "VM/1", "vm/-1", ""])
def test_groups_that_are_none(text: str) -> None:
    with pytest.raises(InvalidName):
        BackupGroup.parse(text)


def test_snapshots_are_ordered_by_time() -> None:
    early, late = (Snapshot(BackupGroup("vm", "1"), seconds) for seconds in (9, 10))
    assert early < late


def test_digests_and_fingerprints() -> None:
    digest, fingerprint = Digest(bytes(range(32))), Fingerprint(bytes(range(32)))
    assert str(digest) == bytes(range(32)).hex()
    assert fingerprint.short == "00:01:02:03:04:05:06:07"
    assert Fingerprint.parse(str(fingerprint)) == fingerprint
    with pytest.raises(InvalidName):
        Digest(b"short")
    with pytest.raises(InvalidName):
        Fingerprint.parse("zz")


@pytest.mark.parametrize("name", ["root.pxar.didx", "a.fidx", "index.json.blob", "_x.blob"])
def test_file_names(name: str) -> None:
    assert check_file_name(name) == name


@pytest.mark.parametrize(
    "name", ["../a.blob", "a/b.blob", ".hidden.blob", "a.tmp", "a.blob\n", ".blob"]
)
def test_file_names_that_are_none(name: str) -> None:
    with pytest.raises(InvalidName):
        check_file_name(name)


@pytest.mark.parametrize("text", ["", "a b", "-a", ".a", "a\n"])
def test_ids_that_are_not_safe(text: str) -> None:
    with pytest.raises(InvalidName, match="backup id"):
        check_safe_id(text, "backup id")

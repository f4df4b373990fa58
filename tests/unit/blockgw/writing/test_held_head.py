"""The head of an export: prepared, open, sealed, ended, thrown away."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from blockgw.writing import preparing
from blockgw.writing.held_head import HeldHead, heads_of, open_head
from blockgw.writing.preparing import PreparedHead
from blockgw.writing.selection import HeadOptions, HeadSelection, select_head
from store.datastore.datastore import Datastore
from store.errors import AlreadyExists, BackendError, InvalidName, Locked, NotFound, StoreError
from store.format.crypt import CryptConfig
from store.format.manifest import CryptMode
from store.heads.control import ask
from store.heads.sealing.policy import SealPolicy
from store.names import BackupGroup, Namespace
from tests.fakes.datastores import MIB, ROOT, local_datastore, snapshot, write_snapshot

NEW = BackupGroup("vm", "1")
CURRENT = "vm/1/current/disk.img"


@pytest.fixture
def datastore(tmp_path: Path) -> Datastore:
    made = local_datastore(tmp_path / "vault")
    write_snapshot(made, snapshot(1))
    return made


@pytest.fixture
def options(tmp_path: Path) -> HeadOptions:
    return HeadOptions(directory=str(tmp_path / "heads"), size=MIB)


@pytest.fixture
def selection(datastore: Datastore, options: HeadOptions) -> HeadSelection:
    return select_head(datastore, ROOT, CURRENT, "", options)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def hold(selection: HeadSelection, datastore: Datastore, clock: Clock | None = None) -> HeldHead:
    head = open_head(selection, heads_of(selection, datastore, None))
    return HeldHead(head, selection, clock or Clock())


@pytest.fixture
def held(datastore: Datastore, selection: HeadSelection) -> Iterator[HeldHead]:
    PreparedHead(selection, datastore, None)
    held = hold(selection, datastore)
    yield held
    held.end()


def with_policy(selection: HeadSelection, text: str) -> HeadSelection:
    return replace(selection, options=replace(selection.options, seal=SealPolicy.parse(text)))


def labels(selection: HeadSelection, datastore: Datastore) -> list[str]:
    return [info.label for info in heads_of(selection, datastore, None).list()]


def test_make_and_grow(datastore: Datastore, selection: HeadSelection) -> None:
    assert PreparedHead(selection, datastore, None).name == CURRENT
    larger = replace(selection, options=replace(selection.options, size=2 * MIB))
    PreparedHead(larger, datastore, None)
    with pytest.raises(InvalidName, match="does not shrink"):
        PreparedHead(selection, datastore, None)
    as_it_is = replace(selection, options=replace(selection.options, size=None))
    PreparedHead(as_it_is, datastore, None)
    held = hold(as_it_is, datastore)
    assert held.open("").size == 2 * MIB
    held.end()


def test_what_is_refused_leaves_nothing(datastore: Datastore, options: HeadOptions) -> None:
    no_size = replace(options, size=None)
    for text, error in (
        ("vm/1/current/disk.img", NotFound),
        ("host/web01/current/none.img", NotFound),
    ):
        selection = select_head(datastore, ROOT, text, "", no_size)
        with pytest.raises(error):
            PreparedHead(selection, datastore, None)
        assert labels(selection, datastore) == []
    elsewhere = select_head(datastore, Namespace.parse("none"), CURRENT, "", options)
    with pytest.raises(NotFound):
        PreparedHead(elsewhere, datastore, None)
    bad_name = select_head(datastore, ROOT, "vm/1/current/disk.raw", "", options)
    with pytest.raises(InvalidName):
        PreparedHead(bad_name, datastore, None)
    assert labels(bad_name, datastore) == []


def test_names(held: HeldHead) -> None:
    exports = held.exports
    assert exports.names() == [CURRENT]
    assert exports.default() == CURRENT
    for name in ("", "disk.img", "current/disk.img", CURRENT, f"/{CURRENT}"):
        assert exports.resolve(name) == "disk.img"
    for name in ("isk.img", "vm/2/current/disk.img", "other"):
        with pytest.raises(NotFound):
            exports.resolve(name)


def test_one_holder(held: HeldHead, datastore: Datastore, selection: HeadSelection) -> None:
    with pytest.raises(Locked, match="the head of vm/1 is in use by process"):
        PreparedHead(selection, datastore, None)


def test_seal_when_asked(held: HeldHead, datastore: Datastore, selection: HeadSelection) -> None:
    path = heads_of(selection, datastore, None).path(ROOT, NEW)
    held.open("").write(0, b"x" * 4096, fua=False)
    answer = ask(path, "seal", strict=False)
    assert answer == {"snapshot": str(datastore.list_snapshots(ROOT, NEW)[-1])}
    assert ask(path, "end") == {"snapshot": None}
    with pytest.raises(NotFound):
        ask(path, "end")
    with pytest.raises(BackendError, match="is ending"):
        held.open("").flush()


@pytest.mark.parametrize("policy", ["manual", "close"])
def test_end(datastore: Datastore, selection: HeadSelection, policy: str) -> None:
    selection = with_policy(selection, policy)
    prepared = PreparedHead(selection, datastore, None)
    held = hold(selection, datastore)
    held.open("").write(0, b"x" * 4096, fua=False)
    sealed = prepared.end()
    assert (sealed is None) == (policy == "manual")
    assert [str(found) for found in datastore.list_snapshots(ROOT, NEW)] == (
        [sealed] if sealed else []
    )
    assert prepared.end() is None, "nobody is there any more"
    held = hold(selection, datastore)
    target = bytearray(4096)
    held.open("").read_into(memoryview(target), 0)
    assert target == b"x" * 4096
    assert held.end() is None


def test_a_seal_that_fails_at_the_end(
    datastore: Datastore, selection: HeadSelection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asked for the end is told; the head is closed, with all that is in it."""
    selection = with_policy(selection, "close")
    prepared = PreparedHead(selection, datastore, None)
    held = hold(selection, datastore)
    held.open("").write(0, b"x" * 4096, fua=False)

    def fail(*_: object, **__: object) -> None:
        raise BackendError("the storage is gone")

    monkeypatch.setattr("store.heads.head.OpenHead.seal", fail)
    with pytest.raises(StoreError, match="the storage is gone") as raised:
        prepared.end()
    assert raised.value.exit_code == BackendError.exit_code
    hold(with_policy(selection, "manual"), datastore).end()


@pytest.mark.expect_warnings
def test_idle(
    datastore: Datastore, selection: HeadSelection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sealed once nobody has written for a while; a failure waits as long again."""
    selection, clock = with_policy(selection, "idle:10"), Clock()
    monkeypatch.setattr("blockgw.writing.held_head.LOOK_S", 1e6)
    PreparedHead(selection, datastore, None)
    held = hold(selection, datastore, clock)
    device = held.open("")

    def sealed_at(now: float) -> int:
        clock.now = now
        held.seal_if_idle()
        return len(datastore.list_snapshots(ROOT, NEW))

    device.write(0, b"x" * 4096, fua=False)
    assert sealed_at(5) == 0
    device.write(0, b"y" * 4096, fua=False)
    assert sealed_at(9) == 0
    assert sealed_at(14) == 0
    assert sealed_at(19.5) == 1
    assert sealed_at(99) == 1, "nothing was written since"
    device.write(0, b"z" * 4096, fua=False)
    with monkeypatch.context() as patched:
        patched.setattr(held, "seal", lambda: (_ for _ in ()).throw(BackendError("gone")))
        assert sealed_at(100) == 1
        assert sealed_at(111) == 1
    assert sealed_at(112) == 1
    assert sealed_at(122) == 2
    held.end()


def test_a_clone_is_thrown_away(
    datastore: Datastore, options: HeadOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = select_head(datastore, ROOT, "host/web01", "", replace(options, size=None))
    prepared = PreparedHead(clone, datastore, None)
    assert prepared.name == f"{snapshot(1)}/disk.img"
    assert labels(clone, datastore) == [clone.label]
    killed = select_head(datastore, ROOT, "host/web01", "", replace(options, size=None))
    PreparedHead(killed, datastore, None)
    prepared.throw_away()
    assert labels(clone, datastore) == [killed.label]
    monkeypatch.setattr(preparing, "ABANDONED_S", -1.0)
    last = PreparedHead(clone, datastore, None)
    assert labels(clone, datastore) == [clone.label], "the killed one's is swept away"
    last.throw_away()
    assert labels(clone, datastore) == []


def test_a_kept_clone(datastore: Datastore, options: HeadOptions) -> None:
    options = replace(options, size=None)
    write_snapshot(datastore, snapshot(2))
    clone = select_head(datastore, ROOT, str(snapshot(1)), "test", options)
    PreparedHead(clone, datastore, None).throw_away()
    assert labels(clone, datastore) == ["test"]
    other = select_head(datastore, ROOT, "host/web01", "test", options)
    with pytest.raises(AlreadyExists, match=f"stands on {snapshot(1)}"):
        PreparedHead(other, datastore, None)


def test_wrong_key(datastore: Datastore, selection: HeadSelection) -> None:
    encrypted = replace(selection, options=replace(selection.options, crypt_mode=CryptMode.ENCRYPT))
    PreparedHead(encrypted, datastore, CryptConfig(bytes(range(32))))
    with pytest.raises(StoreError, match="not the given") as raised:
        PreparedHead(encrypted, datastore, CryptConfig(bytes(32)))
    assert raised.value.exit_code == 13

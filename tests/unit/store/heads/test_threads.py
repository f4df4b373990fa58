"""Many threads on one head: nothing is lost, nobody waits for ever."""

import random
import threading
from collections.abc import Callable, Iterator

import pytest

from store.heads import Heads, WouldWait
from store.heads import journal as journal_module
from store.heads.head import OpenHead
from store.heads.journal import Journal
from tests.fakes.datastores import GROUP, ROOT

ROUNDS, SEALS = 150, 4
MIB = 1 << 20


def test_all_at_once(head: OpenHead) -> None:
    tree = head.create_tree("root.pxar")
    image = head.create_image("disk.img", 32 * MIB)
    failures: list[BaseException] = []
    sealed: list[int] = []

    def rounds() -> Iterator[int]:
        """So many, and on until there were some seals."""
        number = 0
        while number < ROUNDS or (len(sealed) < SEALS and not failures):
            yield number
            number += 1

    done = threading.Event()

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - for the main thread
                failures.append(error)

        return run

    contents: list[dict[bytes, bytes]] = [{} for _ in range(3)]

    def files(which: int) -> Callable[[], None]:
        chance, mine = random.Random(which), contents[which]
        directory = tree.mkdir(tree.root, b"d%d" % which, 0o755, 0, 0).number

        def work() -> None:
            for number in rounds():
                name = b"f%d" % chance.randrange(20)
                if name in mine and chance.random() < 0.3:
                    tree.unlink(directory, name)
                    del mine[name]
                    continue
                if name not in mine:
                    tree.create(directory, name, 0o644, 0, 0)
                    mine[name] = b""
                found = tree.lookup(directory, name)
                data = b"%d." % number * chance.randrange(1, 2000)
                tree.setattr(found.number, size=0)
                tree.write(found.number, 0, data)
                mine[name] = data
                assert tree.read(found.number, 0, len(data) + 1) == data
                if number % 10 == 0:
                    tree.sync(found.number)

        return work

    disk = bytearray(32 * MIB)

    def blocks(which: int) -> Callable[[], None]:
        chance, start = random.Random(which), which * 16 * MIB

        def work() -> None:
            for number in rounds():
                offset = start + chance.randrange(16 * 256) * 4096
                data = bytes([number % 255 + 1]) * 4096
                image.write(offset, data, fua=number % 20 == 0)
                disk[offset : offset + 4096] = data
                assert image.read(offset, 4096) == data

        return work

    def seals() -> None:
        while not done.is_set():
            head.seal()
            sealed.append(1)

    def looks() -> None:
        while not done.is_set():
            try:
                tree.at_once(tree.listing, tree.root)
                tree.at_once(tree.getattr, tree.root)
            except WouldWait:
                tree.listing(tree.root)

    workers = [guarded(files(which)) for which in range(3)]
    workers += [guarded(blocks(which)) for which in range(2)]
    threads = [threading.Thread(target=work) for work in workers]
    background = [threading.Thread(target=guarded(work)) for work in (seals, looks)]
    for thread in (*threads, *background):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    for thread in background:
        thread.join()
    assert not failures, failures
    assert image.read(0, len(disk)) == disk
    for which, mine in enumerate(contents):
        directory = tree.lookup(tree.root, b"d%d" % which).number
        found = {
            name: tree.read(attributes.number, 0, attributes.size)
            for name, attributes, _ in tree.iterate(directory)
        }
        assert found == mine


def test_what_nobody_syncs_is_durable_soon(heads: Heads, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = threading.Event()
    sync = Journal.sync

    def note(journal: Journal) -> None:
        sync(journal)
        committed.set()

    monkeypatch.setattr(journal_module, "COMMIT_INTERVAL_S", 0.02)
    with heads.open(ROOT, GROUP) as head:
        tree = head.create_tree("root.pxar")
        monkeypatch.setattr(Journal, "sync", note)
        file = tree.create(tree.root, b"f", 0o644, 0, 0).number
        tree.write(file, 0, b"content")
        for _ in range(2):  # the first may have begun before
            committed.clear()
            assert committed.wait(20)
        head.abandon()
    with heads.open(ROOT, GROUP) as head:
        tree = head.tree("root.pxar")
        assert tree.read(tree.lookup(tree.root, b"f").number, 0, 10) == b"content"


@pytest.mark.parametrize("call", ["fdatasync", "COMMIT"])
def test_a_disk_that_fails_acknowledges_nothing(
    head: OpenHead, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """See the errors, now and ever after: nobody knows what the disk has."""
    import os

    from store.errors import BackendError
    from store.heads.database import Rows

    tree = head.create_tree("root.pxar")
    file = tree.create(tree.root, b"f", 0o644, 0, 0).number
    tree.write(file, 0, b"x")
    execute = Rows.execute

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    def fail_commit(rows: Rows, statement: str, *values: object) -> object:
        if statement == "COMMIT":
            raise BackendError("disk I/O error")
        return execute(rows, statement, *values)

    with monkeypatch.context() as patch:
        if call == "fdatasync":
            patch.setattr(os, "fdatasync", fail)
        else:
            patch.setattr(Rows, "execute", fail_commit)
        with pytest.raises(BackendError):
            tree.sync()
    with pytest.raises(BackendError):
        tree.sync()
    with pytest.raises(BackendError):
        tree.write(file, 0, b"y")
    with pytest.raises(BackendError):
        head.close()

"""Writing snapshots: whole or not at all, whatever fails and whenever the process dies."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from store.backends.base import Backend
from store.backends.memory import MemoryBackend
from store.datastore import groups
from store.datastore.datastore import Datastore
from store.datastore.snapshots import SyncLevel
from store.errors import (
    AlreadyExists,
    FormatError,
    IntegrityError,
    InvalidName,
    Locked,
    NotFound,
    PermissionDenied,
    StoreError,
)
from store.format.blob import encode_blob, encode_blob_parts
from store.format.crypt import chunk_digest
from store.format.manifest import Manifest
from store.names import BackupGroup, Digest, Namespace, Snapshot
from tests.fakes.datastores import (
    GROUP,
    MIB,
    ROOT,
    local_datastore,
    open_on,
    pattern,
    snapshot,
    write_snapshot,
)
from tests.fakes.faults import Died, FaultyBackend

REPOSITORY = Path(__file__).parents[4]


@pytest.fixture
def datastore() -> Datastore:
    backend = MemoryBackend()
    backend.create()
    return open_on(backend)


def names(datastore: Datastore, path: str = "") -> set[str]:
    """Every object below `path`, without chunks."""
    found = set()
    for entry in datastore.backend.scan(path):
        name = f"{path}/{entry.name}" if path else entry.name
        if entry.name != ".chunks":
            found |= names(datastore, name) | {name + "/"} if entry.is_directory else {name}
    return found


def test_a_snapshot_appears_with_finish(datastore: Datastore) -> None:
    with datastore.begin_snapshot(ROOT, snapshot(1)) as writer:
        assert writer.previous is None
        writer.add_blob("a.conf.blob", encode_blob(b"x"))
        assert datastore.list_groups() == []
        assert datastore.list_groups(empty=True) == [GROUP]
        assert datastore.list_snapshots(ROOT, GROUP) == []
        with pytest.raises(NotFound):
            datastore.latest_snapshot(ROOT, GROUP)
    manifest = write_snapshot(datastore, snapshot(2))
    assert datastore.list_groups() == [GROUP]
    assert datastore.list_snapshots(ROOT, GROUP) == [snapshot(2)]
    assert datastore.read_manifest(ROOT, snapshot(2)) == manifest
    assert datastore.list_files(ROOT, snapshot(2)) == [
        "data.pxar.didx",
        "disk.img.fidx",
        "index.json.blob",
        "qemu-server.conf.blob",
    ]
    assert datastore.owner(ROOT, GROUP) == "root@pam"


def test_indexes_read_back(datastore: Datastore) -> None:
    manifest = write_snapshot(datastore, snapshot(1))
    fixed = datastore.fixed_index(ROOT, snapshot(1), "disk.img.fidx")
    dynamic = datastore.dynamic_index(ROOT, snapshot(1), "data.pxar.didx")
    assert (fixed.size, fixed.csum()) == (5 * MIB, manifest.file("disk.img.fidx").csum)
    assert (dynamic.size, dynamic.csum()) == (5 * MIB, manifest.file("data.pxar.didx").csum)
    assert list(fixed.digests()) == list(dynamic.digests())
    for digest in fixed.digests():
        assert datastore.chunks.touch(digest)
    with pytest.raises(FormatError, match=r"disk\.img\.fidx"):
        datastore.dynamic_index(ROOT, snapshot(1), "disk.img.fidx")


def test_upload_statistics_are_those_of_pbs(datastore: Datastore) -> None:
    """As golden vm/100: size is plain chunks plus encoded blobs, the first manifest included."""
    data = pattern(1, 4 * MIB)
    header, body = encode_blob_parts(data)
    digest = chunk_digest(data, None)
    datastore.chunks.insert(digest, header, body)
    blob = encode_blob(b"x")
    with datastore.begin_snapshot(ROOT, snapshot(1)) as writer:
        index = writer.create_fixed_index("d.img.fidx", 4 * MIB)
        assert not writer.insert_chunk(digest, header, body, len(data))
        assert not writer.insert_chunk(digest, header, body, len(data))
        index.set(0, digest)
        index.discard()
        del writer._files["d.img.fidx"]
        writer.add_blob("client.log.blob", blob)
        bare = Manifest(snapshot(1), ())
        manifest = writer.finish(bare)
    assert manifest.unprotected["chunk_upload_stats"] == {
        "count": 1,
        "duplicates": 1,
        "compressed_size": len(header) + len(body),
        "size": 4 * MIB + len(blob) + len(encode_blob(bare.encode())),
    }


def test_order_of_times(datastore: Datastore) -> None:
    write_snapshot(datastore, snapshot(5))
    with pytest.raises(AlreadyExists):
        datastore.begin_snapshot(ROOT, snapshot(5))
    with pytest.raises(InvalidName, match="older"):
        datastore.begin_snapshot(ROOT, snapshot(4))
    with datastore.begin_snapshot(ROOT, snapshot(6)) as writer:
        assert writer.previous == snapshot(5)
        with pytest.raises(Locked):
            datastore.forget_snapshot(ROOT, snapshot(5))
    assert datastore.list_snapshots(ROOT, GROUP) == [snapshot(5)]


def test_nothing_is_built_on_a_snapshot_that_failed_verification(datastore: Datastore) -> None:
    write_snapshot(datastore, snapshot(5))
    failed = {"state": "failed", "upid": "UPID:x"}
    datastore.update_manifest(
        ROOT, snapshot(5), lambda manifest: manifest.with_unprotected(verify_state=failed)
    )
    with datastore.begin_snapshot(ROOT, snapshot(4)) as writer:
        assert writer.previous is None


class _Stays(NamedTuple):
    """A directory whose manifest was there when it was looked at."""

    name: str = ""
    is_marked: bool = True


STAYS = _Stays()


def test_the_newest_is_removed_while_the_next_begins(
    datastore: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_snapshot(datastore, snapshot(1))
    write_snapshot(datastore, snapshot(2))
    look = groups.snapshot_directories

    def look_and_lose(*where: Any) -> list[groups.SnapshotDirectory]:
        monkeypatch.undo()
        found = look(*where)
        assert found[-1].is_finished
        datastore.forget_snapshot(ROOT, snapshot(2))
        return [*found[:-1], found[-1]._replace(directory=STAYS)]

    monkeypatch.setattr(groups, "snapshot_directories", look_and_lose)
    with datastore.begin_snapshot(ROOT, snapshot(3)) as writer:
        assert writer.previous == snapshot(1)


@pytest.mark.expect_warnings
def test_a_damaged_manifest_disturbs_nobody_else(datastore: Datastore) -> None:
    write_snapshot(datastore, snapshot(1))
    write_snapshot(datastore, snapshot(2))
    datastore.backend.write(f"{snapshot(2).path(ROOT)}/index.json.blob", (b"rubbish",))
    assert datastore.list_snapshots(ROOT, GROUP) == [snapshot(1), snapshot(2)]
    with pytest.raises(FormatError, match="host/web01"):
        datastore.read_manifest(ROOT, snapshot(2))
    datastore.read_manifest(ROOT, snapshot(1))
    with datastore.begin_snapshot(ROOT, snapshot(3)) as writer:
        assert writer.previous is None


def test_owners(datastore: Datastore) -> None:
    write_snapshot(datastore, snapshot(1), owner="alice@pbs!laptop")
    write_snapshot(datastore, snapshot(2), owner="alice@pbs!laptop")
    write_snapshot(datastore, snapshot(3), owner="alice@pbs")
    write_snapshot(datastore, snapshot(4))
    for other in ("bob@pbs", "alice@pbs!phone", "root@pam"):
        with pytest.raises(PermissionDenied, match="alice@pbs!laptop"):
            datastore.begin_snapshot(ROOT, snapshot(5), owner=other)
    with pytest.raises(InvalidName):
        datastore.begin_snapshot(ROOT, snapshot(5), owner="alice")
    # A user of an Active Directory may have an @ in his name, as PBS has it.
    datastore.change_owner(ROOT, GROUP, "bob@example.com@ad!token")
    assert datastore.owner(ROOT, GROUP) == "bob@example.com@ad!token"
    datastore.change_owner(ROOT, GROUP, "bob@pbs")
    assert datastore.owner(ROOT, GROUP) == "bob@pbs"
    write_snapshot(datastore, snapshot(5), owner="bob@pbs")


def test_a_refused_beginning_leaves_nothing(datastore: Datastore) -> None:
    before = names(datastore)
    with datastore.backend.lock_store(exclusive=True), pytest.raises(Locked):
        datastore.begin_snapshot(ROOT, snapshot(1))
    with pytest.raises(NotFound, match="a/b"):
        datastore.begin_snapshot(Namespace(("a", "b")), snapshot(1))
    assert names(datastore) == before
    datastore.begin_snapshot(ROOT, snapshot(1)).close()
    assert names(datastore) == before | {"host/"}


def test_one_writer_a_group(datastore: Datastore) -> None:
    other = BackupGroup("host", "web02")
    with datastore.begin_snapshot(ROOT, snapshot(1)):
        with pytest.raises(Locked, match="host/web01"):
            datastore.begin_snapshot(ROOT, snapshot(2))
        write_snapshot(datastore, snapshot(1, other))
    assert datastore.list_groups() == [other]


@pytest.mark.parametrize(
    "filename", ["index.json.blob", "../owner.blob", "x.img", "x.fidx", ".x.blob"]
)
def test_names_a_snapshot_cannot_have(datastore: Datastore, filename: str) -> None:
    with datastore.begin_snapshot(ROOT, snapshot(1)) as writer, pytest.raises(InvalidName):
        writer.add_blob(filename, b"")


def test_a_file_is_written_once(datastore: Datastore) -> None:
    with datastore.begin_snapshot(ROOT, snapshot(1)) as writer:
        writer.create_dynamic_index("x.pxar.didx")
        with pytest.raises(AlreadyExists):
            writer.create_dynamic_index("x.pxar.didx")


def test_finish_wants_what_the_manifest_says(datastore: Datastore) -> None:
    manifest = write_snapshot(datastore, snapshot(1))
    with datastore.begin_snapshot(ROOT, snapshot(2)) as writer:
        with pytest.raises(IntegrityError):
            writer.finish(manifest)
        with pytest.raises(IntegrityError):
            writer.finish(Manifest(snapshot(2), manifest.files))
        index = writer.create_fixed_index("disk.img.fidx", MIB)
        with pytest.raises(FormatError, match="chunk 0"):
            index.close()
        with pytest.raises(IntegrityError):
            writer.finish(Manifest(snapshot(2), manifest.files[1:2]))
    assert datastore.list_snapshots(ROOT, GROUP) == [snapshot(1)]


def test_an_error_removes_the_snapshot_and_a_new_group(datastore: Datastore) -> None:
    class Own(Exception):
        pass

    def fail() -> None:
        with datastore.begin_snapshot(ROOT, snapshot(2)) as writer:
            writer.create_fixed_index("disk.img.fidx", 100 * MIB).set(3, Digest(bytes(32)))
            raise Own

    with pytest.raises(Own):
        fail()
    assert "host/web01/" not in names(datastore)
    write_snapshot(datastore, snapshot(1))
    before = names(datastore)
    with pytest.raises(Own):
        fail()
    assert names(datastore) == before


def test_leftovers_are_removed_by_the_next_writer_alone(datastore: Datastore) -> None:
    write_snapshot(datastore, snapshot(1))
    for day in (2, 3):
        datastore.backend.mkdir(snapshot(day).path(ROOT))
        datastore.backend.write(f"{snapshot(day).path(ROOT)}/x.pxar.tmp_didx", (b"x",))
    in_use = datastore.backend.lock(snapshot(3).path(ROOT), (), exclusive=True)
    assert datastore.list_snapshots(ROOT, GROUP) == [snapshot(1)]
    write_snapshot(datastore, snapshot(4))
    assert datastore.backend.stat(snapshot(2).path(ROOT)) is None
    assert datastore.backend.stat(snapshot(3).path(ROOT)) is not None
    in_use.release()
    write_snapshot(datastore, snapshot(5))
    assert datastore.backend.stat(snapshot(3).path(ROOT)) is None


def count_calls(level: SyncLevel) -> int:
    backend = MemoryBackend()
    backend.create()
    faulty = FaultyBackend(backend)
    store = open_on(faulty)
    write_snapshot(store, snapshot(1), sync_level=level)
    write_snapshot(store, snapshot(2), sync_level=level)
    return faulty.calls


@pytest.mark.expect_warnings
@pytest.mark.parametrize("level", SyncLevel)
@pytest.mark.parametrize("kill", [False, True], ids=["fail", "kill"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_failing_or_dying_at_every_call(level: SyncLevel, kill: bool, after: bool) -> None:
    """At no call may anything leave half a snapshot to see, or stop the next writer."""
    for number in range(count_calls(level)):
        backend = MemoryBackend()
        backend.create()
        faulty = FaultyBackend(backend, number, kill=kill, after=after)
        done: list[Snapshot] = []
        with pytest.raises((StoreError, Died)):
            write_two(faulty, level, done)
        faulty.bury()
        check_survivors(open_on(backend), done, number)


def write_two(backend: Backend, level: SyncLevel, done: list[Snapshot]) -> None:
    store = open_on(backend)
    for day in (1, 2):
        write_snapshot(store, snapshot(day), sync_level=level)
        done.append(snapshot(day))


def check_survivors(store: Datastore, done: list[Snapshot], number: int) -> None:
    listed = [found for group in store.list_groups() for found in store.list_snapshots(ROOT, group)]
    assert listed[: len(done)] == done, number
    for found in listed:
        for info in store.read_manifest(ROOT, found).files:
            if info.filename.endswith(".fidx"):
                index = store.fixed_index(ROOT, found, info.filename)
                assert index.csum() == info.csum
                assert all(store.chunks.touch(digest) for digest in index.digests())
            elif info.filename.endswith(".didx"):
                assert store.dynamic_index(ROOT, found, info.filename).csum() == info.csum
            else:
                assert len(store.read_file(ROOT, found, info.filename)) == info.size
    write_snapshot(store, snapshot(9))
    expected = {f"{found.path(ROOT)}/" for found in [*listed, snapshot(9)]}
    assert {name for name in names(store) if name.endswith("Z/")} == expected, number
    assert not [name for name in names(store) if "tmp_" in name]


WRITER = """
import sys
from store.repositories.repository import open_datastore
from store.errors import Locked
from store.format.blob import encode_blob
from store.names import Namespace, Snapshot

sys.stdin.readline()
try:
    store, snapshot = open_datastore(sys.argv[1]), Snapshot.parse(sys.argv[2])
    with store.begin_snapshot(Namespace(), snapshot) as writer:
        writer.add_blob("a.conf.blob", encode_blob(b"x"))
        writer.create_fixed_index("x.img.fidx", 1 << 30)
        print("won", flush=True)
        sys.stdin.read()
except Locked as error:
    print("locked", error, flush=True)
"""


def start_writer(path: Path, day: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(snapshot(day))],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_of_two_processes_one_wins(tmp_path: Path) -> None:
    store = local_datastore(tmp_path / "store")
    with (
        start_writer(tmp_path / "store", 1) as first,
        start_writer(tmp_path / "store", 2) as second,
    ):
        answers = []
        for process in (first, second):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in (first, second):
            assert process.stdout is not None
            answers.append(process.stdout.readline())
        assert sorted(answer.split()[0] for answer in answers) == ["locked", "won"]
        winner = (first, second)[answers.index("won\n")]
        assert f"by process {winner.pid}" in "".join(answers)
        with pytest.raises(Locked):
            store.begin_snapshot(ROOT, snapshot(3))
        for process in (first, second):
            process.communicate("")
    assert store.list_groups(empty=True) == []


def test_a_killed_process_leaves_nothing_that_lasts(tmp_path: Path) -> None:
    store = local_datastore(tmp_path / "store")
    write_snapshot(store, snapshot(1))
    with start_writer(tmp_path / "store", 2) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "won\n"
        assert (
            tmp_path / "store" / snapshot(2).path(ROOT) / "x.img.tmp_fidx"
        ).stat().st_size == 4096 + 32 * 256
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert store.list_snapshots(ROOT, GROUP) == [snapshot(1)]
    write_snapshot(store, snapshot(3))
    assert sorted(path.name for path in (tmp_path / "store/host/web01").iterdir()) == [
        snapshot(1).path(ROOT).rpartition("/")[2],
        snapshot(3).path(ROOT).rpartition("/")[2],
        "owner",
    ]


def test_an_index_that_is_dropped_keeps_no_file_open(tmp_path: Path) -> None:
    """Not even where an error's traceback keeps the index."""
    store = local_datastore(tmp_path / "store")
    with store.begin_snapshot(ROOT, snapshot(1)) as writer:
        index = writer.create_fixed_index("x.img.fidx", 5 * MIB)
        assert open_indexes()
    assert not open_indexes(), index


def open_indexes() -> list[str]:
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(descriptor.readlink()))
    return [path for path in found if "x.img" in path]


def test_an_interrupt_while_writing_cleans_up(tmp_path: Path) -> None:
    store = local_datastore(tmp_path / "store")

    def interrupted() -> None:
        with store.begin_snapshot(ROOT, snapshot(1)) as writer:
            writer.create_dynamic_index("x.pxar.didx").add(10, Digest(bytes(32)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list((tmp_path / "store/host").iterdir()) == []
    store.backend.lock_store(exclusive=True).release()

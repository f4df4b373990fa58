"""What was begun under a lease that is lost by now: nothing of it may be seen, nothing removed."""

import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from store.backends.wrappers.retry import Retry
from store.datastore.datastore import Datastore
from store.datastore.snapshots import SnapshotWriter
from store.errors import BackendError, InvalidName, Locked, NotFound
from store.format.blob import encode_blob
from store.format.manifest import CryptMode, FileInfo, Manifest
from store.names import MANIFEST_BLOB_NAME, Snapshot
from tests.fakes.datastores import GROUP, ROOT, open_on, snapshot
from tests.fakes.s3_hosts import Bucket, Clock, Hook, Host

BLOB = encode_blob(b"a line of configuration\n")
FILE = "x.conf.blob"
LOST_S = 140.0
"""By now a lease is over for everybody."""


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def others(bucket: Bucket) -> Datastore:
    backend = Host(bucket)
    backend.create()
    return open_on(backend)


def begin(datastore: Datastore, what: Snapshot) -> tuple[SnapshotWriter, Manifest]:
    """A snapshot of one file that is written, and the manifest to finish it with."""
    writer = datastore.begin_snapshot(ROOT, what)
    return writer, write_blob(writer)


def write_blob(writer: SnapshotWriter) -> Manifest:
    csum = writer.add_blob(FILE, BLOB)
    return Manifest(writer.snapshot, (FileInfo(FILE, CryptMode.NONE, len(BLOB), csum),))


def begin_and_finish(datastore: Datastore, what: Snapshot) -> None:
    writer, manifest = begin(datastore, what)
    with writer:
        writer.finish(manifest)


def on_manifest(do: Callable[[], None]) -> Hook:
    """Do something once, before the first PUT of a manifest."""
    todo = [do]

    def before(kind: str, key: str) -> None:
        if kind == "put" and key.endswith(MANIFEST_BLOB_NAME) and todo:
            todo.pop()()

    return before


def down(kind: str = "", key: str = "") -> None:
    raise BackendError("network is unreachable", retryable=True)


def cut(host: Host) -> None:
    """The network is gone, from this request on."""
    host.fake.before = down
    down()


def patient(host: Host, bucket: Bucket, after_a_while: Callable[[], None]) -> Datastore:
    """A host whose network is back when its leases are over and `after_a_while` was called."""
    began_s = bucket.clock()

    def wait(_: threading.Event, seconds: float) -> bool:
        bucket.clock.advance(seconds)
        if bucket.clock() - began_s > LOST_S and host.fake.before is down:
            with suppress(Locked):  # the lease was renewed a moment before the network went
                after_a_while()
                host.fake.before = lambda kind, key: None
        return False

    return open_on(Retry(host, clock=bucket.clock, wait=wait))


def days(datastore: Datastore) -> list[int]:
    return [one.time // 86400 for one in datastore.list_snapshots(ROOT, GROUP)]


@pytest.mark.expect_warnings
def test_a_manifest_is_not_written_again_and_again_beyond_the_lease(
    bucket: Bucket, others: Datastore
) -> None:
    host = Host(bucket)
    ours = patient(host, bucket, lambda: begin_and_finish(others, snapshot(2)))
    host.fake.before = on_manifest(lambda: cut(host))
    with pytest.raises(Locked, match="lost the lock"):
        begin_and_finish(ours, snapshot(1))
    assert days(others) == [2]


@pytest.mark.expect_warnings
def test_a_manifest_that_came_too_late_is_taken_back(bucket: Bucket, others: Datastore) -> None:
    """A virtual machine stood still before the PUT: its own clock has seen nothing of it."""
    writer, manifest = begin(open_on(Host(bucket, Clock())), snapshot(1))
    bucket.clock.advance(LOST_S)
    begin_and_finish(others, snapshot(2))
    with pytest.raises(Locked, match="lost the lock"), writer:
        writer.finish(manifest)
    assert days(others) == [2]


@pytest.mark.expect_warnings
def test_the_answer_to_the_manifest_decides(bucket: Bucket, others: Datastore) -> None:
    host = Host(bucket, Clock())
    writer, manifest = begin(open_on(host), snapshot(1))
    host.fake.before = on_manifest(lambda: bucket.clock.advance(LOST_S))
    with pytest.raises(Locked, match="lost the lock"), writer:
        writer.finish(manifest)
    begin_and_finish(others, snapshot(2))
    assert days(others) == [2]


def test_finishing_costs_no_request_more(bucket: Bucket, others: Datastore) -> None:
    host = Host(bucket)
    writer, manifest = begin(open_on(host), snapshot(1))
    host.fake.requests.clear()
    writer.finish(manifest)
    assert [kind for kind, _ in host.fake.requests] == ["put", "delete", "delete"]


@pytest.mark.expect_warnings
def test_a_change_of_a_manifest_does_not_bring_a_removed_snapshot_back(
    bucket: Bucket, others: Datastore
) -> None:
    begin_and_finish(others, snapshot(1))
    begin_and_finish(others, snapshot(2))
    host = Host(bucket)
    ours = patient(host, bucket, lambda: others.forget_snapshot(ROOT, snapshot(1)))
    host.fake.before = on_manifest(lambda: cut(host))
    with pytest.raises(Locked, match="lost the lock"):
        ours.update_manifest(ROOT, snapshot(1), lambda manifest: manifest)
    assert days(others) == [2]


@pytest.mark.parametrize("removed", [True, False])
def test_a_change_that_came_too_late(bucket: Bucket, others: Datastore, removed: bool) -> None:
    """What it brought back goes again; what nobody has removed stays."""
    begin_and_finish(others, snapshot(1))
    begin_and_finish(others, snapshot(2))
    host = Host(bucket, Clock())

    def stand_still() -> None:
        bucket.clock.advance(LOST_S)
        if removed:
            others.forget_snapshot(ROOT, snapshot(1))

    host.fake.before = on_manifest(stand_still)
    with pytest.raises(Locked, match="lost the lock"):
        open_on(host).update_manifest(
            ROOT, snapshot(1), lambda manifest: manifest.with_unprotected(notes="late")
        )
    assert days(others) == ([2] if removed else [1, 2])


# Undoing


@pytest.mark.expect_warnings
@pytest.mark.parametrize("stood_still", [True, False], ids=["paused-vm", "asleep"])
def test_who_lost_the_group_takes_nothing_of_it_away(
    bucket: Bucket, others: Datastore, stood_still: bool
) -> None:
    """Not even the owner it wrote: the group's next writer has found that, and goes on with it."""
    ours, _ = begin(open_on(Host(bucket, Clock() if stood_still else None)), snapshot(1))
    bucket.clock.advance(LOST_S)
    with others.begin_snapshot(ROOT, snapshot(2)) as theirs:
        ours.close()  # there is nothing but the owner yet
        theirs.finish(write_blob(theirs))
    assert others.owner(ROOT, GROUP) == "root@pam"
    begin_and_finish(others, snapshot(3))
    assert days(others) == [2, 3]


def test_who_has_the_group_takes_back_all(bucket: Bucket, others: Datastore) -> None:
    ours, _ = begin(open_on(Host(bucket)), snapshot(1))
    ours.close()
    assert others.backend.scan("host/web01") == []


@pytest.mark.expect_warnings
@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), BackendError("unreachable (tried 9 times in 300 s)", retryable=True)],
    ids=["interrupt", "retried"],
)
def test_undoing_while_the_network_is_gone_costs_one_request(
    bucket: Bucket, others: Datastore, error: BaseException
) -> None:
    """What is left are a snapshot without a manifest and three claims: the next writer's work."""
    host = Host(bucket)
    writer, _ = begin(open_on(Retry(host, clock=bucket.clock, wait=_no_wait)), snapshot(1))
    host.fake.before = down
    host.fake.requests.clear()
    with pytest.raises(type(error)), writer:
        raise error
    assert len(host.fake.requests) == 1
    bucket.clock.advance(LOST_S)
    begin_and_finish(others, snapshot(2))
    assert [one.name for one in others.backend.walk("host/web01") if "1970-01-02" in one.name] == []


def test_an_interrupt_while_the_network_is_there_leaves_nothing(
    bucket: Bucket, others: Datastore
) -> None:
    with pytest.raises(KeyboardInterrupt), begin(open_on(Host(bucket)), snapshot(1))[0]:
        raise KeyboardInterrupt
    assert others.backend.scan("host") == []
    assert [key for key in bucket.objects if "/locks/" in key] == []


def _no_wait(_: threading.Event, seconds: float) -> bool:
    raise AssertionError(f"waited {seconds} s")


@pytest.mark.expect_warnings
def test_a_manifest_that_is_listed_but_not_there(bucket: Bucket, others: Datastore) -> None:
    """As a storage with a broken index may say, for ever: the backup goes on without it."""
    begin_and_finish(others, snapshot(2))
    host = Host(bucket)

    def before(kind: str, key: str) -> None:
        if kind == "get" and key.endswith(f"03T00:00:00Z/{MANIFEST_BLOB_NAME}"):
            raise NotFound(key)

    host.fake.before = before
    with pytest.raises(InvalidName, match="older than"):
        open_on(host).begin_snapshot(ROOT, snapshot(1))
    with open_on(host).begin_snapshot(ROOT, snapshot(3)) as writer:
        assert writer.previous is None
    assert days(others) == [2]

"""Whatever a handler raises becomes an errno, and a log line where somebody should act."""

import errno
import logging
import threading
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from pyfuse3 import FUSEError

from fsgateway.archive import Archive
from fsgateway.bridge import Bridge, QuietLog, as_fuse_error, guarded, turn_of_the_loop, unanswered
from fsgateway.disks import DiskNode, PartNode
from fsgateway.tree import NamespaceNode, TreeNode
from fsgateway.view import SnapshotId, View
from store.errors import ChunkMissing, InvalidName, KeyRequired, Locked, NotFound, OutOfSpace
from store.names import BackupGroup, Namespace, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.expect_warnings
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FUSEError(errno.ENODATA), errno.ENODATA),
        (NotFound("x"), errno.ENOENT),
        (KeyRequired("x"), errno.EACCES),
        (ChunkMissing("x"), errno.EIO),
        (Locked("x"), errno.EBUSY),
        (InvalidName("x"), errno.EINVAL),
        (OutOfSpace("x"), errno.ENOSPC),
        (OSError(errno.EBADF, "x"), errno.EBADF),
        (OSError("no errno"), errno.EIO),
        (MemoryError(), errno.ENOMEM),
        (ZeroDivisionError(), errno.EIO),
    ],
)
def test_errno(error: Exception, expected: int) -> None:
    assert as_fuse_error(error, "read").errno == expected


def test_what_is_not_there_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    as_fuse_error(NotFound("x"), "lookup")
    assert not caplog.records


@pytest.mark.expect_warnings
def test_the_unexpected_leaves_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    as_fuse_error(ValueError("surprise"), "readdir")
    assert caplog.records[0].levelno == logging.ERROR
    assert "surprise" in caplog.text


@pytest.mark.expect_warnings
def test_quiet_log_says_each_line_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    quiet = QuietLog(lambda: now, 60)
    for now in (0.0, 1.0, 59.9, 60.0, 61.0):  # noqa: B007 - the clock reads it
        quiet.warning("same")
    quiet.warning("other")
    assert [record.getMessage() for record in caplog.records] == ["same", "same", "other"]


@pytest.mark.expect_warnings
def test_quiet_log_forgets(caplog: pytest.LogCaptureFixture) -> None:
    """Its memory is bounded: a thousand lines."""
    quiet = QuietLog(lambda: 0.0)
    for number in range(3000):
        quiet.warning(str(number))
    assert len(quiet._last) <= 1000
    assert len(caplog.records) == 3000


@pytest.mark.expect_warnings
def test_guarded_lets_results_and_cancellation_through() -> None:
    @guarded
    async def handler(what: object) -> object:
        await trio.lowlevel.checkpoint()
        if isinstance(what, Exception):
            raise what
        return what

    async def main() -> None:
        assert await handler(5) == 5
        with pytest.raises(FUSEError):
            await handler(KeyError("x"))
        with trio.CancelScope() as scope:
            scope.cancel()
            await handler(1)
        assert scope.cancelled_caught

    trio.run(main)


def test_bridge_raises_what_the_call_raised() -> None:
    async def main() -> None:
        bridge = Bridge(1)
        assert await bridge.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await bridge.run(divmod, 7, 0)

    trio.run(main)


def test_nothing_waits_behind_a_disk() -> None:
    """Disks that take minutes hold all their threads, and not one of the others'."""
    ident = SnapshotId(Namespace(), Snapshot(BackupGroup("vm", "100"), 1_700_000_000))
    view: View = None  # type: ignore[assignment] # nobody asks it
    part = PartNode(view, ("part1",), ident, "drive-scsi0.img", "part1")
    slow = [DiskNode(view, ("drive-scsi0.img.d",), ident, "drive-scsi0.img"), Archive(part)]
    quick = [NamespaceNode(view, (), Namespace()), Archive(TreeNode(view, (), ident, "root.pxar"))]

    async def main() -> None:
        bridge, over = Bridge(1, slow=Bridge(2)), threading.Event()
        async with trio.open_nursery() as nursery:
            for asked in (*slow, *slow):
                nursery.start_soon(bridge.of(asked).run, over.wait)
            await trio.testing.wait_all_tasks_blocked()
            for other in quick:
                assert await bridge.of(other).run(divmod, 7, 2) == (3, 1)
            over.set()

    trio.run(main)


def test_a_thread_waits_for_a_turn_of_the_loop() -> None:
    """Whatever the loop was at is over then; without a loop nobody waits."""
    done: list[str] = []
    waits: list[Callable[[], None]] = []

    async def main() -> None:
        waits.append(turn_of_the_loop())
        thread = threading.Thread(target=lambda: (waits[0](), done.append("waited")))
        thread.start()
        thread.join(0.1)
        done.append("busy")
        await trio.to_thread.run_sync(thread.join)

    trio.run(main)
    assert done == ["busy", "waited"]
    waits[0]()


@pytest.mark.expect_warnings
@pytest.mark.parametrize("error", [OSError(errno.EBADF, "x"), KeyError("x"), FUSEError(errno.EIO)])
def test_what_the_kernel_only_tells_ends_no_mount(error: Exception) -> None:
    @unanswered
    async def forget() -> None:
        raise error

    trio.run(forget)

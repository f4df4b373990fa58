"""What makes a head last: its segments and its database, and when they are brought to the disk.

A commit is: segments synced, then the transaction committed with synchronous=FULL. Whatever a row
names is on the disk before the row is. Nothing else waits for the disk.

Locks, in this order: `committing`, `lock` (what is in memory), `rows.lock` (the connection). While
a commit waits for the disk it holds the first and the last: operations go on that need no row.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from store.backends.base import storage_error
from store.datastore.chunk_cache import ChunkReader
from store.errors import BackendError, OutOfSpace, StoreError
from store.format.buffer import Buffer
from store.heads.base import WouldWait
from store.heads.database import Rows
from store.heads.extents import CHUNK
from store.heads.moved import MovedChunks
from store.heads.protection import Protection
from store.heads.segments import Segments

log = logging.getLogger(__name__)

COMMIT_INTERVAL_S = 5.0
RESERVE = 32 << 20
"""Bytes of the disk that are left for what must not fail: the database and its log."""
LOOK_AT_SPACE = 4 << 20
PATIENCE_S = 60.0
STEP_S = 0.05
COLLECTED = 128 << 10
"""Of a file at most so much is written without looking for room once more."""


class Hurry(threading.local):
    """Whether this thread may not wait."""

    now = False


class Member(Protocol):
    """An archive of the head, as a commit sees it. Called under both locks."""

    def flush_rows(self) -> None:
        """Bring all that changed into the rows."""

    def flush_if_due(self) -> None:
        """The same, if recovery does without it and it is not worth while yet: nothing."""

    def is_logged(self) -> bool:
        """Whether records since the last flush are needed for recovery."""


class Journal:
    """The journal of one open head. Thread-safe.

    is_frozen: a seal reads the rows and segments of a moment before. is_kept: somebody reads
        segments that may be of no use any more, so none is removed.
    """

    def __init__(
        self,
        directory: str,
        protection: Protection,
        fence: Callable[[], None],
        chunks: ChunkReader,
        budget_bytes: int,
        *,
        create: bool,
    ) -> None:
        """`fence` raises Locked when the head is another's by now. `chunks`: the datastore's."""
        self.lock = threading.RLock()
        self.hurry = Hurry()
        self.protection = protection
        self.budget_bytes = budget_bytes
        self.early_bytes = budget_bytes // 4 * 3  # past which content is moved to the datastore
        self.rows = Rows(f"{directory}/journal.sqlite", protection, create=create)
        self.segments = Segments(f"{directory}/segments", protection)
        self.moved = MovedChunks(self.rows, chunks)
        self.members: list[Member] = []
        self.relieve: Callable[[], bool] = lambda: False  # whether there is hope for room
        self.move_early: Callable[[], object] = lambda: None  # begin to, and go on
        self.patience_s = PATIENCE_S
        self.is_frozen = self.is_kept = self.holds_still = False
        self.changes = self.durable = 0
        self.generation: int = self.rows.meta("generation") or 0
        self.log_start: int = self.rows.meta("log_start") or 0
        self.segments.begin_from(self.log_start)
        self.segments.live.update(self.rows.fetch("SELECT number, live FROM segment"))
        self._directory = directory
        self._fence = fence
        self._committing = threading.Lock()
        self._in_transaction = False
        self._failed: StoreError | None = None
        self._unlooked = LOOK_AT_SPACE
        self._closing = threading.Event()
        self._committer = threading.Thread(target=self._commit_now_and_then, daemon=True)

    def start(self) -> None:
        """Commit every COMMIT_INTERVAL_S from now on."""
        self._committer.start()

    @property
    def path(self) -> str:
        return self._directory

    @property
    def has_failed(self) -> bool:
        """Whether the head has to be opened again: it is then as it was committed last."""
        return self._failed is not None

    def check(self) -> None:
        """Raise what an earlier commit failed of: nothing may change any more."""
        if self._failed is not None:
            raise self._failed

    def admit(self, size: int = 0) -> None:
        """Let a writer pass that has so many bytes; slow it down while the budget is used up.

        Called without the lock. Raises OutOfSpace, WouldWait, and what an earlier commit failed of.
        """
        if self._failed is not None:
            raise self._failed
        self._unlooked += size + 512
        if self._unlooked >= LOOK_AT_SPACE:
            self._look_at_space()
            self._unlooked = 0
        if self.segments.total_bytes + size > self.early_bytes:
            self._make_room(size)

    def _make_room(self, size: int) -> None:
        size = min(size, self.budget_bytes // 4)  # a larger one would wait for ever
        if self.segments.total_bytes > self.early_bytes:
            self.move_early()
        if self.segments.total_bytes + size > self.budget_bytes:
            self._wait_for_room(size)

    def room(self) -> int:
        """How many bytes may come at once without `admit`; 0: everything is to be told at once."""
        if self.holds_still or self._failed is not None:
            return 0
        return max(0, min(self.budget_bytes - self.segments.total_bytes, COLLECTED))

    def count(self, size: int) -> None:
        """So many bytes came without `admit`. Raises what an earlier commit failed of."""
        self.check()
        self._unlooked += size + 512

    def _look_at_space(self) -> None:
        while True:
            is_more_coming = self.segments.retire()
            if not self._is_full():
                return
            if not is_more_coming:
                self._unlooked = LOOK_AT_SPACE
                raise OutOfSpace(f"{self._directory}: the disk of the head's journal is full")
            if self.hurry.now:
                raise WouldWait
            time.sleep(STEP_S)

    def _is_full(self) -> bool:
        try:
            space = os.statvfs(self._directory)
        except OSError as error:
            raise storage_error(error, self._directory) from error
        return space.f_bavail * space.f_frsize < RESERVE + LOOK_AT_SPACE

    def _wait_for_room(self, size: int) -> None:
        if self.hurry.now:
            raise WouldWait
        deadline = time.monotonic() + self.patience_s
        while self.segments.total_bytes + size > self.budget_bytes:
            self.check()
            if self.relieve():
                deadline = time.monotonic() + self.patience_s
            elif time.monotonic() > deadline:
                raise OutOfSpace(
                    f"{self._directory}: the head's budget of {self.budget_bytes} bytes is"
                    " used up: seal the head, or give it more"
                )
            time.sleep(STEP_S)

    def begin(self) -> None:
        """Before rows are written. Called under both locks."""
        if not self._in_transaction:
            self.rows.execute("BEGIN IMMEDIATE")
            self._in_transaction = True

    def sync(self) -> None:
        """Make everything durable that was done before. Threads that come meanwhile share one."""
        with self.lock:
            target = self.changes
        if self.durable < target:
            with self._committing:
                if self.durable < target:
                    self._commit()

    def commit(self) -> None:
        """The same, whether there are changes or not, and nothing is left for recovery to do."""
        with self._committing:
            self._commit(everything=True)

    def freeze(self) -> tuple[Rows, int, int]:
        """Take the state of this moment, which nothing changes until `thaw`.

        Returns the rows, in a read transaction, the number of the last generation that is in them,
        and the first segment that is not.
        """
        with self._committing, self.lock:
            self._commit(everything=True)
            boundary = self.segments.roll()
            generation = self.generation
            frozen = Rows(self.rows.path, self.protection)
            frozen.execute("BEGIN")
            frozen.meta("base")
            self.generation += 1
            self.is_frozen = True
            with self.rows.lock:
                self.begin()
                self.rows.set_meta("generation", self.generation)
        return frozen, generation, boundary

    @contextmanager
    def holding_still(self) -> Iterator[None]:
        """Nobody may do something now that is told here later: the state of now is wanted."""
        self.holds_still = True
        try:
            yield
        finally:
            self.holds_still = False

    def change_places(self, change: Callable[[], None]) -> None:
        """Let `change` say anew where content is that stays as it is, and commit that, all or none.

        It is called under both locks, in a transaction.
        """
        with self._committing, self.lock:
            self.check()
            with self.rows.lock:
                try:
                    self.begin()
                    change()
                except BaseException as error:
                    self.give_up(error)
                    raise
            self.is_kept = False
            self._commit(everything=True)

    def payload(self, segment: int, record: int) -> Buffer:
        """All bytes of a record or of a moved chunk, of which an extent is a part.

        Raises WouldWait in a hurried thread, IntegrityError, BackendError, ChunkMissing.
        """
        if record < CHUNK:
            return self.segments.read(segment, record)
        return self.moved.read(record, may_wait=not self.hurry.now)

    def thaw(self) -> None:
        """What was frozen is of no more use."""
        self.is_frozen = False

    def fence(self) -> None:
        """Raise Locked when the head is another's by now; then nothing may change any more."""
        try:
            self._fence()
        except StoreError as error:
            self._failed = error
            raise

    def _commit(self, *, everything: bool = False) -> None:
        if self._failed is not None:
            raise self._failed
        with self.lock:
            self.rows.lock.acquire()
            try:
                target = self.changes
                unused = self._flush(everything=everything)
            except BaseException as error:
                self.rows.lock.release()
                self.give_up(error)
                raise
        try:
            self.segments.sync()
            self.fence()
            self.rows.execute("COMMIT")
            self._in_transaction = False
            self.durable = max(self.durable, target)
        except BaseException as error:
            self.give_up(error)
            raise
        finally:
            self.rows.lock.release()
        self.segments.drop(unused)

    def give_up(self, error: BaseException) -> None:
        """Rows were written in part: nothing may be committed any more, nor acknowledged.

        Who opens the head again finds it as it was committed last.
        """
        if not isinstance(error, StoreError):
            error = BackendError(f"{self._directory}: {type(error).__name__}: {error}")
        self._failed = error

    def _flush(self, *, everything: bool) -> list[int]:
        """Write all rows. The segments that nothing refers to once that is durable."""
        self.begin()
        for member in self.members:
            (member.flush_rows if everything else member.flush_if_due)()
        if everything:
            self.log_start = self.segments.roll()
        elif not any(member.is_logged() for member in self.members):
            self.log_start = self.segments.current
        self.rows.set_meta("log_start", self.log_start)
        self.rows.set_meta("changed", time.time())
        self.rows.set_meta("moved_bytes", self.segments.moved_bytes)
        live = self.segments.live
        self.rows.execute("DELETE FROM segment")
        self.rows.execute_many("INSERT INTO segment VALUES (?, ?)", live.items())
        if self.is_frozen or self.is_kept:
            return []
        old = min(self.log_start, self.segments.stamp)
        used = {number for number, count in live.items() if count > 0}
        used |= {number for number, count in self.segments.image_live.items() if count > 0}
        return [number for number in self.segments.sizes if number < old and number not in used]

    def flush_some(self) -> None:
        """Write rows so that memory can be given back; durable they are with the next commit.

        Called under the lock. Raises WouldWait while a commit is under way.
        """
        if not self.rows.lock.acquire(blocking=not self.hurry.now):
            raise WouldWait
        try:
            self.begin()
            for member in self.members:
                member.flush_if_due()
        except BaseException as error:
            self.give_up(error)
            raise
        finally:
            self.rows.lock.release()

    def _commit_now_and_then(self) -> None:
        while not self._closing.wait(COMMIT_INTERVAL_S):
            try:
                self.segments.retire()  # a full disk has no changes to commit
                self.sync()
            except StoreError as error:
                log.error("%s: %s", self._directory, error)  # noqa: TRY400 - no traceback for users
                return

    def close(self) -> None:
        """End the committer and give descriptors back; what is not durable is lost."""
        self._closing.set()
        if self._committer.is_alive():
            self._committer.join()
        with self._committing:
            self.rows.close()
            self.segments.close()

"""One part of a disk in a micro-VM, started when something is asked and after it was lost."""

import logging
import time
from collections import deque
from contextlib import suppress
from threading import Lock
from typing import Protocol

from store.disks.door import Door
from store.disks.microvm.accelerator import Accelerator
from store.disks.microvm.conversation import Broken, Conversation
from store.disks.microvm.machine import PANIC, Command, Machine
from store.disks.microvm.pool import Pool
from store.disks.microvm.protocol import Key, Op, Ready, Reply, is_damage
from store.disks.overlay import Overlay
from store.errors import BackendError, FormatError, IntegrityError, StoreError
from store.format.buffer import ReadAt

log = logging.getLogger(__name__)

# A disk may be far away; QEMU waits for it as long as the datastore tries.
REQUEST_TIMEOUT_S = 60.0
# Of what the replay writes; more goes into an encrypted file.
OVERLAY_MEMORY = 16 << 20
# A disk that makes its guest fail this often is left alone for a while.
CRASHES, CRASH_WINDOW_S = 3, 60.0


class Parts(Protocol):
    """What a machine is made of: an Appliance."""

    def kernel_image(self) -> bytes:
        """What is booted."""

    def first_root(self, kind: str) -> bytes:
        """The guest's files."""

    def command(self, accelerator: str) -> Command:
        """How it is started."""


class Guest:
    """Thread-safe.

    Raises IntegrityError when the guest does not answer as it should; IntegrityError or
    BackendError, in its words, when that is because the disk's stream failed.

    Args:
        name: of the part, for messages.
        kind: of its file system.
        blocks: its bytes; never written to.
        appliance: what it is made of.
        accelerator: what it runs on.
        pool: decides when it may run.
    """

    def __init__(
        self, name: str, kind: str, blocks: ReadAt, appliance: Parts,
        accelerator: Accelerator, pool: Pool,
    ) -> None:  # fmt: skip
        self.name, self._kind = name, kind
        self._blocks = _Watched(blocks)
        self._appliance, self._accelerator, self._pool = appliance, accelerator, pool
        self._lock = Lock()
        self._session: Session | None = None
        self._replayed: Overlay | None = None
        self._crashes: deque[float] = deque(maxlen=CRASHES)
        self._closed = False

    def top(self) -> Key:
        """The root directory."""
        with self._pool.held(self):
            return self._running().ready.top

    def ask(self, op: Op, key: Key, offset: int = 0, size: int = 0, name: bytes = b"") -> Reply:
        """One question and its answer, which may be an errno."""
        with self._pool.held(self):
            session, failures = self._running(), self._blocks.failures
            try:
                reply = session.talk.ask(op, key, offset, size, name, REQUEST_TIMEOUT_S)
            except Broken as error:
                raise self._lost(session, error) from error
            if is_damage(reply.error) and self._blocks.failures != failures:
                raise self._unreadable(session)
            return reply

    def stop(self) -> None:
        """End the machine; the next question starts it again."""
        with self._lock:
            self._drop()

    def close(self) -> None:
        """End it for good."""
        self._closed = True
        session = self._session
        if session is not None:
            session.machine.kill()  # who waits for an answer, or for the start, learns of it
        self.stop()
        self._pool.leave(self)
        if self._replayed is not None:
            self._replayed.close()

    def read_disk(self, offset: int, size: int) -> bytes:
        """Bytes of the part as the replay left it, without the guest; `top` was called before."""
        if self._closed or self._replayed is None:
            raise IntegrityError(f"{self.name}: closed")
        return self._replayed.read(offset, size)

    @property
    def disk_size(self) -> int:
        """Of the part."""
        return self._blocks.size

    @property
    def has_plain_extents(self) -> bool:
        """Whether its file system tells places on the disk: those of Btrfs are its own."""
        return self._kind in ("ext2", "ext3", "ext4", "xfs")

    @property
    def pid(self) -> int | None:
        """Of its QEMU, None while it does not run."""
        session = self._session
        return None if session is None else session.machine.pid

    def _running(self) -> "Session":
        with self._lock:
            if self._closed:
                raise IntegrityError(f"{self.name}: closed")
            if self._session is not None and not self._session.machine.is_running:
                self._drop()
            if self._session is None:
                return self._start()
            return self._session

    def _start(self) -> "Session":
        crashes, now = self._crashes, time.monotonic()
        if len(crashes) == CRASHES and now - crashes[0] < CRASH_WINDOW_S:
            raise IntegrityError(
                f"{self.name}: this disk made its micro-VM fail {CRASHES} times within "
                f"{CRASH_WINDOW_S:g} s: left alone until {CRASH_WINDOW_S:g} s have passed"
            )
        while True:
            self._blocks.last = None
            # Known from here on, so that `close` need not wait until it has come up.
            # Once is enough to replay: a guest that comes later finds it done.
            overlay = Overlay(self._replayed or self._blocks, OVERLAY_MEMORY)
            self._session = session = Session(
                self._appliance, self._kind, self._accelerator.name, overlay, self.name
            )
            try:
                if self._closed:  # while it was being started: `close` has not seen it
                    raise IntegrityError(f"{self.name}: closed")
                return self._booted(session)
            except Broken as error:
                self._drop()
                if self._closed or not self._accelerator.failed():
                    crashes.append(time.monotonic())
                    raise self._ended(session, error) from error
            except BaseException:
                self._drop()
                raise

    def _booted(self, session: "Session") -> "Session":
        """Its disk is mounted now. Raises Broken; a StoreError: it cannot be mounted."""
        began = time.monotonic()
        error, session.ready = session.talk.ready(self._accelerator.boot_timeout_s)
        self._accelerator.works()
        if error:
            raise self._not_mounted(error, session.ready)
        if self._replayed is None:
            self._replayed = session.keep_overlay()
        log.debug("%s: micro-VM up in %.1f s", self.name, time.monotonic() - began)
        return session

    def _drop(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _lost(self, session: "Session", broken: Broken) -> StoreError:
        with self._lock:
            if self._session is session:
                self._drop()
                if not self._closed:
                    self._crashes.append(time.monotonic())
        return self._ended(session, broken)

    def _ended(self, session: "Session", broken: Broken) -> StoreError:
        if self._closed:
            return IntegrityError(f"{self.name}: closed")
        said = session.machine.last_words()
        if PANIC in said:
            return IntegrityError(f"{self.name}: its file system crashed the micro-VM: {said}")
        return IntegrityError(f"{self.name}: the micro-VM: {broken} (its console: {said})")

    def _unreadable(self, session: "Session") -> StoreError:
        """The disk's stream failed, not what is on it. What the guest now thinks may be wrong."""
        failure = self._blocks.last
        if isinstance(failure, IntegrityError):
            return IntegrityError(f"{self.name}: {failure}")
        with self._lock:
            if self._session is session:
                self._drop()
        retryable = isinstance(failure, BackendError) and failure.retryable
        return BackendError(f"{self.name}: {failure}", retryable=retryable)

    def _not_mounted(self, error: int, ready: Ready) -> StoreError:
        if self._blocks.last is not None:
            failure = self._blocks.last
            kind = IntegrityError if isinstance(failure, IntegrityError) else BackendError
            return kind(f"{self.name}: {failure}")
        lines = [line.partition("] ")[2] or line for line in ready.log.splitlines()]
        said = [line for line in lines if self._kind[:3].lower() in line.lower()]
        why = said[-1][:200] if said else f"error {error}"
        return FormatError(f"{self.name}: Linux does not mount it as {self._kind}: {why}")


class Session:
    """A machine, and all that belongs to it. Raises BackendError: it cannot be started."""

    ready: Ready

    def __init__(
        self, appliance: Parts, kind: str, accelerator: str, overlay: Overlay, name: str
    ) -> None:
        kernel, first_root = appliance.kernel_image(), appliance.first_root(kind)
        self._overlay, self._is_kept = overlay, False
        self._door = Door(overlay)
        try:
            command, disk = appliance.command(accelerator), self._door.let_in()
            self._door.shut()
            self.machine = Machine(command, disk, kernel, first_root, name)
        except BaseException:
            self._let_go()
            raise
        self.talk = Conversation(self.machine.port)

    def close(self) -> None:
        """Kill it, and forget what it wrote."""
        self.machine.kill()
        self._let_go()
        with suppress(OSError):
            self.machine.port.close()

    def keep_overlay(self) -> Overlay:
        """What it wrote outlives it; the caller closes it."""
        self._is_kept = True
        return self._overlay

    def _let_go(self) -> None:
        self._door.close()
        if not self._is_kept:
            self._overlay.close()


class _Watched:
    """A stream that remembers how it failed: in the guest it is a disk with an I/O error."""

    def __init__(self, stream: ReadAt) -> None:
        self._stream, self.size = stream, stream.size
        self.failures = 0
        self.last: StoreError | None = None

    def read(self, offset: int, size: int) -> bytes:
        try:
            return self._stream.read(offset, size)
        except StoreError as error:
            self.last = error
            self.failures += 1
            raise

"""The head that an export has open in nbdkit's process: its images, its seals, its end."""

import logging
import time
from collections.abc import Callable
from threading import Event, Lock, Thread

from blockgw.device import chunks_ahead
from blockgw.writing.device import WritableDevice
from blockgw.writing.gate import Gate
from blockgw.writing.names import HeadExports
from blockgw.writing.selection import HeadSelection
from store.datastore.archives import ChunkCache
from store.datastore.datastore import Datastore
from store.errors import StoreError
from store.format.crypt import CryptConfig
from store.format.fixed_index import CHUNK_SIZE
from store.heads.control import Control
from store.heads.head import OpenHead
from store.heads.heads import DEFAULT_BUDGET, NEWEST, Heads
from store.heads.sealing.policy import SealPolicy
from store.names import Snapshot

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often the policy is asked whether the head has been left alone for long enough."""


def heads_of(
    selection: HeadSelection,
    datastore: Datastore,
    key: CryptConfig | None,
    cache: ChunkCache | None = None,
) -> Heads:
    """The heads among which is the selected one.

    A clone with a full journal is no reason for a snapshot: its writer has no space.
    """
    options = selection.options
    return Heads(
        datastore,
        options.directory,
        key=key,
        crypt_mode=options.crypt_mode,
        cache=cache,
        budget_bytes=options.journal_bytes or DEFAULT_BUDGET,
        seal_when_full=selection.clone_of is None,
    )


def open_head(selection: HeadSelection, heads: Heads) -> OpenHead:
    """The selected head, made if it is not there. Raises what `Heads.open` does."""
    return heads.open(
        selection.namespace,
        selection.group,
        base=selection.clone_of or NEWEST,
        label=selection.label,
    )


class HeldHead:
    """An open head, until `end`. Thread-safe. Other processes may ask it to seal, and to end."""

    def __init__(
        self,
        head: OpenHead,
        selection: HeadSelection,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._head, self._policy, self._clock = head, selection.options.seal, clock
        self.exports = HeadExports(selection, head)
        self._chunks_ahead = chunks_ahead(head.datastore.backend, head.cache, CHUNK_SIZE)
        self._gate = Gate()
        self._sealing, self._ending = Lock(), Lock()
        self._is_over = Event()
        self._sealed: Snapshot | None = None
        self._left_alone = LeftAlone(head, clock)
        commands = {"seal": self._answer_seal, "end": self._answer_end}
        self._control = Control(head.directory, commands)
        if self._policy.idle_s is not None:
            Thread(target=self._seal_now_and_then, name="seal", daemon=True).start()

    def open(self, name: str) -> WritableDevice:
        """The image a client means by `name`. Raises StoreError."""
        with self._gate:
            image = self._head.image(self.exports.resolve(name))
            return WritableDevice(image, self._gate, self._chunks_ahead)

    def seal(self, *, strict: bool = False) -> Snapshot:
        """Make the state of now the next snapshot. Raises StoreError."""
        with self._sealing:
            return self._head.seal(strict=strict)

    def seal_if_idle(self) -> None:
        """Seal what nobody wrote to for as long as the policy says; a failure is logged."""
        idle_s = self._policy.idle_s
        if idle_s is not None and self._left_alone.for_s() >= idle_s and self._head.dirty_bytes:
            self._left_alone.begin()
            try:
                self.seal()
            except StoreError as error:
                log.warning("%s; the head stays as it is", error)

    def _seal_now_and_then(self) -> None:
        while not self._is_over.wait(LOOK_S):
            with self._ending:
                if not self._is_over.is_set():
                    self.seal_if_idle()

    def end(self) -> Snapshot | None:
        """Take no more requests, seal if the policy says so, and let others have the head.

        Returns the snapshot that was made; the same if it is called again. Raises StoreError: it
        could not be sealed, or not be closed well. What was flushed is in the head all the same.
        """
        with self._ending:
            if not self._is_over.is_set():
                self._is_over.set()
                self._gate.shut()
                try:
                    if self._policy.at_end and self._head.dirty_bytes:
                        self._sealed = self.seal()
                finally:
                    self._close()
            return self._sealed

    def _close(self) -> None:
        with self._sealing:  # one that was asked for goes to its end
            self._control.close()
            self._head.close()

    def _answer_seal(self, request: dict[str, object]) -> dict[str, object]:
        return {"snapshot": str(self.seal(strict=bool(request.get("strict"))))}

    def _answer_end(self, _: dict[str, object]) -> dict[str, object]:
        snapshot = self.end()
        return {"snapshot": snapshot and str(snapshot)}


class LeftAlone:
    """How long nobody has written to a head."""

    def __init__(self, head: OpenHead, clock: Callable[[], float]) -> None:
        self._journal, self._clock = head.journal, clock
        self.begin()

    def begin(self) -> None:
        """It counts as written to now."""
        self._changes, self._since = self._journal.changes, self._clock()

    def for_s(self) -> float:
        """Seconds, as far as calls of this method tell."""
        if self._journal.changes != self._changes:
            self.begin()
        return self._clock() - self._since


__all__ = ["HeldHead", "LeftAlone", "SealPolicy", "heads_of", "open_head"]

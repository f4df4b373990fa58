"""The heads a mount has open: made when somebody looks into `current/`, sealed as the policy says.

Called in threads only, from several at once.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, RLock

from fsgateway.writing.files import Blob, BlobFile, ImagePlace
from store.errors import AlreadyExists, StoreError
from store.heads.control import Control
from store.heads.head import OpenHead
from store.heads.heads import Heads
from store.heads.sealing.policy import SealPolicy
from store.names import BackupGroup, Namespace, Snapshot

__all__ = ["MountedHead", "OpenHeads", "SealPolicy"]

log = logging.getLogger(__name__)

Place = tuple[Namespace, BackupGroup]


class MountedHead:
    """An open head, the blobs in it that are open, and when it was written to last."""

    def __init__(
        self, head: OpenHead, clock: Callable[[], float], settle: Callable[[], None]
    ) -> None:
        """`settle`: returns when the head has all that its mount answered by then."""
        self.head = head
        self._settle = settle
        self.sealing = RLock()
        self._clock = clock
        self._lock = Lock()
        self._blobs: dict[str, Blob] = {}
        self._images: dict[str, ImagePlace] = {}
        self._seen = (0, clock())
        self._control = Control(head.directory, {"seal": self._seal_for_another})

    def _seal_for_another(self, request: dict[str, object]) -> dict[str, object]:
        """`vaultway head seal` of a head that this mount has open."""
        return {"snapshot": str(self.seal(strict=bool(request.get("strict"))))}

    def close(self) -> None:
        """Let other processes have it. Raises StoreError."""
        self._control.close()
        self.head.close()

    @property
    def can_be_sealed(self) -> bool:
        """Whether there is a change, and anything left in it."""
        return bool(self.head.dirty_bytes and self.head.archives)

    def idle_s(self) -> float:
        """How long nothing was written to it, as far as calls of this method tell."""
        changes, now = self.head.journal.changes, self._clock()
        if changes != self._seen[0]:
            self._seen = changes, now
        return now - self._seen[1]

    def rest(self) -> None:
        """It counts as written to now."""
        self._seen = self.head.journal.changes, self._clock()

    def open_blob(self, name: str, *, is_new: bool = False) -> BlobFile:
        """Open a blob; all who have it open see one content. Raises what reading it does."""
        with self._lock:
            blob = self._blobs.get(name)
            if blob is None:
                blob = self._blobs[name] = Blob(self.head, name, is_new=is_new)
            blob.users += 1
        return BlobFile(blob, self._close_blob)

    def _close_blob(self, blob: Blob) -> None:
        try:
            blob.store()
        finally:
            with self._lock:
                blob.users -= 1
                if not blob.users and self._blobs.get(blob.name) is blob:
                    del self._blobs[blob.name]

    def rename_blob(self, name: str, new_name: str, *, replaces: bool) -> None:
        """Raises NotFound, AlreadyExists. A crash may leave both names."""
        if name == new_name:
            return
        if not replaces and new_name in self.head.archives:
            raise AlreadyExists(f"{self.head.group} has an archive {new_name} already")
        with self._lock:
            moved, replaced = self._blobs.pop(name, None), self._blobs.pop(new_name, None)
            if replaced is not None:
                replaced.leave()
            if moved is not None:
                self._blobs[new_name] = moved
                moved.name = new_name
        content = moved.read(0, moved.size) if moved else self.head.read_blob(name)
        self.head.write_blob(new_name, content)
        self.head.remove(name)

    @property
    def archives(self) -> list[str]:
        """What is in the head, and images that were just made."""
        with self._lock:
            new = [name for name, place in self._images.items() if not place.is_there]
        return [*self.head.archives, *new]

    def image(self, name: str, *, is_new: bool = False) -> ImagePlace:
        """An image by name, the same object each time. Raises NotFound, AlreadyExists."""
        with self._lock:
            if is_new and name in self.head.archives:
                raise AlreadyExists(f"{self.head.group} has an archive {name} already")
            place = self._images.get(name)
            if place is None:
                place = self._images[name] = ImagePlace(self.head, name, is_new=is_new)
            return place

    def remove(self, name: str) -> None:
        """Leave an archive out of the next snapshot. Raises NotFound."""
        with self._lock:
            place = self._images.pop(name, None)
            blob = self._blobs.pop(name, None)
            if blob is not None:
                blob.leave()
        if place is None or place.is_there:
            self.head.remove(name)

    def truncate_blob(self, name: str, size: int) -> None:
        """Cut a blob, or fill it up with zeros."""
        file = self.open_blob(name)
        try:
            file.truncate(size)
        finally:
            file.close()

    def blob_size(self, name: str) -> int:
        """Its bytes, also while it is being written."""
        with self._lock:
            blob = self._blobs.get(name)
        return blob.size if blob else len(self.head.read_blob(name))

    def seal(self, *, strict: bool = False) -> Snapshot:
        """Make the state of now the next snapshot, open blobs included. Raises StoreError."""
        with self.sealing:
            with self._lock:
                blobs = list(self._blobs.values())
            for blob in blobs:
                blob.store()
            with self.head.journal.holding_still():
                self._settle()
                return self.head.seal(strict=strict)


class OpenHeads:
    """The heads of a mount, one for each group that somebody looked into."""

    def __init__(
        self, heads: Heads, policy: SealPolicy, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._heads = heads
        self._policy = policy
        self._clock = clock
        self._lock = Lock()
        self._opening: dict[Place, Lock] = {}
        self._open: dict[Place, MountedHead] = {}
        self.settle: Callable[[], None] = lambda: None
        """Returns when what the mount answered is in the heads; called in threads."""

    def get(self, namespace: Namespace, group: BackupGroup) -> MountedHead:
        """The head of a group, opened or made if it is not. Raises Locked and other StoreErrors."""
        place = namespace, group
        with self._only_one(place):
            found = self._open.get(place)
            if found is None:
                head = self._heads.open(namespace, group)
                found = self._open[place] = MountedHead(head, self._clock, lambda: self.settle())
            return found

    @contextmanager
    def _only_one(self, place: Place) -> Iterator[None]:
        """Opening a head reads its journal: others may be opened meanwhile."""
        with self._lock:
            lock = self._opening.setdefault(place, Lock())
        with lock:
            yield

    def groups(self, namespace: Namespace) -> list[BackupGroup]:
        """Groups that have a head, whether or not they have a snapshot."""
        found = (info for info in self._heads.list() if not info.label)
        return [info.group for info in found if info.namespace == namespace]

    def seal_idle(self) -> None:
        """Seal what nobody wrote to for long enough; a failure is logged, and tried again later."""
        idle_s = self._policy.idle_s
        if idle_s is None:
            return
        for mounted in self._all():
            if mounted.idle_s() >= idle_s and mounted.can_be_sealed:
                _seal(mounted)
                mounted.rest()

    def _all(self) -> list[MountedHead]:
        with self._lock:
            return list(self._open.values())

    def close(self) -> None:
        """The mount ends: seal if the policy says so, and let other processes have the heads.

        What cannot be sealed stays in the head; the log says so.
        """
        for mounted in self._all():
            if self._policy.at_end and mounted.can_be_sealed:
                _seal(mounted)
            try:
                mounted.close()
            except StoreError as error:
                log.warning("head of %s: %s", mounted.head.group, error)
        self._open.clear()


def _seal(mounted: MountedHead) -> None:
    try:
        snapshot = mounted.seal()
    except StoreError as error:
        log.warning("head of %s stays, not sealed: %s", mounted.head.group, error)
    else:
        log.info("sealed %s", snapshot)

"""What keeps moved chunks: a snapshot that names them, in a group of its own, protected.

Garbage collection, ours and PBS's, keeps what an index file of a snapshot names. Prune keeps what
is protected. Verification finds a snapshot like others. So a chunk may lie for as long as the head
does, whoever has it open or not. A head has one pin: each time that content is moved there is a new
one, which names all of it, before the one of before goes.
"""

import logging
import os
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress

from store.datastore.datastore import Datastore
from store.datastore.snapshots import SnapshotWriter, SyncLevel
from store.errors import NotFound, StoreError
from store.heads.database import Rows
from store.heads.moved import MovedChunk
from store.names import BackupGroup, Namespace, Snapshot
from store.operations.backup.session import SnapshotSession

log = logging.getLogger(__name__)

GROUP_PREFIX = "vaultway-head-"
FILENAME = "moved.didx"
GROUP, PIN = "pin_group", "pin"
"""Of the journal's meta: the group, and the snapshot that is the pin now."""


class Pins:
    """The pins of one head. For one thread at a time."""

    def __init__(self, datastore: Datastore, namespace: Namespace, rows: Rows) -> None:
        self._datastore, self._namespace, self._rows = datastore, namespace, rows

    @property
    def group(self) -> BackupGroup | None:
        """Where they are; None when there has never been one."""
        name = self._rows.meta(GROUP)
        return BackupGroup("host", name) if name else None

    @property
    def current(self) -> Snapshot | None:
        """The one that names all that the head has moved."""
        text = self._rows.meta(PIN)
        return Snapshot.parse(text) if text else None

    def is_there(self) -> bool:
        """Whether the datastore has it. Raises StoreError."""
        group = self.group
        return group is not None and self.current in self._datastore.list_snapshots(
            self._namespace, group
        )

    def begin(self, group: BackupGroup, sync_level: SyncLevel) -> SnapshotWriter:
        """Start the next one, for use in a `with`. Raises as Datastore.begin_snapshot."""
        found = self._datastore.list_snapshots(self._namespace, group)
        now = int(time.time())
        snapshot = Snapshot(group, max(now, found[-1].time + 1 if found else 1))
        return self._datastore.begin_snapshot(self._namespace, snapshot, sync_level=sync_level)

    def finish(self, session: SnapshotSession, chunks: Iterable[MovedChunk], head: str) -> Snapshot:
        """Name the chunks, which are there, and protect the snapshot that does.

        `head`: whose it is, for people.
        """
        index, end = session.index(FILENAME), 0
        for digest, size in {chunk.digest: chunk.size for chunk in chunks}.items():
            end += size
            index.add(end, digest)
        session.add(FILENAME, index.close(), end)
        session.finish()
        snapshot = session.writer.snapshot
        self._datastore.set_protected(self._namespace, snapshot, True)
        text = f"what the head of {head} on {os.uname().nodename} has written and not sealed"
        self._datastore.set_notes(self._namespace, snapshot.group, text)
        return snapshot

    def keep_only(self, snapshot: Snapshot | None) -> None:
        """Remove all pins but one. One that can't be removed now is left to the next call."""
        group = self.group
        if group is None:
            return
        try:
            remove_pins(self._datastore, self._namespace, group, keep=snapshot)
        except StoreError as error:
            log.warning("%s, which nobody needs any more, can't be removed: %s", group, error)


def new_group_name() -> str:
    """One that no head has, here or elsewhere."""
    return f"{GROUP_PREFIX}{secrets.token_hex(8)}"


def remove_pins(
    datastore: Datastore, namespace: Namespace, group: BackupGroup, *, keep: Snapshot | None = None
) -> None:
    """Let go of what a head has moved; without `keep` of the group, too. Raises StoreError."""
    for snapshot in datastore.list_snapshots(namespace, group):
        if snapshot != keep:
            with suppress(NotFound):  # somebody was faster
                datastore.set_protected(namespace, snapshot, False)
                datastore.forget_snapshot(namespace, snapshot)
    if keep is None:
        with suppress(NotFound):  # it is there if a crash has left an unfinished one
            datastore.forget_group(namespace, group)


__all__ = ["FILENAME", "GROUP", "PIN", "Pins", "new_group_name", "remove_pins"]

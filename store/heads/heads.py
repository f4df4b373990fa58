"""All heads of one datastore on this machine: list, create, open, discard."""

import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from store.backends.base import storage_error
from store.backends.local.lock_files import HeldLockFile, LockFiles
from store.backends.local.locks import HeldLocks
from store.datastore.archives import ChunkCache
from store.datastore.chunk_cache import cache_over
from store.datastore.datastore import Datastore
from store.datastore.snapshots import SyncLevel
from store.errors import AlreadyExists, InvalidName, Locked, NotFound, StoreError
from store.format.crypt import CryptConfig
from store.format.manifest import CryptMode
from store.heads.base import HeadInfo
from store.heads.database import Rows
from store.heads.head import OpenHead
from store.heads.moving.pins import GROUP_PREFIX, Pins, remove_pins
from store.heads.place import (
    Description,
    default_directory,
    head_name,
    remove_directory,
)
from store.heads.protection import Protection
from store.heads.segments import SEGMENT_HEADER
from store.names import BackupGroup, Namespace, Snapshot

if TYPE_CHECKING:
    from store.heads import base
    from store.heads.image import HeadImage
    from store.heads.tree import HeadTree

log = logging.getLogger(__name__)

PATIENCE_S = 0.2
"""For who lists heads just now, and looks whether somebody has them."""
DEFAULT_BUDGET = 16 << 30
CACHE_BYTES = 64 << 20
NEWEST: Literal["newest"] = "newest"
HeadLock = HeldLocks | HeldLockFile


class Heads:
    """The heads of one datastore. Thread-safe; any number of processes may have one."""

    def __init__(
        self,
        datastore: Datastore,
        directory: str | os.PathLike[str] | None = None,
        *,
        key: CryptConfig | None = None,
        crypt_mode: CryptMode | None = None,
        cache: ChunkCache | None = None,
        budget_bytes: int = DEFAULT_BUDGET,
        seal_when_full: bool = True,
        sync_level: SyncLevel = SyncLevel.FILESYSTEM,
    ) -> None:
        """Heads that are made, and snapshots that are sealed, are protected as said here.

        Args:
            datastore: where the snapshots are.
            directory: of the heads on local disk; None: `$XDG_STATE_HOME/vaultway/heads`.
            key: to read the snapshots with, and to encrypt or sign what is sealed.
            crypt_mode: None: ENCRYPT with a key, else NONE. With ENCRYPT the journals are too.
            cache: of decoded chunks, the gateway's; None: one of 64 MiB.
            budget_bytes: of each head's journal.
            seal_when_full: who writes past the budget waits until content has moved to the
                datastore, or the head is sealed; else for a minute for somebody to seal it, and
                then has no space.
            sync_level: how durable a sealed snapshot is.
        """
        self.datastore = datastore
        self.directory = Path(default_directory() if directory is None else directory).absolute()
        self.key = key
        self.crypt_mode = crypt_mode or (CryptMode.ENCRYPT if key else CryptMode.NONE)
        if (key is None) != (self.crypt_mode is CryptMode.NONE):
            raise InvalidName(f"crypt mode {self.crypt_mode} and the key do not go together")
        self.cache = cache_over(datastore.backend, CACHE_BYTES) if cache is None else cache
        self.budget_bytes, self.seal_when_full = budget_bytes, seal_when_full
        self.sync_level = sync_level
        self._locks = LockFiles(str(self.directory), None)

    def path(self, namespace: Namespace, group: BackupGroup, label: str = "") -> str:
        """The directory of one head, there or not."""
        name = head_name(self.datastore.backend.location, namespace, group, label)
        return str(self.directory / name)

    def exists(self, namespace: Namespace, group: BackupGroup, label: str = "") -> bool:
        """Whether there is a head of this group."""
        return Description.read(self.path(namespace, group, label)) is not None

    def open(
        self,
        namespace: Namespace,
        group: BackupGroup,
        *,
        base: Snapshot | Literal["newest"] | None = NEWEST,
        label: str = "",
    ) -> OpenHead:
        """The group's head, made if there is none; a clean one moves on to the newest snapshot.

        Args:
            namespace: an existing one.
            group: there or not.
            base: what a new one stands on: a snapshot of the group, nothing, or the newest if
                there is one.
            label: of a head beside the group's, a clone: it stays on its base.
        Raises:
            Locked: it is open elsewhere; says where.
            NotFound: the base is gone. KeyRequired, WrongKey.
        """
        path = self.path(namespace, group, label)
        lock = self._lock_named(path, group, label)
        try:
            description = Description.read(path)
            if description is None:
                return self._create(namespace, group, base, path, lock, label)
            head = self._opened(description, path, lock, create=False)
        except BaseException:
            lock.release()
            raise
        try:
            self._move_on(head)
            if not description.wrapped_key and self.crypt_mode is CryptMode.ENCRYPT:
                log.warning(
                    "the head of %s was made without a key, its journal is not encrypted: seal it"
                    " and discard it",
                    group,
                )
            head.recover()
        except BaseException:
            head.abandon()
            raise
        return head

    def create(
        self,
        namespace: Namespace,
        group: BackupGroup,
        *,
        base: Snapshot | Literal["newest"] | None = NEWEST,
    ) -> OpenHead:
        """The same for a head that is not there yet. Raises AlreadyExists."""
        if self.exists(namespace, group):
            raise AlreadyExists(f"{group} has a head; open it, seal it or discard it")
        return self.open(namespace, group, base=base)

    def _lock_named(self, path: str, group: BackupGroup, label: str) -> HeadLock:
        """The lock of a head, or the reason, in the user's words."""
        try:
            return self._lock(path)
        except Locked as error:
            what = f"the clone {label} of {group}" if label else f"the head of {group}"
            raise Locked(f"{what} is in use by {_who(error)}") from error

    def _lock(self, path: str) -> HeadLock:
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            return self._locks.lock(
                os.path.basename(path), exclusive=True, deadline=time.monotonic() + PATIENCE_S
            )
        except OSError as error:
            raise storage_error(error, str(self.directory)) from error

    def _create(
        self,
        namespace: Namespace,
        group: BackupGroup,
        base: Snapshot | Literal["newest"] | None,
        path: str,
        lock: HeadLock,
        label: str,
    ) -> OpenHead:
        remove_directory(path)
        if base == NEWEST:
            found = self.datastore.list_snapshots(namespace, group)
            base = found[-1] if found else None
        try:
            os.mkdir(path, 0o700)
        except OSError as error:
            raise storage_error(error, path) from error
        key = self.key if self.crypt_mode is CryptMode.ENCRYPT else None
        description = Description.new(self.datastore.backend.location, namespace, group, key, label)
        head = self._opened(description, path, lock, create=True)
        try:
            head.stand_on(base)
            head.recover()
            description.write(path)
        except BaseException:
            head.abandon()
            raise
        return head

    def _opened(
        self, description: Description, path: str, lock: HeadLock, *, create: bool
    ) -> OpenHead:
        return OpenHead(
            self.datastore,
            description,
            path,
            lock,
            self.key,
            self.crypt_mode,
            self.cache,
            self.budget_bytes,
            seal_when_full=self.seal_when_full,
            sync_level=self.sync_level,
            create=create,
        )

    def _move_on(self, head: OpenHead) -> None:
        """A head without changes stands on the newest snapshot, whoever made it."""
        if head.description.label or not head.is_clean or head.has_log:
            return
        found = self.datastore.list_snapshots(head.namespace, head.group)
        newest = found[-1] if found else None
        base = head.base
        if base == newest or (base is not None and newest is None):
            head.forget_numbers()
            return
        head.stand_on(newest)

    @contextmanager
    def clone(self, namespace: Namespace, snapshot: Snapshot) -> Iterator[OpenHead]:
        """A throw-away head of a snapshot, gone when the `with` ends; any number of them.

        One that a crash leaves is in `list`, with its label, for `discard`.
        """
        label = f"clone-{secrets.token_hex(8)}"
        try:
            with self.open(namespace, snapshot.group, base=snapshot, label=label) as head:
                yield head
        finally:
            with suppress(NotFound):
                self.discard(namespace, snapshot.group, label)

    def discard(self, namespace: Namespace, group: BackupGroup, label: str = "") -> None:
        """Drop a head and all that was not sealed. Raises NotFound, Locked."""
        path = self.path(namespace, group, label)
        if not self.exists(namespace, group, label):
            raise NotFound(f"{group} has no head")
        with self._lock_named(path, group, label):
            self._remove_pins(namespace, path)
            remove_directory(path)

    def _remove_pins(self, namespace: Namespace, path: str) -> None:
        """Let go of what a head has moved to the datastore, if its journal can still tell."""
        rows = Rows(f"{path}/journal.sqlite", Protection(None))
        try:
            group = Pins(self.datastore, namespace, rows).group
        except StoreError as error:
            log.warning("%s; if it has a group host/%s…, forget that", error, GROUP_PREFIX)
            return
        finally:
            rows.close()
        if group is not None:
            remove_pins(self.datastore, namespace, group)

    def list(self) -> Iterator[HeadInfo]:
        """The heads of this datastore."""
        try:
            names = sorted(os.listdir(self.directory))
        except FileNotFoundError:
            return
        except OSError as error:
            raise storage_error(error, str(self.directory)) from error
        for name in names:
            path = str(self.directory / name)
            description = Description.read(path)
            if description and description.repository == self.datastore.backend.location:
                yield self._info(description, path)

    def _info(self, description: Description, path: str) -> HeadInfo:
        rows = Rows(f"{path}/journal.sqlite", Protection(None))
        try:
            base = rows.meta("base")
            archives = rows.fetch("SELECT name FROM archive ORDER BY id")
            changed = rows.meta("changed") or description.created
            moved = rows.meta("moved_bytes") or 0
            is_dirty = bool(rows.meta("archives_changed")) or rows.has_changes()
        finally:
            rows.close()
        size = 0
        with suppress(FileNotFoundError):
            size = sum(entry.stat().st_size for entry in os.scandir(f"{path}/segments"))
        is_dirty = is_dirty or size > SEGMENT_HEADER
        return HeadInfo(
            namespace=description.namespace,
            group=description.group,
            repository=description.repository,
            base=Snapshot.parse(base) if base else None,
            archives=tuple(row[0] for row in archives),
            dirty_bytes=max(size + moved, 1) if is_dirty else 0,
            moved_bytes=moved if is_dirty else 0,
            created=description.created,
            changed=changed,
            holder=self._holder(path),
            encrypted=bool(description.wrapped_key),
            label=description.label,
        )

    def _holder(self, path: str) -> str | None:
        try:
            self._lock(path).release()
        except Locked as error:
            return _who(error)
        return None


def _who(error: Locked) -> str:
    return str(error).rpartition(" by ")[2]


if TYPE_CHECKING:

    def _fits(
        head: OpenHead, tree: HeadTree, image: HeadImage
    ) -> "tuple[base.Head, base.Tree, base.Image]":
        """What the gateways are promised is what they get."""
        return head, tree, image


__all__ = ["DEFAULT_BUDGET", "NEWEST", "Heads", "StoreError"]

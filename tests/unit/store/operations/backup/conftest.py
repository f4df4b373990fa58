"""A small datastore to back up to, and eyes to see what came of it."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from store.datastore.archives import ChunkCache, SnapshotReader
from store.datastore.datastore import Datastore
from store.datastore.snapshots import SyncLevel
from store.format.crypt import CryptConfig
from store.format.manifest import CryptMode
from store.format.pxar.accessor import Accessor
from store.format.pxar.entries import Entry, EntryKind
from store.names import Snapshot
from store.operations.backup import (
    BackupRequest,
    BackupResult,
    BackupSource,
    ChangeDetectionMode,
    run_backup,
)
from store.operations.restore import restore_archive
from store.progress import SILENT, Progress
from tests.fakes.datastores import DAY, GROUP, ROOT, local_datastore

KEY = CryptConfig(bytes(range(32)))
MIB = 1 << 20
LEGACY, DATA, METADATA = ChangeDetectionMode


class Vault:
    """A datastore, and backups into one group of it, a day after the other."""

    def __init__(self, datastore: Datastore) -> None:
        self.datastore = datastore
        self.day = 0
        self.warnings: list[str] = []
        self.defaults: dict[str, Any] = {"chunk_size": 1 << 16, "sync_level": SyncLevel.NONE}

    def backup(
        self,
        *sources: str,
        encrypted: bool = False,
        progress: Progress = SILENT,
        **options: Any,
    ) -> BackupResult:
        """Back up `sources` (default type .pxar) and keep the warnings."""
        self.day += 1
        self.warnings = []
        if encrypted:
            options = {"key": KEY, "crypt_mode": CryptMode.ENCRYPT} | options
        request = BackupRequest(
            self.datastore,
            ROOT,
            GROUP,
            self.day * DAY,
            tuple(map(BackupSource.parse, sources)),
            **self.defaults | options,
        )
        return run_backup(request, progress, self.warnings.append)

    def tree(self, directory: Path, mode: ChangeDetectionMode = LEGACY, **options: Any) -> "Tree":
        """Back up one directory and open what came of it."""
        result = self.backup(f"root.pxar:{directory}", change_detection_mode=mode, **options)
        return self.open(result.snapshot, options.get("key") or KEY)

    def open(self, snapshot: Snapshot, key: CryptConfig | None = KEY) -> "Tree":
        return Tree(self.reader(snapshot, key).open_tree("root.pxar"))

    def reader(self, snapshot: Snapshot, key: CryptConfig | None = KEY) -> SnapshotReader:
        return SnapshotReader(self.datastore, ROOT, snapshot, key, ChunkCache(32 * MIB))

    def restore(self, snapshot: Snapshot, target: Path, archive: str = "root.pxar") -> Path:
        restore_archive(self.reader(snapshot), archive, target)
        return target

    @property
    def snapshots(self) -> list[Snapshot]:
        return self.datastore.list_snapshots(ROOT, GROUP)

    @property
    def leftovers(self) -> list[str]:
        """Directories of the group that are no finished snapshot."""
        finished = {str(snapshot).rpartition("/")[2] for snapshot in self.snapshots}
        found = self.datastore.backend.scan(GROUP.path(ROOT))
        return [entry.name for entry in found if entry.is_directory and entry.name not in finished]

    @property
    def chunks(self) -> set[str]:
        return {digest.hex() for digest in self.datastore.chunks.iterate()}


class Tree:
    """An archive opened for looking at it by path."""

    def __init__(self, accessor: Accessor) -> None:
        self.accessor = accessor
        self.entries = dict(self._walk(accessor.root(), b""))

    def _walk(self, directory: Entry, path: bytes) -> Iterator[tuple[bytes, Entry]]:
        yield path.rstrip(b"/"), directory
        for entry in self.accessor.list(directory):
            if entry.kind is EntryKind.DIRECTORY:
                yield from self._walk(entry, path + entry.name + b"/")
            else:
                yield path + entry.name, entry

    def __getitem__(self, path: str | bytes) -> Entry:
        return self.entries[os.fsencode(path)]

    @property
    def names(self) -> list[str]:
        return [os.fsdecode(path) for path in self.entries if path]

    def read(self, path: str | bytes) -> bytes:
        entry = self[path]
        if entry.kind is EntryKind.HARDLINK:
            entry = self.accessor.follow(entry)
        return self.accessor.read(entry, 0, entry.size)

    @property
    def contents(self) -> dict[str, bytes]:
        """Every regular file's content by path."""
        kinds = (EntryKind.FILE, EntryKind.HARDLINK)
        paths = [path for path, entry in self.entries.items() if entry.kind in kinds]
        return {os.fsdecode(path): self.read(path) for path in paths}


def contents(directory: Path) -> dict[str, bytes]:
    """The same of a directory."""
    found = sorted(
        path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()
    )
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(local_datastore(tmp_path / "vault"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An empty directory to fill and back up."""
    directory = tmp_path / "source"
    directory.mkdir()
    return directory


@pytest.fixture(params=[LEGACY, DATA], ids=["legacy", "split"])
def mode(request: pytest.FixtureRequest) -> ChangeDetectionMode:
    found: ChangeDetectionMode = request.param
    return found


Hook = Callable[..., Any]


@pytest.fixture
def on_call(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Hook], None]:
    """`on_call("readv", hook)` calls hook(original, *arguments) in place of os.readv."""

    def install(name: str, hook: Hook) -> None:
        original = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *arguments, **options: hook(original, *arguments, **options)
        )

    return install

"""The trees that the snapshots of a group have, for the views that show several at once."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from fsgateway.view import Content, OpenSnapshot, Recent, SnapshotId, Tree, View
from store.datastore.workers import Workers
from store.errors import BackendError, FormatError, IntegrityError, NotFound
from store.format.manifest import Manifest
from store.format.pxar.accessor import Accessor
from store.format.pxar.entries import Entry
from store.names import CATALOG_NAME, BackupGroup, Namespace, Snapshot
from store.trees.moments import Moment
from store.trees.versions import VersionsTree

log = logging.getLogger(__name__)

# About 1 KB each.
KNOWN_SNAPSHOTS = 16_384
# About 200 bytes for each snapshot.
KNOWN_GROUPS = 64
# About 30 KB each for trees of up to a million files.
OPEN_NAMES = 1024
# Streams with an index of 40 KB and more, which may hold a descriptor: large trees in one stream.
LARGE = 4 << 30
OPEN_LARGE = 128
MERGED_TREES = 32
# Calls at once, where they wait for a network.
AT_ONCE = 16

Trees = Mapping[str, Moment]
Moments = Mapping[str, Sequence[tuple[SnapshotId, Moment]]]


class History:
    """What the snapshots of a mount have of each tree. Thread-safe; all of it is kept in bounds."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._trees: Recent[SnapshotId, Trees] = Recent(KNOWN_SNAPSHOTS)
        self._groups: Recent[tuple[Namespace, BackupGroup], tuple[list[Snapshot], Moments]] = (
            Recent(KNOWN_GROUPS)
        )
        self._names: Recent[tuple[SnapshotId, str], Accessor] = Recent(OPEN_NAMES)
        self._large: Recent[tuple[SnapshotId, str], Accessor] = Recent(OPEN_LARGE)
        self._merged: Recent[tuple[Moment, ...], VersionsTree] = Recent(MERGED_TREES)
        backend = view.datastore.backend
        few = len(os.sched_getaffinity(0))
        self._at_once = min(backend.parallelism, AT_ONCE) if backend.parallelism > few else 1

    def moments(self, namespace: Namespace, group: BackupGroup) -> Moments:
        """The trees of the group's snapshots by name, sorted; of each its snapshots, newest first.

        Read once: a new snapshot costs its manifest. One whose manifest is damaged has no trees,
        and a line in the log. Raises BackendError.
        """
        snapshots = self._view.snapshots(namespace, group)
        known = self._groups.peek((namespace, group))
        if known is None or known[0] is not snapshots:  # another list is a list asked for anew
            known = snapshots, self._moments_of(namespace, snapshots)
            self._groups.keep((namespace, group), known)
        return known[1]

    def _moments_of(self, namespace: Namespace, snapshots: list[Snapshot]) -> Moments:
        idents = [SnapshotId(namespace, one) for one in reversed(snapshots)]
        new = [ident for ident in idents if self._trees.peek(ident) is None]
        self._warm([partial(self._trees_of, ident) for ident in new])
        found: dict[str, list[tuple[SnapshotId, Moment]]] = {}
        for ident in idents:
            for name, moment in self._trees_of(ident).items():
                found.setdefault(name, []).append((ident, moment))
        return dict(sorted(found.items()))

    def merged(self, moments: tuple[Moment, ...]) -> Tree:
        """The versions of a tree's files in these snapshots, newest first. Raises as its root."""
        warm = self._warm if self._at_once > 1 else None
        tree = self._merged.get(moments, lambda: VersionsTree(moments, warm))
        return Tree(tree)

    def lean(self, ident: SnapshotId, name: str, moment: Moment) -> Tree:
        """The tree of a moment; hundreds of them may be open.

        Raises what the moment is left out for, BackendError.
        """
        names = moment.names()
        if names is None:
            raise moment.error or NotFound(f"{moment.label} cannot be read")
        return LeanTree(names, partial(self._open_whole, ident, name))

    def _trees_of(self, ident: SnapshotId) -> Trees:
        return self._trees.get(ident, partial(self._read_trees, ident))

    def _read_trees(self, ident: SnapshotId) -> Trees:
        try:
            manifest = OpenSnapshot(self._view, ident).reader.manifest
        except NotFound:
            return {}  # just forgotten
        except (FormatError, IntegrityError) as error:
            log.warning("%s: left out of the group's views: %s", ident, error)
            return {}
        found = _trees_in(manifest)
        return {name: self._moment(ident, name, size, same) for name, size, same in found}

    def _moment(self, ident: SnapshotId, name: str, size: int, identity: bytes) -> Moment:
        return Moment(
            f"{ident}/{name}",
            ident.snapshot.time,
            size,
            partial(self._open_names, ident, name, size),
            lambda: self._open_whole(ident, name).files,
            identity,
        )

    def _open_names(self, ident: SnapshotId, name: str, size: int) -> Accessor:
        def open_names() -> Accessor:
            return OpenSnapshot(self._view, ident).names(name)

        opened = self._names if size < LARGE else self._large
        return opened.get((ident, name), open_names)

    def _open_whole(self, ident: SnapshotId, name: str) -> Tree:
        return self._view.open(ident).tree(name)

    def _warm(self, asks: Sequence[Callable[[], object]]) -> None:
        """Ask all at once; what is damaged is asked again by who wants to know.

        Raises BackendError.
        """
        if self._at_once == 1 or len(asks) < 2:
            return
        with Workers(self._view.datastore.backend, self._at_once, "views") as workers:
            for future in [workers.submit(ask) for ask in asks]:
                error = future.exception()
                if isinstance(error, BackendError):
                    raise error


class LeanTree(Tree):
    """A tree whose names are read from its metadata; what its files contain, from all of it.

    Hard links are not counted: who asks each of a hundred snapshots for one file would wait for all
    their metadata.
    """

    def __init__(self, names: Accessor, whole: Callable[[], Tree]) -> None:
        super().__init__(names)
        self._whole = whole

    def content(self, entry: Entry) -> Content:
        return self._whole().content(entry)


def _trees_in(manifest: Manifest) -> Iterator[tuple[str, int, bytes]]:
    """The trees of a snapshot: name, size of the stream with the names, what they are equal by."""
    infos = {info.filename: info for info in manifest.files if info.filename != CATALOG_NAME}
    for filename, info in infos.items():
        stem = filename.removesuffix(".mpxar.didx")
        payload = infos.get(f"{stem}.ppxar.didx")
        if stem != filename and payload is not None:
            yield f"{stem}.pxar", info.size, info.csum + payload.csum
        elif filename.endswith(".didx") and not filename.endswith((".mpxar.didx", ".ppxar.didx")):
            yield filename.removesuffix(".didx"), info.size, info.csum

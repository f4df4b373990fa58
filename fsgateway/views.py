"""The views of a group beside its snapshots, for who mounts with `-o versions` or `-o shadow-copy`.

versions/root.pxar/etc/hosts/2026-01-02T03:04:05Z     store/trees/versions.py
shadow/root.pxar/@GMT-2026.01.02-03.04.05/etc/hosts   as Samba's shadow_copy2 looks for it
"""

import calendar
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

from fsgateway.attributes import CHANGING_S, NANOSECONDS, Facts
from fsgateway.history import History, Moments
from fsgateway.tree import DIRECTORY, Directory, Node, Path, TreeNode
from fsgateway.view import SnapshotId, Tree, View
from store.errors import NotFound
from store.names import BackupGroup, Namespace
from store.trees.moments import Moment

VERSIONS = "versions"
SHADOW = "shadow"
# What Windows asks for; Samba's default for shadow:format.
GMT = "@GMT-%Y.%m.%d-%H.%M.%S"


@dataclass(frozen=True, slots=True)
class GroupView(Directory):
    """A directory with a directory for each tree that any snapshot of a group has."""

    history: History
    namespace: Namespace
    group: BackupGroup

    def facts(self) -> Facts:
        snapshots = self.view.snapshots(self.namespace, self.group)
        mtime = snapshots[-1].time * NANOSECONDS if snapshots else self.view.started_ns
        return Facts(DIRECTORY, mtime_ns=mtime, timeout_s=CHANGING_S)

    def _moments(self) -> Moments:
        return self.history.moments(self.namespace, self.group)


@dataclass(frozen=True, slots=True)
class VersionsNode(GroupView):
    """`versions`: each tree with the versions of its files."""

    def children(self) -> Iterable[Node]:
        for name, found in self._moments().items():
            moments = tuple(moment for _, moment in found)
            path = (*self.path, name)
            yield VersionsTreeNode(self.view, path, found[0][0], name, self.history, moments)


@dataclass(frozen=True, slots=True)
class VersionsTreeNode(TreeNode):
    """`versions/root.pxar`: a tree of the snapshots there were when it was looked up.

    A new snapshot makes it another tree, whose inodes are others, too: the kernel, which asks for
    its name every second, drops what it knows of the old one; who is in there stays in there.
    """

    history: History
    moments: tuple[Moment, ...]

    @property
    def identity(self) -> Path:
        times = ",".join(str(moment.time) for moment in self.moments)
        return (*self.path, blake2b(times.encode(), digest_size=16).hexdigest())

    @property
    def kept_s(self) -> float:
        return CHANGING_S

    def open(self) -> Tree:
        return self.history.merged(self.moments)


@dataclass(frozen=True, slots=True)
class ShadowNode(GroupView):
    """`shadow`: each tree with its snapshots in it."""

    def children(self) -> Iterable[Node]:
        for name in self._moments():
            path = (*self.path, name)
            yield ShadowTreesNode(self.view, path, self.history, self.namespace, self.group, name)


@dataclass(frozen=True, slots=True)
class ShadowTreesNode(GroupView):
    """`shadow/root.pxar`: what shadow:snapdir names. Snapshots that cannot be read are left out."""

    name: str

    def children(self) -> Iterable[Node]:
        for ident, moment in self._moments().get(self.name, ()):
            if moment.names() is not None:
                yield self._tree(ident, moment)

    def child(self, name: str) -> Node:
        # Asked for each version of each file, so it must not go through all of them.
        wanted = _time(name)
        for ident, moment in self._moments().get(self.name, ()):
            if moment.time == wanted and _gmt(moment) == name and moment.names() is not None:
                return self._tree(ident, moment)
        raise NotFound(f"/{'/'.join(self.path)} has no {name!r}")

    def _tree(self, ident: SnapshotId, moment: Moment) -> Node:
        path = (*self.path, _gmt(moment))
        return ShadowTreeNode(self.view, path, ident, self.name, self.history, moment)


@dataclass(frozen=True, slots=True)
class ShadowTreeNode(TreeNode):
    """`shadow/root.pxar/@GMT-…`: a tree of one snapshot."""

    history: History
    moment: Moment

    @property
    def kept_s(self) -> float:
        return CHANGING_S

    def open(self) -> Tree:
        return self.history.lean(self.ident, self.name, self.moment)


def _gmt(moment: Moment) -> str:
    return time.strftime(GMT, time.gmtime(moment.time))


def _time(name: str) -> int | None:
    """The time that a name says, in seconds since the epoch."""
    try:
        return calendar.timegm(time.strptime(name, GMT))
    except ValueError:
        return None


def show_views(view: View, *, versions: bool, shadow_copy: bool) -> None:
    """Have every group of a mount show these views beside its snapshots."""
    history = History(view)
    if versions:
        view.group_views.append(partial(_versions_of, view, history))
    if shadow_copy:
        view.group_views.append(partial(_shadow_of, view, history))


def _versions_of(
    view: View, history: History, path: Path, namespace: Namespace, group: BackupGroup
) -> Node:
    return VersionsNode(view, (*path, VERSIONS), history, namespace, group)


def _shadow_of(
    view: View, history: History, path: Path, namespace: Namespace, group: BackupGroup
) -> Node:
    return ShadowNode(view, (*path, SHADOW), history, namespace, group)

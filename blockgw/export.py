"""Export names, and which images one `vaultway export` serves.

`[ns/…/]vm/100/2026-01-02T03:04:05Z/drive-scsi0.img`; `latest` may stand for the time, and the end
of a name (`drive-scsi0.img`) for all of it where only one image's name ends so.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import nlargest
from typing import Any, Self

from store.datastore.datastore import Datastore
from store.errors import InvalidName, NotFound
from store.names import BACKUP_TIME, BackupGroup, Namespace, Snapshot, parse_backup_time

log = logging.getLogger(__name__)

LATEST = "latest"
IMAGE_INDEX_SUFFIX = ".img.fidx"
MAX_EXPORTS = 10_000  # what nbdkit accepts in one list, and qemu reads of one
DIGITS = re.compile(r"(\d+)")
AUXILIARY_DRIVES = ("drive-efidisk", "drive-tpmstate")


@dataclass(frozen=True)
class ImageName:
    """One disk image of a datastore; `str()` is its export name."""

    namespace: Namespace
    snapshot: Snapshot
    archive: str

    def __str__(self) -> str:
        return f"{self.snapshot.path(self.namespace)}/{self.archive}"

    @property
    def latest(self) -> str:
        """Its name with `latest` for the time; right only while its snapshot is the newest."""
        return f"{self.snapshot.group.path(self.namespace)}/{LATEST}/{self.archive}"


@dataclass(frozen=True)
class Selection:
    """What is served: one archive of a snapshot, or all its images.

    Without a snapshot, all images from `namespace` down.
    """

    namespace: Namespace
    snapshot: Snapshot | None = None
    archive: str | None = None

    def encode(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "namespace": str(self.namespace),
            "snapshot": self.snapshot and str(self.snapshot),
            "archive": self.archive,
        }

    @classmethod
    def decode(cls, fields: dict[str, Any]) -> Self:
        """The inverse of `encode`."""
        snapshot = fields["snapshot"]
        return cls(
            Namespace.parse(fields["namespace"]),
            Snapshot.parse(snapshot) if snapshot else None,
            fields["archive"],
        )


def select(datastore: Datastore, namespace: Namespace, text: str) -> Selection:
    """Read SNAPSHOT[/ARCHIVE]: `type/id` (the newest), `type/id/time`, either with `/archive`.

    Raises InvalidName, NotFound.
    """
    parts = text.strip("/").split("/")
    names_archive = len(parts) == 4 or (len(parts) == 3 and not _is_time(parts[2]))
    archive = parts.pop() if names_archive else None
    if len(parts) not in {2, 3}:
        raise InvalidName(f"{text!r}: write it as type/id[/time][/archive], for example vm/100")
    snapshot = datastore.resolve_snapshot(namespace, "/".join(parts))
    return Selection(namespace, snapshot, archive)


def _is_time(text: str) -> bool:
    return text == LATEST or BACKUP_TIME.fullmatch(text) is not None


class Exports:
    """The images of a selection, looked up at each call: a datastore that grows is served so."""

    def __init__(self, datastore: Datastore, selection: Selection) -> None:
        self._datastore = datastore
        self._selection = selection

    def names(self) -> list[ImageName]:
        """All images, at most MAX_EXPORTS, by namespace, group, newest snapshot first, drive."""
        names = list(self._images())
        if len(names) > MAX_EXPORTS:
            log.warning("%s images: only the newest %s are listed", len(names), MAX_EXPORTS)
            names = nlargest(MAX_EXPORTS, names, key=lambda name: name.snapshot.time)
        return sorted(names, key=_place)

    def default(self) -> ImageName:
        """The only image, or the first drive of the newest snapshot with one. Raises NotFound."""
        snapshots = sorted(self._snapshots(), key=lambda place: place[1].time, reverse=True)
        for namespace, snapshot in snapshots:
            for name in self._images_of(namespace, snapshot):
                return name
        raise NotFound(f"no disk image in {self._describe()}")

    def resolve(self, text: str) -> ImageName:
        """The image a client means by `text`; "" is the default one.

        Raises:
            NotFound: no such image, or not one of those served.
            InvalidName: the end of several names.
        """
        text = text.strip("/")
        if not text:
            return self.default()
        return self._find_whole(text) or self._find_end(text)

    def _find_whole(self, text: str) -> ImageName | None:
        """The image whose whole name is `text`, or None; the namespace may be spelled `a/b`."""
        try:
            *components, kind, identity, time, archive = text.split("/")
            namespace, group = _parse_namespace(components), BackupGroup(kind, identity)
            if time == LATEST:
                snapshot = self._newest(namespace, group)
            else:
                snapshot = Snapshot(group, parse_backup_time(time))
        except (ValueError, InvalidName, NotFound):
            return None
        name = ImageName(namespace, snapshot, archive)
        return name if self._serves(name) else None

    def _find_end(self, text: str) -> ImageName:
        """The one image whose name ends in `text`."""
        names = sorted(self._images(), key=_place)
        newest = {(name.namespace, name.snapshot.group): name.snapshot for name in reversed(names)}
        found = [
            name
            for name in names
            if f"/{name}".endswith(f"/{text}")
            or (
                newest[name.namespace, name.snapshot.group] == name.snapshot
                and f"/{name.latest}".endswith(f"/{text}")
            )
        ]
        if not found:
            raise NotFound(f"no image {text!r} in {self._describe()}")
        if len(found) > 1:
            some = f"{found[0]} and {found[1]} among them"
            raise InvalidName(f"export name {text!r} means {len(found)} images, {some}")
        return found[0]

    def _newest(self, namespace: Namespace, group: BackupGroup) -> Snapshot:
        """The snapshot that `latest` means: the newest one served."""
        selected = self._selection.snapshot
        if selected is not None and selected.group == group:
            return selected
        return self._datastore.latest_snapshot(namespace, group)

    def _serves(self, name: ImageName) -> bool:
        selected = self._selection
        if selected.snapshot is None:
            depth = len(selected.namespace.components)
            inside = name.namespace.components[:depth] == selected.namespace.components
        else:
            inside = (selected.namespace, selected.snapshot) == (name.namespace, name.snapshot)
        return inside and name in self._images_of(name.namespace, name.snapshot)

    def _snapshots(self) -> Iterator[tuple[Namespace, Snapshot]]:
        selected = self._selection
        if selected.snapshot is not None:
            yield selected.namespace, selected.snapshot
            return
        for namespace in self._datastore.list_namespaces(selected.namespace):
            for group in self._datastore.list_groups(namespace):
                for snapshot in self._datastore.list_snapshots(namespace, group):
                    yield namespace, snapshot

    def _images(self) -> Iterator[ImageName]:
        for namespace, snapshot in self._snapshots():
            yield from self._images_of(namespace, snapshot)

    def _images_of(self, namespace: Namespace, snapshot: Snapshot) -> list[ImageName]:
        """The served images of one snapshot, first drive first; none if it has gone meanwhile."""
        try:
            files = self._files_of(namespace, snapshot)
        except NotFound:
            return []
        images = (file for file in files if file.endswith(IMAGE_INDEX_SUFFIX))
        archives = [file.removesuffix(".fidx") for file in images]
        wanted = self._selection.archive
        return [
            ImageName(namespace, snapshot, archive)
            for archive in sorted(archives, key=drive_order)
            if wanted in {None, archive}
        ]

    def _files_of(self, namespace: Namespace, snapshot: Snapshot) -> list[str]:
        """What is there; of the one snapshot asked for also what is lost, which opening it says."""
        files = self._datastore.list_files(namespace, snapshot)
        if self._selection.snapshot is not None:
            manifest = self._datastore.read_manifest(namespace, snapshot)
            files = list(dict.fromkeys([*files, *(file.filename for file in manifest.files)]))
        return files

    def _describe(self) -> str:
        selected = self._selection
        where = f" in namespace {selected.namespace}" if selected.namespace.components else ""
        if selected.snapshot is None:
            return f"datastore {self._datastore.name}{where}"
        archive = f" named {selected.archive!r}" if selected.archive else ""
        return f"snapshot {selected.snapshot}{where}{archive}"


def drive_order(archive: str) -> tuple[bool, list[str | int]]:
    """Sorts drives as people do: scsi2 before scsi10, EFI variables and TPM state last."""
    parts: list[str | int] = list(DIGITS.split(archive))
    parts[1::2] = map(int, parts[1::2])
    return archive.startswith(AUXILIARY_DRIVES), parts


def _place(name: ImageName) -> tuple[object, ...]:
    return name.namespace, name.snapshot.group, -name.snapshot.time, drive_order(name.archive)


def _parse_namespace(components: list[str]) -> Namespace:
    """`ns/a/ns/b`, as export names have it, or `a/b`, as people write it. Raises InvalidName."""
    if len(components) % 2 == 0 and all(part == "ns" for part in components[::2]):
        components = components[1::2]
    return Namespace(tuple(components))

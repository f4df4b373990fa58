"""The versions of what a real PBS wrote: at each snapshot's time they say what it has."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fsgateway.tree import Directory, NamespaceNode, TreeNode
from fsgateway.view import View
from fsgateway.views import show_views
from store.backends.local.nfs import open_directory
from store.datastore.datastore import Datastore
from store.format.crypt import CryptConfig
from store.format.keys import KeyFile
from store.format.pxar.entries import Entry, EntryKind
from store.names import Namespace
from store.trees.base import FileTree
from store.trees.version_names import version_name
from tests.golden_snapshots import KEY_PASSWORD, GoldenArchive, golden_archives

Look = tuple[EntryKind, bytes, int, int]


def find(root: Directory, path: str) -> FileTree:
    node = root
    for name in path.split("/"):
        node = node.child(name)  # type: ignore[assignment]
    assert isinstance(node, TreeNode)
    return node.open().files


def walk(files: FileTree) -> Iterator[tuple[tuple[bytes, ...], Entry]]:
    todo: list[tuple[tuple[bytes, ...], Entry]] = [((), files.root())]
    while todo:
        path, directory = todo.pop()
        for entry in files.iterate(directory):
            below = (*path, entry.name)
            yield below, entry
            if entry.kind is EntryKind.DIRECTORY:
                todo.append((below, entry))


def look(files: FileTree, entry: Entry) -> Look:
    file = files.follow(entry) if entry.kind is EntryKind.HARDLINK else entry
    content = files.read(file, 0, 1 << 20) if file.kind is EntryKind.FILE else file.target
    return file.kind, content, file.size, file.metadata.mtime_s


@pytest.mark.parametrize("archive", [*golden_archives(".pxar")], ids=str)
def test_versions(archive: GoldenArchive, golden: Path) -> None:
    what = archive.snapshot
    with Datastore("golden", open_directory(str(golden / "datastore"))) as datastore:
        view = View(datastore, key_of(golden, what.key), 32 << 20)
        show_views(view, versions=True, shadow_copy=True)
        root = NamespaceNode(view, (), Namespace())
        group = what.mount_path.rpartition("/")[0]
        merged = find(root, f"{group}/versions/{archive.name}")
        shadow = find(root, f"{group}/shadow/{archive.name}/{gmt(what.day)}")
        files = find(root, f"{what.mount_path}/{archive.name}")
        versions = {path: look(merged, entry) for path, entry in walk(merged)}
        count = 0
        for path, entry in walk(files):
            if entry.kind is EntryKind.DIRECTORY:
                assert versions[path][0] is EntryKind.DIRECTORY
                continue
            suffix = version_name(1, path[-1]).removeprefix(b"1970-01-01T00:00:01Z")
            times = sorted(
                below[-1]
                for below in versions
                if below[:-1] == path and below[-1] <= what.time.encode() + suffix
            )
            assert versions[(*path, times[-1])] == look(files, entry)
            count += 1
        assert count > 0
        assert [path for path, _ in walk(shadow)] == [path for path, _ in walk(files)]


def gmt(day: int) -> str:
    return f"@GMT-2025.01.{day:02d}-00.00.00"


def key_of(golden: Path, name: str) -> CryptConfig | None:
    if not name:
        return None
    raw = (golden / "keys" / name).read_bytes()
    return KeyFile.decode(raw).unlock(KEY_PASSWORD["PBS_ENCRYPTION_PASSWORD"].encode())

"""Every archive that a real PBS client wrote: read both ways, written again byte for byte."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from store.format.pxar.accessor import Accessor
from store.format.pxar.decoder import Decoder, DirectoryEnd, PayloadData
from store.format.pxar.encoder import Encoder
from store.format.pxar.entries import (
    Entry,
    EntryKind,
    Metadata,
    acl_from_xattrs,
    acl_to_xattrs,
    encode_metadata,
)
from store.format.pxar.goodbye import RECORD
from tests.trees import expected_tree
from tests.unit.store.format.pxar.archives import facts_of_entry, open_archive, walk
from tests.unit.store.format.stored_snapshot import StoredSnapshot

TYPES = {
    EntryKind.DIRECTORY: "directory",
    EntryKind.FILE: "file",
    EntryKind.SYMLINK: "symlink",
    EntryKind.CHAR_DEVICE: "char",
    EntryKind.BLOCK_DEVICE: "block",
    EntryKind.FIFO: "fifo",
    EntryKind.SOCKET: "socket",
}


class Golden(NamedTuple):
    """One archive: its snapshot's path below the golden folder, name, and source tree."""

    snapshot: str
    archive: str
    revision: int
    below: str = ""

    @property
    def split(self) -> bool:
        return any(
            part in self.snapshot for part in ("host/split", "datastore/host/encrypted", "deep")
        )


DEEP = "ns/a/ns/b/ns/c/ns/d/ns/e/ns/f/ns/g"
ARCHIVES = [
    Golden("datastore/host/v1/2025-01-01T00:00:00Z", "root", 1),
    Golden("datastore/host/v1/2025-01-02T00:00:00Z", "root", 2),
    Golden("datastore/host/split/2025-01-01T00:00:00Z", "root", 1),
    Golden("datastore/host/split/2025-01-02T00:00:00Z", "root", 2),
    Golden("datastore/host/split/2025-01-03T00:00:00Z", "root", 3),
    Golden("datastore/host/encrypted/2025-01-01T00:00:00Z", "root", 1),
    Golden("datastore/host/encrypted/2025-01-02T00:00:00Z", "root", 2),
    Golden("datastore/host/signed/2025-01-01T00:00:00Z", "root", 1, "many"),
    Golden("datastore/host/master/2025-01-01T00:00:00Z", "root", 1, "many"),
    Golden("datastore/host/several/2025-01-01T00:00:00Z", "many", 1, "many"),
    Golden("datastore/host/several/2025-01-01T00:00:00Z", "names", 1, "names"),
    Golden("datastore/ns/prod/ns/customer-x/ct/200/2025-01-01T00:00:00Z", "root", 1, "names"),
    Golden(f"datastore/{DEEP}/host/deep/2025-01-01T00:00:00Z", "root", 1, "names"),
    Golden("bucket/golds3/.cnt/host/split/2025-01-01T00:00:00Z", "root", 3),
    Golden("bucket/golds3/.cnt/host/encrypted/2025-01-01T00:00:00Z", "many", 3, "many"),
]

Streams = tuple[list[bytes], bytes | None]


@pytest.fixture(scope="module")
def streams(
    golden: Path, golden_snapshots: tuple[StoredSnapshot, ...]
) -> Callable[[Golden], Streams]:
    """The chunks of an archive or metadata stream, and the payload stream if there is one."""
    snapshots = {str(one.path.relative_to(golden)): one for one in golden_snapshots}

    def load(archive: Golden) -> Streams:
        snapshot = snapshots[archive.snapshot]
        if not archive.split:
            return list(snapshot.stream(f"{archive.archive}.pxar.didx")), None
        payload = b"".join(snapshot.stream(f"{archive.archive}.ppxar.didx"))
        return list(snapshot.stream(f"{archive.archive}.mpxar.didx")), payload

    return load


def test_no_archive_is_missing(golden: Path, golden_snapshots: tuple[StoredSnapshot, ...]) -> None:
    found = {
        (str(one.path.relative_to(golden)), info.filename.split(".")[0])
        for one in golden_snapshots
        for info in one.manifest.files
        if info.filename.endswith((".pxar.didx", ".mpxar.didx"))
    }
    assert found == {(archive.snapshot, archive.archive) for archive in ARCHIVES}


def facts(accessor: Accessor, path: bytes, entry: Entry) -> dict[str, Any]:
    """One line of list-tree.py."""
    inode = accessor.follow(entry) if entry.kind is EntryKind.HARDLINK else entry
    metadata = inode.metadata
    out: dict[str, Any] = {
        "path": path.decode("latin-1"),
        "type": TYPES[inode.kind],
        "mode": f"{metadata.mode & 0o7777:04o}",
        "uid": metadata.uid,
        "gid": metadata.gid,
        "mtime_ns": metadata.mtime_s * 10**9 + metadata.mtime_ns,
    }
    if entry.kind is EntryKind.HARDLINK:
        assert accessor.resolve(entry.target).offset == inode.offset
        out["link"] = entry.target.decode("latin-1")
    if inode.kind is EntryKind.SYMLINK:
        out["target"] = inode.target.decode("latin-1")
    elif inode.kind in (EntryKind.CHAR_DEVICE, EntryKind.BLOCK_DEVICE):
        out["rdev"] = list(inode.device)
    elif inode.kind is EntryKind.FILE:
        content = accessor.read(inode, 0, inode.size)
        out |= {"size": inode.size, "sha256": hashlib.sha256(content).hexdigest()}
    if xattrs := xattrs_of(metadata):
        out["xattrs"] = {name.decode(): value.hex() for name, value in sorted(xattrs.items())}
    return out


def xattrs_of(metadata: Metadata) -> dict[bytes, bytes]:
    acls = acl_to_xattrs(metadata.acl, metadata.mode)
    access, default = b"system.posix_acl_access", b"system.posix_acl_default"
    assert acl_from_xattrs(acls.get(access), acls.get(default)) == metadata.acl
    fcaps = {b"security.capability": metadata.fcaps} if metadata.fcaps is not None else {}
    return dict(metadata.xattrs) | acls | fcaps


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda archive: archive.snapshot)
def test_every_fact_of_the_source(archive: Golden, streams: Callable[[Golden], Streams]) -> None:
    chunks, payload = streams(archive)
    accessor = open_archive(b"".join(chunks), payload)
    found = sorted(
        json.dumps(facts(accessor, path, entry), sort_keys=True) for path, entry in walk(accessor)
    )
    assert found == sorted(expected_tree(archive.revision, archive.below))


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda archive: archive.snapshot)
def test_both_readers_agree(archive: Golden, streams: Callable[[Golden], Streams]) -> None:
    chunks, payload = streams(archive)
    accessor = open_archive(b"".join(chunks), payload)
    by_offset = {entry.offset: entry for _, entry in walk(accessor)}
    for event in Decoder(chunks):
        if isinstance(event, Entry):
            other = by_offset.pop(event.offset)
            if event.kind is EntryKind.DIRECTORY:
                event.end = other.end
            assert facts_of_entry(event) == facts_of_entry(other)
            if event.kind is not EntryKind.HARDLINK:
                assert encode_metadata(event.metadata) == event.raw_metadata
    assert not by_offset


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda archive: archive.snapshot)
def test_written_again(archive: Golden, streams: Callable[[Golden], Streams]) -> None:
    """Byte for byte; of metadata mode also which files count as re-used (spec 9.7, quirk B)."""
    chunks, _ = streams(archive)
    expected = b"".join(chunks)
    reused = reused_files(expected) if archive.split else set()
    if archive.revision == 1:
        assert not reused
    written = b"".join(encode_again(Decoder(chunks), archive.split, reused))
    assert written == expected


def reused_files(metadata: bytes) -> set[int]:
    """Offsets of the files whose size in the goodbye table does not count their content."""
    reused = set()
    accessor = open_archive(metadata, None)
    for _, directory in walk(accessor):
        if directory.kind is EntryKind.DIRECTORY:
            stored = stored_sizes(metadata, directory)
            files = [one for one in accessor.list(directory) if one.kind is EntryKind.FILE]
            reused |= {
                one.offset for one in files if stored[one.offset] < one.end - one.offset + one.size
            }
    return reused


def stored_sizes(metadata: bytes, directory: Entry) -> dict[int, int]:
    tail = RECORD.unpack(metadata[directory.end - 24 : directory.end])
    start = directory.end - tail[2]
    table = RECORD.iter_unpack(metadata[start + 16 : directory.end - 24])
    return {start - distance: size for _, distance, size in table}


def encode_again(decoder: Decoder, split: bool, reused: set[int]) -> Iterator[bytes]:
    encoder: Encoder | None = None
    depth = 0
    for event in decoder:
        if encoder is None:
            assert isinstance(event, Entry)
            encoder = Encoder(split=split, prelude=decoder.prelude)
            yield encoder.begin(event.raw_metadata)
        elif isinstance(event, PayloadData):
            yield bytes(event.data)
        elif isinstance(event, DirectoryEnd):
            yield encoder.leave_directory() if depth else encoder.finish()
            depth -= 1
        else:
            yield encode_entry(encoder, event, split, event.offset in reused)
            depth += event.kind is EntryKind.DIRECTORY


def encode_entry(encoder: Encoder, entry: Entry, split: bool, reused: bool) -> bytes:
    name, metadata = entry.name, entry.raw_metadata
    if entry.kind is EntryKind.DIRECTORY:
        return encoder.enter_directory(name, metadata)
    if entry.kind is EntryKind.FILE and split:
        return encoder.file_ref(name, metadata, entry.payload_offset, entry.size, reused=reused)
    if entry.kind is EntryKind.FILE:
        return encoder.file(name, metadata, entry.size)
    if entry.kind is EntryKind.SYMLINK:
        return encoder.symlink(name, metadata, entry.target)
    if entry.kind is EntryKind.HARDLINK:
        return encoder.hardlink(name, entry.target_offset, entry.target)
    if entry.kind in (EntryKind.CHAR_DEVICE, EntryKind.BLOCK_DEVICE):
        return encoder.device(name, metadata, *entry.device)
    return encoder.special(name, metadata)

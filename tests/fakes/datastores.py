"""Small datastores and snapshots, made in no time."""

from functools import lru_cache
from pathlib import Path

from store.backends.base import Backend
from store.backends.local.backend import LocalBackend
from store.backends.local.nfs import NfsBackend, open_directory
from store.backends.local.nfs_mount import NfsMount
from store.datastore.datastore import Datastore
from store.format.blob import encode_blob, encode_blob_parts
from store.format.crypt import chunk_digest
from store.format.manifest import CryptMode, FileInfo, Manifest
from store.names import BackupGroup, Digest, Namespace, Snapshot

ROOT = Namespace()
GROUP = BackupGroup("host", "web01")
DAY = 86400
MIB = 1 << 20


def bare_backend(path: Path) -> LocalBackend:
    """A datastore without the 65,536 directories, which take seconds; writers make them."""
    (path / ".chunks").mkdir(parents=True)
    (path / ".lock").touch()
    return open_directory(str(path))


def nfs_backend(path: Path, *options: str) -> NfsBackend:
    """The same as on an NFS mount with these options, whatever it is on."""
    bare_backend(path).close()
    return NfsBackend(str(path), NfsMount(frozenset(options)))


def local_datastore(path: Path) -> Datastore:
    return Datastore(path.name, bare_backend(path))


def open_on(backend: Backend) -> Datastore:
    return Datastore("test", backend)


def snapshot(day: int, group: BackupGroup = GROUP) -> Snapshot:
    return Snapshot(group, day * DAY)


def pattern(fill: int, size: int) -> bytes:
    return bytes([fill % 256]) * size


@lru_cache(maxsize=64)
def encoded_pattern(fill: int, size: int) -> tuple[Digest, bytes, bytes]:
    """The digest of a pattern, and header and body of its chunk."""
    data = pattern(fill, size)
    header, body = encode_blob_parts(data)
    return chunk_digest(data, None), bytes(header), bytes(body)


def write_snapshot(
    datastore: Datastore,
    what: Snapshot,
    namespace: Namespace = ROOT,
    *,
    image_size: int = 5 * MIB,
    **options: object,
) -> Manifest:
    """A whole small backup: a blob, an image of two chunks, a stream of two chunks."""
    with datastore.begin_snapshot(namespace, what, **options) as writer:  # type: ignore[arg-type]
        blob = encode_blob(b"a line of configuration\n")
        files = [
            FileInfo(
                "qemu-server.conf.blob",
                CryptMode.NONE,
                len(blob),
                writer.add_blob("qemu-server.conf.blob", blob),
            )
        ]
        digests = []
        for number in range(2):
            size = min(4 * MIB, image_size - 4 * MIB * number)
            digest, header, body = encoded_pattern(number + what.time // DAY, size)
            if not writer.touch_chunk(digest):
                writer.insert_chunk(digest, header, body, size)
            digests.append((digest, size))
        image = writer.create_fixed_index("disk.img.fidx", image_size)
        for number, (digest, _) in enumerate(digests):
            image.set(number, digest)
        files.append(FileInfo("disk.img.fidx", CryptMode.NONE, image_size, image.close()))
        stream, end = writer.create_dynamic_index("data.pxar.didx"), 0
        for digest, size in digests:
            end += size
            stream.add(end, digest)
        files.append(FileInfo("data.pxar.didx", CryptMode.NONE, end, stream.close()))
        return writer.finish(Manifest(what, tuple(files)))

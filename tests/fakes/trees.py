"""Trees of files in memory: real archives made from a dictionary, and a tree that is none."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from store.errors import FormatError, IntegrityError
from store.format.buffer import BytesReadAt, ReadAt
from store.format.pxar.accessor import Accessor
from store.format.pxar.encoder import Encoder
from store.format.pxar.entries import PAYLOAD_START, Entry, EntryKind, payload_header
from tests.fakes.archives import stat

TIME = 1_700_000_000
Nodes = dict[bytes, Any]
"""Names to bytes (a file), a dict (a directory), or one of the classes below."""


@dataclass(frozen=True)
class File:
    content: bytes = b""
    mode: int = 0o100644
    uid: int = 0
    mtime_s: int = TIME

    @property
    def raw(self) -> bytes:
        return stat(self.mode, self.uid, 0, self.mtime_s)


@dataclass(frozen=True)
class Link:
    """A symbolic one."""

    target: bytes


@dataclass(frozen=True)
class Hard:
    """Another name of a file that came before; `target` is its path."""

    target: bytes


@dataclass(frozen=True)
class Fifo:
    pass


def archive_bytes(nodes: Nodes, *, split: bool = True) -> tuple[bytes, bytes | None]:
    """Metadata and payload stream of an archive; v1: all of it, and None."""
    encoder, out, payload = Encoder(split=split), io.BytesIO(), io.BytesIO(PAYLOAD_START)
    payload.seek(0, io.SEEK_END)
    starts: dict[bytes, int] = {}

    def add(name: bytes, node: Any, path: bytes) -> None:
        starts[path] = out.tell()
        if isinstance(node, dict):
            out.write(encoder.enter_directory(name, stat(0o40755)))
            add_all(node, path + b"/")
            out.write(encoder.leave_directory())
        elif isinstance(node, Link):
            out.write(encoder.symlink(name, stat(0o120777), node.target))
        elif isinstance(node, Hard):
            out.write(encoder.hardlink(name, starts[node.target], node.target))
        elif isinstance(node, Fifo):
            out.write(encoder.special(name, stat(0o10644)))
        else:
            add_file(name, node if isinstance(node, File) else File(node))

    def add_file(name: bytes, file: File) -> None:
        if split:
            offset = payload.tell()
            payload.write(payload_header(len(file.content)) + file.content)
            out.write(encoder.file_ref(name, file.raw, offset, len(file.content)))
        else:
            out.write(encoder.file(name, file.raw, len(file.content)) + file.content)

    def add_all(nodes: Nodes, prefix: bytes) -> None:
        for name in sorted(nodes):
            add(name, nodes[name], prefix + name)

    out.write(encoder.begin(stat(0o40755)))
    add_all(nodes, b"")
    out.write(encoder.finish())
    return out.getvalue(), payload.getvalue() if split else None


def archive(nodes: Nodes, *, split: bool = True) -> Accessor:
    metadata, payload = archive_bytes(nodes, split=split)
    return Accessor(BytesReadAt(metadata), None if payload is None else BytesReadAt(payload))


@dataclass
class GuestTree:
    """A file system as in a disk: in the order of its dictionary, names of one file by number.

    Equal `File` objects (by identity) are one inode. damaged: names of directories that cannot be
    listed. loop: a name that leads to the root again.
    """

    nodes: Nodes
    damaged: frozenset[bytes] = frozenset()
    loop: bytes = b""
    closed: bool = False
    _entries: dict[int, tuple[Entry, Any]] = field(default_factory=dict)
    _numbers: dict[int, int] = field(default_factory=dict)

    def root(self) -> Entry:
        return self._entry(b"", self.nodes)

    def iterate(self, directory: Entry) -> Iterator[Entry]:
        if directory.name in self.damaged:
            raise IntegrityError("a directory's block has a wrong checksum")
        _, node = self._entries[directory.offset]
        for name, child in node.items():
            yield self._entry(name, child)
        if self.loop and directory.name:
            yield self._entry(self.loop, self.nodes)

    def lookup(self, directory: Entry, name: bytes) -> Entry | None:
        return next((entry for entry in self.iterate(directory) if entry.name == name), None)

    def follow(self, link: Entry) -> Entry:
        raise FormatError(f"{link!r}: no hard link")

    def entry_at(self, offset: int, directory_end: int = 0) -> Entry:
        return self._entries[offset][0]

    def content(self, file: Entry) -> tuple[ReadAt, int]:
        _, node = self._entries[file.offset]
        return BytesReadAt(b"before" + node.content), 6

    def read(self, file: Entry, offset: int, size: int) -> bytes:
        content: bytes = self._entries[file.offset][1].content
        return content[offset : offset + size]

    def _entry(self, name: bytes, node: Any) -> Entry:
        number = self._numbers.setdefault(id(node), len(self._numbers) + 1)
        if isinstance(node, dict):
            entry = Entry(name, EntryKind.DIRECTORY, number, 0, stat(0o40750, 7))
        elif isinstance(node, Link):
            raw = stat(0o120777)
            entry = Entry(name, EntryKind.SYMLINK, number, 0, raw, target=node.target)
        else:
            links = sum(child is node for child in _all_nodes(self.nodes))
            size = len(node.content)
            entry = Entry(name, EntryKind.FILE, number, 0, node.raw, size=size, links=links)
        self._entries[number] = (entry, node)
        return entry


def _all_nodes(nodes: Nodes) -> Iterator[Any]:
    for node in nodes.values():
        yield node
        if isinstance(node, dict):
            yield from _all_nodes(node)

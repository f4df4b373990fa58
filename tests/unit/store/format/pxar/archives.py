"""Trees in memory, to archives and back: what the tests of encoder, decoder and accessor share."""

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from store.format.buffer import Buffer, BytesReadAt
from store.format.pxar.accessor import Accessor
from store.format.pxar.decoder import Decoder, DirectoryEnd, PayloadData
from store.format.pxar.encoder import Encoder
from store.format.pxar.entries import (
    PAYLOAD_START,
    PAYLOAD_TAIL,
    Acl,
    DefaultAcl,
    Entry,
    EntryKind,
    Metadata,
    encode_metadata,
    payload_header,
)

KINDS = {
    stat.S_IFDIR: EntryKind.DIRECTORY,
    stat.S_IFREG: EntryKind.FILE,
    stat.S_IFLNK: EntryKind.SYMLINK,
    stat.S_IFCHR: EntryKind.CHAR_DEVICE,
    stat.S_IFBLK: EntryKind.BLOCK_DEVICE,
    stat.S_IFIFO: EntryKind.FIFO,
    stat.S_IFSOCK: EntryKind.SOCKET,
}


@dataclass
class Node:
    """One inode of a tree. `link`: instead of all else, another name of an earlier file."""

    metadata: Metadata
    content: bytes = b""
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    children: dict[bytes, "Node"] = field(default_factory=dict)
    link: bool = False

    @property
    def kind(self) -> EntryKind:
        return EntryKind.HARDLINK if self.link else KINDS[stat.S_IFMT(self.metadata.mode)]


def encode_tree(
    root: Node, *, split: bool, prelude: bytes | None = None
) -> tuple[bytes, bytes | None]:
    """The archive (v1), or metadata and payload stream."""
    writer = _Writer(split, prelude)
    writer.out.append(writer.encoder.begin(encode_metadata(root.metadata)))
    writer.children(root)
    writer.out.append(writer.encoder.finish())
    payload = b"".join([*writer.payload, PAYLOAD_TAIL]) if split else None
    archive = b"".join(writer.out)
    assert len(archive) == writer.encoder.position
    return archive, payload


class _Writer:
    def __init__(self, split: bool, prelude: bytes | None) -> None:
        self.split = split
        self.encoder = Encoder(split=split, prelude=prelude)
        self.out: list[bytes] = []
        self.payload = [PAYLOAD_START]
        self.position = len(PAYLOAD_START)
        self.target: tuple[int, bytes] | None = None

    def children(self, directory: Node, path: bytes = b"") -> None:
        for name, node in sorted(directory.children.items()):
            self.child(name, node, path + name)

    def child(self, name: bytes, node: Node, path: bytes) -> None:
        encoder, metadata = self.encoder, encode_metadata(node.metadata)
        if node.kind is EntryKind.HARDLINK:
            if self.target:
                self.out.append(encoder.hardlink(name, *self.target))
        elif node.kind is EntryKind.DIRECTORY:
            self.out.append(encoder.enter_directory(name, metadata))
            self.children(node, path + b"/")
            self.out.append(encoder.leave_directory())
        elif node.kind is EntryKind.FILE:
            self.file(name, node.content, metadata)
            self.target = (encoder.last_offset, path)
        elif node.kind is EntryKind.SYMLINK:
            self.out.append(encoder.symlink(name, metadata, node.target))
        elif node.kind in (EntryKind.CHAR_DEVICE, EntryKind.BLOCK_DEVICE):
            self.out.append(encoder.device(name, metadata, *node.device))
        else:
            self.out.append(encoder.special(name, metadata))

    def file(self, name: bytes, content: bytes, metadata: bytes) -> None:
        if not self.split:
            self.out += [self.encoder.file(name, metadata, len(content)), content]
            return
        self.out.append(self.encoder.file_ref(name, metadata, self.position, len(content)))
        self.payload += [payload_header(len(content)), content]
        self.position += 16 + len(content)


Facts = dict[bytes, tuple[Any, ...]]


def expected_facts(root: Node) -> Facts:
    """Path -> what a reader must find there."""
    facts: Facts = {b"": (EntryKind.DIRECTORY, root.metadata)}
    last: tuple[bytes, Node] | None = None

    def visit(directory: Node, path: bytes) -> None:
        nonlocal last
        for name, node in sorted(directory.children.items()):
            below = path + name
            if node.link:
                if last:
                    facts[below] = (EntryKind.HARDLINK, *last[0:1], last[1].content)
                continue
            facts[below] = (node.kind, node.metadata, *_rest(node))
            if node.kind is EntryKind.FILE:
                last = (below, node)
            visit(node, below + b"/")

    visit(root, b"")
    return facts


def _rest(node: Node) -> tuple[Any, ...]:
    if node.kind is EntryKind.FILE:
        return (node.content,)
    if node.kind is EntryKind.SYMLINK:
        return (node.target,)
    if node.kind in (EntryKind.CHAR_DEVICE, EntryKind.BLOCK_DEVICE):
        return (node.device,)
    return ()


def decoded_facts(chunks: Iterable[Buffer], payload: bytes | None) -> Facts:
    """The same, by one pass of the decoder."""
    facts: Facts = {}
    contents: dict[int, bytearray] = {}
    offsets: dict[int, bytes] = {}
    path: list[bytes] = []
    decoder = Decoder(chunks)
    current = bytearray()
    for event in decoder:
        if isinstance(event, PayloadData):
            current += event.data
        elif isinstance(event, DirectoryEnd):
            path.pop()
        else:
            current = bytearray()
            below = b"/".join([*path[1:], event.name])
            if event.kind is EntryKind.FILE:
                contents[event.offset] = current
                offsets[event.offset] = below
                if decoder.version == 2 and payload is not None:
                    current += _from_payload(payload, event)
            facts[below] = (event,)
            if event.kind is EntryKind.DIRECTORY:
                path.append(event.name)
    assert not path
    for below, (entry,) in facts.items():
        if entry.kind is EntryKind.HARDLINK:
            assert offsets[entry.target_offset] == entry.target
            facts[below] = (entry.kind, entry.target, bytes(contents[entry.target_offset]))
        else:
            content = (bytes(contents[entry.offset]),) if entry.kind is EntryKind.FILE else ()
            facts[below] = (entry.kind, entry.metadata, *content, *_own(entry))
    return facts


def _from_payload(payload: bytes, entry: Entry) -> bytes:
    start = entry.payload_offset + 16
    assert payload[entry.payload_offset : start] == payload_header(entry.size)
    return payload[start : start + entry.size]


def _own(entry: Entry) -> tuple[Any, ...]:
    if entry.kind is EntryKind.SYMLINK:
        return (entry.target,)
    if entry.kind in (EntryKind.CHAR_DEVICE, EntryKind.BLOCK_DEVICE):
        return (entry.device,)
    return ()


def open_archive(archive: Buffer, payload: Buffer | None) -> Accessor:
    return Accessor(BytesReadAt(archive), None if payload is None else BytesReadAt(payload))


def walk(accessor: Accessor) -> Iterator[tuple[bytes, Entry]]:
    """Every path and entry, by listings; each must also be found by its name."""
    todo = [(b"", accessor.root())]
    while todo:
        path, entry = todo.pop()
        yield path, entry
        if entry.kind is EntryKind.DIRECTORY:
            for child in accessor.list(entry):
                found = accessor.lookup(entry, child.name)
                assert found is not None
                assert facts_of_entry(found) == facts_of_entry(child)
                todo.append((path + b"/" + child.name if path else child.name, child))


def facts_of_entry(entry: Entry) -> tuple[Any, ...]:
    return tuple(getattr(entry, slot) for slot in Entry.__slots__ if slot != "_metadata")


def accessed_facts(accessor: Accessor) -> Facts:
    """The same, by listing every directory."""
    facts: Facts = {}
    for path, entry in walk(accessor):
        if entry.kind is EntryKind.HARDLINK:
            target = accessor.follow(entry)
            assert accessor.resolve(entry.target).offset == target.offset
            facts[path] = (entry.kind, entry.target, accessor.read(target, 0, target.size))
        else:
            is_file = entry.kind is EntryKind.FILE
            content = (accessor.read(entry, 0, entry.size + 1),) if is_file else ()
            facts[path] = (entry.kind, entry.metadata, *content, *_own(entry))
    return facts


def split_at(data: bytes, cuts: Iterable[int]) -> list[memoryview]:
    """The data in pieces, cut at any offsets."""
    view, out, start = memoryview(data), [], 0
    for cut in sorted({cut % (len(data) + 1) for cut in cuts}):
        out.append(view[start:cut])
        start = cut
    return [*out, view[start:]]


U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
NAMES = st.one_of(
    st.binary(min_size=1, max_size=12), st.sampled_from([b"a", b"b", b"...", b"\xff", b"x" * 255])
).filter(lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b".."))
_PERMISSIONS = st.integers(0, 7)
_NAMED = st.lists(st.tuples(U32, _PERMISSIONS), max_size=2).map(tuple)
_OPTIONAL = st.none() | _PERMISSIONS
ACLS = st.builds(
    Acl,
    _NAMED,
    _NAMED,
    _OPTIONAL,
    st.none() | st.builds(DefaultAcl, _OPTIONAL, _OPTIONAL, _OPTIONAL, _OPTIONAL),
    _NAMED,
    _NAMED,
).filter(lambda acl: acl.has_access or acl.has_default)
_XATTR = st.tuples(
    st.binary(min_size=1, max_size=255).filter(lambda name: b"\0" not in name),
    st.binary(max_size=40),
)


def metadata(file_type: int, *, bare: bool = False) -> st.SearchStrategy[Metadata]:
    attributes: dict[str, st.SearchStrategy[Any]] = {
        "xattrs": st.lists(_XATTR, max_size=2).map(tuple),
        "acl": st.none() | ACLS,
        "fcaps": st.none() | st.binary(max_size=24),
        "quota_project_id": st.none() | U64,
    }
    return st.builds(
        Metadata,
        mode=st.integers(0, 0o7777).map(lambda bits: file_type | bits),
        flags=U64,
        uid=U32,
        gid=U32,
        mtime_s=st.integers(-(2**63), 2**63 - 1),
        mtime_ns=st.integers(0, 999_999_999),
        **({} if bare else attributes),
    )


_TEXT = st.binary(min_size=1, max_size=30).filter(lambda text: b"\0" not in text)
_LEAVES = st.one_of(
    st.builds(Node, metadata(stat.S_IFREG), content=st.binary(max_size=200)),
    st.builds(Node, metadata(stat.S_IFLNK, bare=True), target=_TEXT),
    st.builds(Node, metadata(stat.S_IFCHR, bare=True), device=st.tuples(U32, U32)),
    st.builds(Node, metadata(stat.S_IFBLK, bare=True), device=st.tuples(U32, U32)),
    st.builds(Node, metadata(stat.S_IFIFO, bare=True)),
    st.builds(Node, metadata(stat.S_IFSOCK, bare=True)),
    st.builds(Node, st.just(Metadata(stat.S_IFREG)), link=st.just(True)),
)
TREES = st.recursive(
    _LEAVES,
    lambda nodes: st.builds(
        Node, metadata(stat.S_IFDIR), children=st.dictionaries(NAMES, nodes, max_size=5)
    ),
    max_leaves=12,
)
ROOTS = st.builds(Node, metadata(stat.S_IFDIR), children=st.dictionaries(NAMES, TREES, max_size=6))

"""What we know of archives, snapshots and groups, as extended attributes: `user.vaultway.…`.

    digest        archive   csum of its index, or SHA-256 of its blob, in hex; a split tree has two,
                            that of the metadata first
    chunks        archive   how many it has, and how many of them differ: "256/3"
    verify-state  archive, snapshot   "ok" or "failed", when it was verified
    owner         group

All may read the datastore, and are for threads.
"""

from collections.abc import Callable

from fsgateway.tree import BlobNode, FileNode, GroupNode, ImageNode, Node, SnapshotNode, TreeNode
from store.format.manifest import FileInfo

PREFIX = b"user.vaultway."
DIGEST = PREFIX + b"digest"
CHUNKS = PREFIX + b"chunks"
VERIFY_STATE = PREFIX + b"verify-state"
OWNER = PREFIX + b"owner"

# Not the trees that others make of them: a view over several, a file system in an image.
ARCHIVES = (TreeNode, ImageNode, BlobNode)

Value = Callable[[], str]


def own_names(node: Node) -> list[bytes]:
    """Those to list.

    None for a tree: a copy of it with its attributes must be what was backed up, and no more.
    Raises StoreError.
    """
    if isinstance(node, TreeNode):
        return []
    return [name for name in _values(node) if name != VERIFY_STATE or own_value(node, name)]


def own_value(node: Node, name: bytes) -> bytes | None:
    """The value of one, also of one that is not listed; None where there is none.

    Raises StoreError.
    """
    value = _values(node).get(name)
    return (value().encode() or None) if value else None


def _values(node: Node) -> dict[bytes, Value]:
    if isinstance(node, GroupNode):
        return {OWNER: lambda: node.view.datastore.owner(node.namespace, node.group)}
    if isinstance(node, SnapshotNode):
        return {VERIFY_STATE: lambda: node.view.verify_state(node.ident)}
    if not isinstance(node, FileNode) or type(node) not in ARCHIVES:
        return {}
    values: dict[bytes, Value] = {
        DIGEST: lambda: " ".join(info.csum.hex() for info in _files(node)),
        VERIFY_STATE: lambda: node.view.verify_state(node.ident),
    }
    if not isinstance(node, BlobNode):
        values[CHUNKS] = lambda: _chunks(node)
    return values


def _files(node: FileNode) -> list[FileInfo]:
    return node.view.open(node.ident).files_of(node.name)


def _chunks(node: FileNode) -> str:
    """Of all its indexes together; 8 bytes of a digest tell a hundred million chunks apart."""
    import numpy

    prefixes = bytearray()
    for info in _files(node):
        datastore = node.view.datastore
        is_fixed = info.filename.endswith(".fidx")
        read = datastore.fixed_index if is_fixed else datastore.dynamic_index
        for digest in read(*node.ident, info.filename).digests():
            prefixes += digest[:8]
    words = numpy.frombuffer(prefixes, dtype="<u8")
    return f"{len(words)}/{len(numpy.unique(words))}"

"""Heads: the writable state on top of a group's snapshots. Sealing one makes the next snapshot.

A head is the only thing that changes in place. Both gateways write into heads and into nothing
else; they call what is described here, from any thread, without an event loop.

    heads = Heads(datastore, directory, key=key, crypt_mode=CryptMode.ENCRYPT)
    with heads.open(namespace, group) as head:       # made from the newest snapshot if it is new
        tree = head.tree("root.pxar")                # a Tree: inodes by number
        found = tree.lookup(tree.root, b"etc")
        image = head.image("drive-scsi0.img")        # an Image: bytes by offset
        image.write(0, data)
        image.flush()
        snapshot = head.seal()

base       what the gateways see: Tree, Image, Attributes, WouldWait
heads      Heads: list, create, open, discard; place says where on the local disk
head       OpenHead: one group's, its archives
journal    what makes it last: segments (data), database (metadata), protection (encryption)
content    bytes of a file or image: extents in segments over a snapshot's stream
tree       inodes, directories, and the operations on them
image      a disk
sealing    a head's state as a snapshot, by the writer of operations.backup

Rules that hold for all of it:

**Errors.** What POSIX has a number for is an OSError with that number (FileNotFoundError,
FileExistsError, OSError(ENOTEMPTY), …), so that a gateway answers `error.errno`. What the storage
or the journal fails with is a StoreError, which has an `errno` too. A head that lost its lock
raises Locked (EBUSY) from every call that would change something: nothing of it is lost, but
another process has it now.

**Durability.** What an operation did is seen at once by every other, and lost by a crash, unless
`sync` (of the file, the tree, the image or the head) returned after it; without one it is made
durable within COMMIT_INTERVAL_S (5 s). A crash goes back to one moment between two operations of a
tree; an image may lose any unsynced write by itself, as a disk does.

**Threads.** Every method may be called from any thread. Those of a Tree take one lock for a few
microseconds, unless they need something of the datastore that is not in memory, or the disk. An
event loop calls `tree.at_once(tree.lookup, parent, name)`: the answer, or WouldWait raised at once
and nothing done; then it calls `tree.lookup(parent, name)` in a thread. Fork before opening.

**Sealing.** `Head.seal` may be called while others write: it takes the state of one moment, what
comes later goes to the next generation. Inode numbers stay valid, and so do Tree and Image objects.
"""

from store.heads.base import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    Attributes,
    DirectoryEntry,
    FileSystemStatus,
    Head,
    HeadInfo,
    Image,
    Tree,
    WouldWait,
)
from store.heads.heads import NEWEST, Heads
from store.heads.tree.inodes import DEFAULT_ACL

__all__ = [
    "DEFAULT_ACL",
    "FALLOC_KEEP_SIZE",
    "FALLOC_PUNCH_HOLE",
    "FALLOC_ZERO_RANGE",
    "NEWEST",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "RENAME_WHITEOUT",
    "Attributes",
    "DirectoryEntry",
    "FileSystemStatus",
    "Head",
    "HeadInfo",
    "Heads",
    "Image",
    "Tree",
    "WouldWait",
]

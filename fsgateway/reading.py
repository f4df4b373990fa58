"""Opening and reading files: the cached answer at once, all else through the loader.

A read that covers damage is EIO. The kernel asks for whole pages, so the page in which a damaged
chunk of a tree's file begins or ends is lost with it; whoever opens the file again afterwards reads
it directly, byte by byte exact, where the read does not begin with a page.
"""

import errno
from mmap import PAGESIZE

from pyfuse3 import FileInfo, InodeT

from fsgateway import extra_handlers
from fsgateway.archive import Archive
from fsgateway.bridge import Bridge
from fsgateway.disks import RawNode
from fsgateway.handles import BytesFile, GuestFile, HandleTable, OpenFile, StreamFile
from fsgateway.readahead import Loader, Way
from fsgateway.tree import BlobNode, ImageNode, ManifestNode, Node
from fsgateway.view import Content
from store.datastore.archives import IndexedStream
from store.errors import FormatError, IntegrityError
from store.format.buffer import Buffer
from store.format.pxar.entries import Entry

# A disk is read once, and larger than what the kernel has memory for. A page of it that is made,
# filled and copied out costs as much as unpacking it.
UNCACHED = 64 << 20
# Smaller files of a tree are read one after the other, in archive order: they share a way through
# the stream.
OWN_WAY = 4 << 20
MAX_DAMAGED = 10_000


class Reader:
    """The open files of a mount."""

    def __init__(self, bridge: Bridge, loader: Loader, *, caches_images: bool = False) -> None:
        """`caches_images`: large ones, too, go through the kernel's cache."""
        self.files: HandleTable[OpenFile] = HandleTable()
        self._bridge = bridge
        self._loader = loader
        self._caches_images = caches_images
        self._damaged: set[int] = set()

    async def open_entry(self, inode: InodeT, archive: Archive, entry: Entry) -> FileInfo:
        """Open a file of a tree. Raises StoreError."""
        content = archive.content_if_cached(entry)
        if content is None:
            content = await self._bridge.of(archive).run(archive.content, entry)
        shares_way = content.size < OWN_WAY
        way = archive.ways.of(content.start) if shares_way else Way(content.start)
        return self._open_content(inode, content, way)

    def _open_content(self, inode: InodeT, content: Content, way: Way) -> FileInfo:
        stream, start, size = content
        if not isinstance(stream, IndexedStream):
            return self._add(GuestFile(content), keep_cache=True)
        return self._open_stream(inode, stream, start, size, way)

    async def open_node(self, inode: InodeT, node: Node) -> FileInfo:
        """Open an image, blob or manifest. Raises StoreError, OSError(EISDIR, EINVAL)."""
        if isinstance(node, ImageNode):
            image = await self._bridge.run(node.open)
            return self._open_disk(inode, Content(image.stream, 0, image.stream.size))
        if isinstance(node, RawNode):
            return self._open_disk(inode, node.content())
        if isinstance(node, BlobNode):
            return self._add(BytesFile(await self._bridge.run(node.read)), keep_cache=True)
        if isinstance(node, ManifestNode):
            # Direct: its size changes with the notes in it, and the kernel would cut it at the old
            # one.
            return self._add(BytesFile(await self._bridge.run(node.read)), direct_io=True)
        raise OSError(errno.EINVAL, "not a file")

    def _open_disk(self, inode: InodeT, content: Content) -> FileInfo:
        stream, start, size = content
        if not isinstance(stream, IndexedStream):
            return self._open_content(inode, content, Way(start))
        is_large = size >= UNCACHED and not self._caches_images
        is_uncached = is_large and extra_handlers.can_map_uncached()
        return self._open_stream(inode, stream, start, size, Way(start), is_uncached=is_uncached)

    def _open_stream(
        self,
        inode: InodeT,
        stream: IndexedStream,
        start: int,
        size: int,
        way: Way,
        *,
        is_uncached: bool = False,
    ) -> FileInfo:
        is_damaged = inode in self._damaged
        is_exact = is_damaged or is_uncached
        file = StreamFile(inode, stream, start, size, way, is_exact=is_exact)
        return self._add(file, direct_io=is_exact, keep_cache=not is_damaged)

    def _add(
        self, file: OpenFile, *, direct_io: bool = False, keep_cache: bool = False
    ) -> FileInfo:
        return FileInfo(fh=self.files.add(file), direct_io=direct_io, keep_cache=keep_cache)

    def read_now(self, handle: int, offset: int, size: int) -> Buffer | None:
        """Read `size` bytes at `offset` of an open file, fewer only at its end.

        None where that would have to wait. The answer may be a view into the cache.

        Raises StoreError, KeyError (it is not open).
        """
        file = self.files.get(handle)
        if isinstance(file, StreamFile):
            size = min(size, file.size - offset)
            if size <= 0:
                return b""
            position = file.start + offset
            cached = file.peek(position, size)
            if cached is not None and position + size > file.way.mark:
                self._loader.follow(file.stream, file.way, position, size)
            return cached
        return None if isinstance(file, GuestFile) else file.read(offset, size)

    async def read(self, handle: int, offset: int, size: int) -> Buffer:
        """The same, and waits. The answer is to be sent before anything else happens."""
        at_hand = self.read_now(handle, offset, size)
        if at_hand is not None:
            return at_hand
        file = self.files.get(handle)
        if isinstance(file, StreamFile):
            size = min(size, file.size - offset)
            return await self._read_missing(file, file.start + offset, size)
        assert isinstance(file, GuestFile)
        return await self._bridge.of(file).run(file.read, offset, size)

    async def _read_missing(self, file: StreamFile, position: int, size: int) -> Buffer:
        self._loader.follow(file.stream, file.way, position, size)
        try:
            return await self._load(file, position, size)
        except (FormatError, IntegrityError):
            self._remember_damage(file.inode)
            _, chunk_end = file.stream.index.range(file.stream.index.position(position))
            is_whole = not file.is_exact or _may_be_a_page(file, position)
            if is_whole or chunk_end >= position + size:
                raise
            return await self._load(file, position, chunk_end - position)

    async def _load(self, file: StreamFile, position: int, size: int) -> Buffer:
        await self._loader.fill(file.stream, position, size)
        cached = file.peek(position, size)
        if cached is not None:
            return cached
        # The cache is too small for this much at once.
        return await self._bridge.run(file.stream.read, position, size)

    def _remember_damage(self, inode: int) -> None:
        if len(self._damaged) >= MAX_DAMAGED:
            self._damaged.clear()
        self._damaged.add(inode)


def _may_be_a_page(file: StreamFile, position: int) -> bool:
    """Whether the kernel may want this for its cache, although the file is opened past it.

    For maps and sendfile it does, and takes a short answer for the end of the file: it would show
    a smaller one. Whoever begins elsewhere gets all that lies before the damage.
    """
    return (position - file.start) % PAGESIZE == 0

"""An image into a fixed index: chunks that changed are stored, the others are the base's."""

import threading
from collections.abc import Iterator

from store.datastore.snapshots import FixedIndexFile
from store.datastore.streams import IndexedStream
from store.errors import ChunkMissing
from store.format.fixed_index import CHUNK_SIZE
from store.heads.content import Content, Piece
from store.heads.database import Rows
from store.heads.extents import CHUNK, ZERO
from store.heads.journal import Journal
from store.names import Digest
from store.operations.backup.chunks import ChunkWriter
from store.progress import Progress


class ImageSealer:
    """One image, frozen. Its workers each make their own next chunk."""

    def __init__(
        self,
        content: Content,
        rows: Rows,
        journal: Journal,
        base: IndexedStream | None,
        size: int,
        chunks: ChunkWriter,
        *,
        same_key: bool,
        may_name_moved: bool,
    ) -> None:
        """`same_key`: whether the base's chunks are protected as the new ones will be.

        `may_name_moved`: whether those are that the head has moved.
        """
        self._content, self._rows, self._journal = content, rows, journal
        self._may_name_moved = may_name_moved
        self._base, self._size, self._chunks = base, size, chunks
        self._same_key = same_key
        self._turn = threading.Lock()
        self._stopped = False
        self._touched: set[Digest] = set()
        self._zeros: dict[int, Digest] = {}
        self.stored: set[Digest] = set()
        self.dirty = set(content.stored)

    def store(self, index: FixedIndexFile, progress: Progress) -> None:
        """Fill the index. The first error stops all."""
        numbers = iter(range(-(-self._size // CHUNK_SIZE)))
        with self._chunks.workers("seal") as workers:
            try:
                workers.run(lambda: self._work(numbers, index, progress))
            finally:
                self._stopped = True

    def _work(self, numbers: Iterator[int], index: FixedIndexFile, progress: Progress) -> None:
        try:
            while not self._stopped:
                with self._turn:
                    number = next(numbers, None)
                if number is None:
                    return
                index.set(number, self._digest(number))
                progress.advance(min(CHUNK_SIZE, self._size - number * CHUNK_SIZE))
        except BaseException:
            self._stopped = True
            raise

    def _digest(self, number: int) -> Digest:
        start = number * CHUNK_SIZE
        size = min(CHUNK_SIZE, self._size - start)
        base = self._base
        is_clean = number not in self.dirty and base is not None and start < base.size
        if is_clean and self._same_key:
            assert base is not None
            if base.index.range(number) == (start, start + size):
                return self._named(base.index.digest(number))
        pieces = list(self._pieces(start, start + size))
        moved = self._moved(pieces, size)
        if moved is not None:
            return self._named(moved)
        if all(self._is_zero(piece) for piece in pieces):
            return self._zero(size)
        digest = self._chunks.store(b"".join(map(self._read, pieces)))
        self.stored.add(digest)
        return digest

    def _named(self, digest: Digest) -> Digest:
        """A chunk that is there, and stays in use. Raises ChunkMissing."""
        if digest in self._touched:
            return digest
        if not self._chunks.touch(digest):
            raise ChunkMissing(f"chunk {digest} of what is to be sealed is gone")
        self._touched.add(digest)
        return digest

    def _moved(self, pieces: list[Piece], size: int) -> Digest | None:
        """The chunk that the head has moved all of these pieces to, if it is one."""
        first = pieces[0]
        if len(pieces) > 1 or not CHUNK <= first.record < ZERO or not self._may_name_moved:
            return None
        chunk = self._journal.moved.find(first.record)
        return chunk.digest if not first.skip and chunk.size == size else None

    def _pieces(self, start: int, end: int) -> Iterator[Piece]:
        with self._turn:
            found = list(self._content.pieces(start, end, self._rows))
            self._content.regions.clear()  # none is needed twice
        return iter(found)

    def _is_zero(self, piece: Piece) -> bool:
        if piece.record == ZERO:
            return True
        if piece.segment:
            return False
        base = self._base
        if base is None or piece.start >= base.size:
            return True
        last = min(piece.end, base.size)
        return all(zero for _, _, zero in base.extents(piece.start, last - piece.start))

    def _zero(self, size: int) -> Digest:
        digest = self._zeros.get(size)
        if digest is None:
            digest = self._zeros[size] = self._chunks.store(bytes(size))
            self.stored.add(digest)
        return digest

    def _read(self, piece: Piece) -> bytes:
        start, end, segment, record, skip = piece
        if record == ZERO:
            return bytes(end - start)
        if segment:
            return bytes(self._journal.payload(segment, record)[skip : skip + end - start])
        base = self._base
        last = min(end, base.size) if base is not None else 0
        if base is None or last <= start:
            return bytes(end - start)
        return base.read(start, last - start) + bytes(end - last)

"""Driving a tree archive into a TreeWriter.

All of it in one sequential pass, or the entries that patterns take.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

from store.datastore.archives import IndexedStream
from store.datastore.workers import Workers
from store.errors import FormatError, NotFound
from store.format.pxar.accessor import Accessor
from store.format.pxar.decoder import Decoder, DirectoryEnd, Event, PayloadData
from store.format.pxar.entries import Entry, EntryKind
from store.operations.restore.contents import PayloadCursor, random_content
from store.operations.restore.problems import Warnings, show
from store.operations.restore.selection import Selection
from store.operations.restore.tree import TreeWriter
from store.progress import Progress

Content = Callable[[Entry], Iterable[memoryview]]
Payload = Callable[[], tuple[memoryview | None, int]]
"""The piece of the payload stream at hand, and its offset; None when there is no such stream."""


@dataclass
class TreeRestore:
    """One tree archive on its way into one writer.

    workers: read ahead, in all streams; for the caller to end.
    accessor: opened only when something must be read out of order.
    """

    writer: TreeWriter
    workers: Workers
    warnings: Warnings
    progress: Progress
    open_accessor: Callable[[], Accessor]
    selection: Selection | None = None
    _accessor: Accessor | None = None
    _copies: dict[int, bytes] = field(default_factory=dict)

    @property
    def accessor(self) -> Accessor:
        if self._accessor is None:
            self._accessor = self.open_accessor()
        return self._accessor

    def restore_all(self, metadata: IndexedStream, payload: IndexedStream | None) -> None:
        """Read the archive from front to back. Nothing is decoded twice."""
        if payload is None:
            decoder = Decoder(self._counted(metadata.chunks(workers=self.workers)))
            events = iter(decoder)
            self._run(
                decoder,
                events,
                lambda entry: _inline_content(events, entry.size),
                lambda: (None, 0),
            )
        else:
            with closing(PayloadCursor(payload, self.workers, self.progress)) as cursor:
                decoder = Decoder(metadata.chunks(workers=self.workers))
                self._run(decoder, iter(decoder), cursor.content, cursor.at_hand)

    def restore_selected(self, *, apply_root: bool) -> None:
        """Walk the directories and restore what the selection takes.

        Raises NotFound when that is nothing.
        """
        assert self.selection
        root = self.accessor.root()
        self.writer.begin(root)
        stack = [(self.accessor.iterate(root), False)]
        while stack:
            children, parent = stack[-1]
            entry = next(children, None)
            if entry is None:
                stack.pop()
                if stack:
                    self.writer.leave()
                continue
            is_directory = entry.kind is EntryKind.DIRECTORY
            path = self.writer.path(entry.name)
            taken = self.selection.takes(path, is_directory=is_directory, parent=parent)
            if is_directory:
                if not taken and not self.selection.reaches(path):
                    continue
                self.writer.enter(entry, create=taken)
                stack.append((self.accessor.iterate(entry), taken))
            elif taken:
                self._restore(entry, self._random_content)
        if not self.writer.entries:
            raise NotFound("no entry of the archive matches the patterns")
        self.writer.finish(apply=apply_root)

    def _run(
        self,
        decoder: Decoder,
        events: Iterator[Event],
        content: Content,
        payload: Payload,
    ) -> None:
        root = next(events)
        assert isinstance(root, Entry)
        self.writer.begin(root)
        depth = 1
        while depth:
            while done := self.writer.small_files(decoder.at_hand(), *payload()):
                decoder.pass_over(done)
            event = next(events)
            if isinstance(event, Entry):
                if event.kind is EntryKind.DIRECTORY:
                    self.writer.enter(event, create=True)
                    depth += 1
                else:
                    self._restore(event, content)
            elif isinstance(event, DirectoryEnd):
                depth -= 1
                if depth:
                    self.writer.leave()
            else:
                raise FormatError("pxar archive: content that belongs to no file")
        self.writer.finish(apply=True)

    def _restore(self, entry: Entry, content: Content) -> None:
        if entry.kind is EntryKind.FILE:
            self.writer.file(entry, content(entry))
        elif entry.kind is EntryKind.HARDLINK:
            self._restore_link(entry)
        else:
            self.writer.node(entry)

    def _restore_link(self, entry: Entry) -> None:
        """Link to the restored file or to an earlier copy of it; if there is neither, copy it."""
        copy = self._copies.get(entry.target_offset)
        if copy is None and (self.selection is None or self.selection.takes_file(entry.target)):
            copy = entry.target
        if copy is not None and self.writer.link(entry.name, copy):
            return
        path = self.writer.path(entry.name)
        if copy is not None:
            text = f"{show(path)}: a hard link is not possible here, copied, here and below"
            self.warnings.once("hard links", text)
        file = self.accessor.follow(entry)
        self.writer.file(file, self._random_content(file), entry.name)
        self._copies[entry.target_offset] = path

    def _random_content(self, entry: Entry) -> Iterator[memoryview]:
        stream, offset = self.accessor.content(entry)
        for piece in random_content(stream, offset, entry.size, self.workers):
            yield piece
            self.progress.advance(len(piece))

    def _counted(self, chunks: Iterable[memoryview]) -> Iterator[memoryview]:
        for chunk in chunks:
            yield chunk
            self.progress.advance(len(chunk))


def _inline_content(events: Iterator[Event], size: int) -> Iterator[memoryview]:
    """Yield the content that follows its file in a v1 archive."""
    while size > 0:
        event = next(events, None)
        if not isinstance(event, PayloadData):
            raise FormatError(f"pxar archive: {size} bytes of a file's content missing")
        size -= len(event.data)
        yield event.data

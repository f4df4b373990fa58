"""Driving a tree into a TreeWriter.

All of an archive in one sequential pass, or of any tree the entries that a selection takes.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

from store.datastore.archives import IndexedStream
from store.datastore.workers import Workers
from store.errors import FormatError, NotFound
from store.format.pxar.decoder import Decoder, DirectoryEnd, Event, PayloadData
from store.format.pxar.entries import Entry, EntryKind
from store.operations.restore.contents import PayloadCursor, random_content
from store.operations.restore.problems import Warnings, show
from store.operations.restore.selection import Takes
from store.operations.restore.tree import TreeWriter
from store.progress import Progress
from store.trees.base import FileTree

Content = Callable[[Entry], Iterable[memoryview]]
Payload = Callable[[], tuple[memoryview | None, int]]
"""The piece of the payload stream at hand, and its offset; None when there is no such stream."""


@dataclass
class TreeRestore:
    """One tree on its way into one writer.

    workers: read ahead, in all streams; for the caller to end.
    tree: opened only when something must be read out of order.
    top: the directory that is restored, where it is not the root; `base` is its path.
    """

    writer: TreeWriter
    workers: Workers
    warnings: Warnings
    progress: Progress
    open_tree: Callable[[], FileTree]
    selection: Takes | None = None
    top: Entry | None = None
    base: bytes = b""
    _tree: FileTree | None = None
    _copies: dict[int, bytes] = field(default_factory=dict)

    @property
    def tree(self) -> FileTree:
        if self._tree is None:
            self._tree = self.open_tree()
        return self._tree

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
        root = self.top or self.tree.root()
        self.writer.begin(root)
        stack = [(self.tree.iterate(root), False)]
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
                stack.append((self.tree.iterate(entry), taken))
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
            self._restore_file(entry, content)
        elif entry.kind is EntryKind.HARDLINK:
            self._restore_link(entry)
        else:
            self.writer.node(entry)

    def _restore_file(self, entry: Entry, content: Content) -> None:
        """Write a file; of one with several names of equal rank the first, link the others."""
        if entry.links < 2:
            self.writer.file(entry, content(entry))
            return
        path, copy = self.writer.path(entry.name), self._copies.get(entry.offset)
        if copy is None or not self._is_linked(entry.name, copy):
            self.writer.file(entry, content(entry))
            self._copies[entry.offset] = path

    def _restore_link(self, entry: Entry) -> None:
        """Link to the restored file or to an earlier copy of it; if there is neither, copy it."""
        copy = self._copies.get(entry.target_offset)
        if copy is None:
            copy = self._restored(entry.target)
        if copy is not None and self._is_linked(entry.name, copy):
            return
        file = self.tree.follow(entry)
        path = self.writer.path(entry.name)
        self.writer.file(file, self._random_content(file), entry.name)
        self._copies[entry.target_offset] = path

    def _restored(self, target: bytes) -> bytes | None:
        """Where a file of the tree is restored to, from `top`; None if it is not taken."""
        if self.base:
            if not target.startswith(self.base + b"/"):
                return None
            target = target[len(self.base) + 1 :]
        taken = self.selection is None or self.selection.takes_file(target)
        return target if taken else None

    def _is_linked(self, name: bytes, copy: bytes) -> bool:
        """Try to make `name` another name of `copy`; a warning where that is not possible."""
        if self.writer.link(name, copy):
            return True
        path = self.writer.path(name)
        text = f"{show(path)}: a hard link is not possible here, copied, here and below"
        self.warnings.once("hard links", text)
        return False

    def _random_content(self, entry: Entry) -> Iterator[memoryview]:
        stream, offset = self.tree.content(entry)
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

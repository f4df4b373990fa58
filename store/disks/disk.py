"""A disk image opened: its parts, and the files in each by whichever engine can show them."""

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from threading import Event, Lock
from weakref import WeakSet

from store.disks import replay
from store.disks.base import GuestTree, Part, SegmentStream, State
from store.disks.engines import Engine, machine
from store.disks.kept import Kept
from store.disks.layout import Described, described, links_of, part_of
from store.disks.parsers import wire
from store.disks.parsers.probe import PARSED
from store.disks.parsers.process import ENCRYPTED, Crew, Limits, ParserProcess
from store.disks.parsers.tree import ChildStream, ParsedTree
from store.disks.replay import NotReplayed
from store.disks.replayers import REPLAYERS
from store.errors import ChunkMissing, FormatError, IntegrityError, KeyRequired, StoreError
from store.format.buffer import ReadAt

log = logging.getLogger(__name__)

OPEN_DISKS = 64
OPEN_TREES = 8
PARSERS, MACHINE = "parsers", "machine"
NO_KEY = "no key given opens it"
# Of each replayed journal; the rest goes into an encrypted file.
OVERLAY_MEMORY = 16 << 20


@dataclass(frozen=True, slots=True)
class DiskOptions:
    """How disks are opened.

    keys: passphrases, recovery passwords and contents of key files for LUKS and BitLocker.
    limits: of each child that parses.
    use_machine: whether a micro-VM may be started for what the parsers cannot show.
    """

    keys: tuple[bytes, ...] = ()
    limits: Limits = Limits()  # noqa: RUF009 - frozen
    use_machine: bool = True


class Disks:
    """The disks of a mount: few of them open, few children at work. Thread-safe; to be closed."""

    def __init__(self, options: DiskOptions = DiskOptions()) -> None:
        self.options = options
        self.crew = Crew(limits=options.limits)
        self.machine: Engine | None = machine() if options.use_machine else None
        self._disks: Kept[Disk] = Kept(OPEN_DISKS)
        self._trees: Kept[GuestTree] = Kept(OPEN_TREES)
        self._opened: WeakSet[GuestTree] = WeakSet()
        # By name of the part, for disks come and go. The numbers of files, which are still known
        # outside, are the engine's that first opened it.
        self.engines: dict[str, str] = {}
        self.unreplayed: dict[str, str] = {}  # why its journal could not be
        self.ended = Event()

    def open(self, key: Hashable, stream: Callable[[], ReadAt], name: str) -> "Disk":
        """The disk in an image; `key` says which image that is. Raises what `stream` raises."""
        return self._disks.get(key, lambda: Disk(stream(), name, self))

    def opened(self, key: Hashable) -> GuestTree | None:
        """A tree that is open."""
        return self._trees.peek(key)

    def tree(self, key: Hashable, make: Callable[[], GuestTree]) -> GuestTree:
        """A tree that is open, or is opened now. Raises what `make` raises."""
        tree = self._trees.get(key, make)
        self._opened.add(tree)
        return tree

    def parser(
        self, stream: ReadAt, kind: str, name: str, keys: tuple[bytes, ...] = ()
    ) -> ParserProcess:
        """A child for a stream. Raises IntegrityError: all is closed."""
        self.check_open(name)
        return ParserProcess(stream, kind, self.crew, name, keys)

    def check_open(self, name: str) -> None:
        """Raises IntegrityError: all is closed, nothing may be started for `name`."""
        if self.ended.is_set():
            raise IntegrityError(f"{name}: closed")

    def close(self) -> None:
        """Close everything, also what is only being opened; again does no harm.

        What is asked afterwards is answered with IntegrityError.
        """
        self.ended.set()
        self._trees.clear()
        if self.machine is not None:
            self.machine.close()
        for tree in [*self._opened]:
            tree.close()
        self._disks.clear()
        self.crew.close()


class Disk:
    """One image. Thread-safe; its parts are found when they are asked for.

    Args:
        stream: the image.
        name: of the image, for messages.
        disks: what it shares with others.
    """

    def __init__(self, stream: ReadAt, name: str, disks: Disks) -> None:
        self.stream, self.name = stream, name
        self._disks = disks
        self._lock = Lock()
        self._parts: list[DiskPart] | None = None

    @property
    def parts(self) -> "list[DiskPart]":
        """What the disk is made of, by number; read when it is asked for first.

        A part that has to be recovered first is UNCLEAN only when nothing here can, or somebody
        tried in vain: then there is one WARNING, and its tree is as old as the disk.

        Raises IntegrityError (the tables are broken), and what the image raises.
        """
        with self._lock:
            if self._parts is None or any(part.has_failed for part in self._parts):
                # The same ones for the same parts: their trees are open, and their files numbered.
                known = {old.part: old for old in self._parts or () if old.failure is None}
                self._parts = [known.get(new.part, new) for new in self._find_parts()]
            return self._parts

    def _find_parts(self) -> "list[DiskPart]":
        found = self._layout(self.stream, self.name)
        streams: dict[int, ReadAt] = {}
        failures: dict[int, StoreError] = {}
        for one in [*found]:
            if one.kind in ENCRYPTED:
                found = self._opened_if_it_can_be(found, one, streams, failures)
        links = links_of(found)
        parts = [self._finished(one, links.get(one.number, ()), streams) for one in found]
        for one, part in zip(found, parts, strict=True):
            part.failure = failures.get(one.number)
        return parts

    def _opened_if_it_can_be(
        self,
        found: list[Described],
        locked: Described,
        streams: dict[int, ReadAt],
        failures: dict[int, StoreError],
    ) -> list[Described]:
        """As `_opened_up`; what is wrong with one part must not hide the others."""
        try:
            return self._opened_up(found, locked, streams)
        except KeyRequired as error:
            log.info("%s", error)
        except (IntegrityError, FormatError) as error:
            failures[locked.number] = error
        return found

    def _layout(self, stream: ReadAt, name: str) -> list[Described]:
        process = self._disks.parser(stream, "table", name)
        try:
            return described(process.ask(wire.TABLE), stream.size)
        finally:
            process.close()

    def _opened_up(
        self, found: list[Described], locked: Described, streams: dict[int, ReadAt]
    ) -> list[Described]:
        """`found` with what is inside an encrypted part.

        A file system takes the part's place; logical volumes come behind the last number.
        Raises KeyRequired (no key opens it), IntegrityError, and what the image raises.
        """
        name = f"{self.name}: part{locked.number}"
        blocks = SegmentStream(self.stream, locked.segments, name)
        plain = self._plaintext(blocks, str(locked.kind), name)
        inside = self._layout(plain, name)
        number = max(one.number for one in found)
        for one in inside:
            if one.number == 1 and len(inside[0].segments) == 1:
                streams[locked.number] = plain
                found = [
                    one._replace(number=locked.number) if each is locked else each for each in found
                ]
            else:
                number += 1
                streams[number] = plain
                found = [*found, one._replace(number=number)]
        return found

    def _plaintext(self, blocks: ReadAt, kind: str, name: str) -> ReadAt:
        keys = self._disks.options.keys
        process = self._disks.parser(blocks, kind, name, keys)
        try:
            ((_, inode),) = wire.decode_inodes(process.ask(wire.ROOT), named=False)
        except (StoreError, ValueError):
            process.close()
            raise
        return ChildStream(process, inode.number, inode.size)

    def _finished(
        self, one: Described, links: tuple[str, ...], streams: dict[int, ReadAt]
    ) -> "DiskPart":
        part = replace(part_of(one), links=links)
        name = f"{self.name}: {part.name}"
        raw = SegmentStream(streams.get(one.number, self.stream), part.segments, name)
        needs_recovery = part.state is State.UNCLEAN
        if part.kind in ENCRYPTED:
            part = replace(part, state=State.LOCKED, detail=one.problem or NO_KEY)
        elif needs_recovery:
            part = self._recoverable(part, name)
        elif part.state is State.CLEAN and part.kind not in PARSED:
            missing = self._why_no_machine(str(part.kind))
            if missing:
                part = replace(part, state=State.UNREADABLE, detail=missing)
        return DiskPart(part, raw, name, self._disks, needs_recovery=needs_recovery)

    def _recoverable(self, part: Part, name: str) -> Part:
        """CLEAN, for it will be when it is opened; UNCLEAN when nothing here can see to that."""
        missing = self._disks.unreplayed.get(name) or self._cannot_recover(str(part.kind))
        if not missing:
            return replace(part, state=State.CLEAN)
        log.warning(
            "%s (%s) is shown as it was on the disk, %s; files written last may be missing: %s",
            name, part.kind, part.detail, missing,
        )  # fmt: skip
        return part

    def _why_no_machine(self, kind: str) -> str:
        engine = self._disks.machine
        return "no micro-VM in this installation" if engine is None else engine.why_not(kind)

    def _cannot_recover(self, kind: str) -> str:
        """Why nothing here can replay a journal of this kind; "" when something can."""
        missing = [replay.why_not(kind)] if kind in REPLAYERS else []
        if "" not in missing:
            missing.append(self._why_no_machine(kind))
        return "" if "" in missing else "; ".join(missing)

    def close(self) -> None:
        """Close all that it shares with others: for who opened it by `open_disk`."""
        self._disks.close()


class DiskPart:
    """A part of an open disk.

    Attributes:
        name, kind, size, links, state, detail: as `Part`.
        raw: its bytes; decrypted if a key opened it.
        has_tree: whether there is something to open, be it with a key.
        directory: the name its tree goes by: `part1`, or `part1.unclean`.
        failure: why it could not be decrypted, unless for want of a key.
        has_failed: somebody was told of that, or that its journal cannot be replayed, so it is to
            be looked at again.
    """

    def __init__(
        self, part: Part, raw: ReadAt, where: str, disks: Disks, *, needs_recovery: bool
    ) -> None:
        self.part, self.raw = part, raw
        self.name, self.kind, self.size = part.name, part.kind, part.size
        self.links, self.state, self.detail = part.links, part.state, part.detail
        self.has_tree = part.state is not State.UNREADABLE
        self.directory = f"{part.name}.unclean" if part.state is State.UNCLEAN else part.name
        self.failure: StoreError | None = None
        self.has_failed = False
        self._where, self._disks = where, disks
        self._needs_recovery = needs_recovery

    def opened_tree(self) -> GuestTree | None:
        """Its files, if they are open."""
        return self._disks.opened(self)

    def open_tree(self) -> GuestTree:
        """Its files, opened if they are not.

        Raises KeyRequired (encrypted, no key), FormatError (no file system), IntegrityError
        (damaged; the parser or the replay failed), NotReplayed (its disk shows it by another name
        from now on), and what the image raises.
        """
        if self.failure is not None:
            self.has_failed = True
            raise self.failure
        if self.state is State.LOCKED:
            raise KeyRequired(f"{self._where} is encrypted ({self.kind}): {self.detail}")
        if self.state is State.UNREADABLE:
            raise FormatError(f"{self._where}: {self.detail}")
        try:
            return self._disks.tree(self, self._open)
        except NotReplayed as error:
            self._disks.unreplayed[self._where], self.has_failed = str(error), True
            hint = f"what is on the disk is in {self.name}.unclean"
            raise NotReplayed(f"{error}; {hint}") from error

    @property
    def has_older_tree(self) -> bool:
        """Whether its journal is replayed before it is shown, and it could be shown without."""
        return self._needs_recovery and self.state is State.CLEAN and self.kind in PARSED

    def open_older_tree(self) -> GuestTree:
        """The same as they are on the disk, without what is in the journal."""
        return self._disks.tree((self, "older"), lambda: self._parsed(self.raw))

    def _open(self) -> GuestTree:
        """By the parsers if they can, for the machine takes seconds; later by the same."""
        self._disks.check_open(self._where)
        before = self._disks.engines.get(self._where)
        if before == MACHINE:
            return self._by_machine()
        try:
            if self._needs_recovery and self.state is State.CLEAN:
                return self._recovered()
            return self._by_parsers(self.raw) if self.kind in PARSED else self._by_machine()
        except ChunkMissing:
            raise
        except IntegrityError as error:
            engine = self._disks.machine
            if before or self.kind not in PARSED or engine is None:
                raise
            if engine.why_not(str(self.kind)):
                raise
            log.info("%s: the micro-VM is tried: %s", self._where, error)
            return self._by_machine()

    def _recovered(self) -> GuestTree:
        """With its journal replayed, by the quickest way there is here."""
        if not replay.why_not(str(self.kind)):
            kind, ended = str(self.kind), self._disks.ended
            return self._parsed(replay.replayed(self.raw, kind, self._where, OVERLAY_MEMORY, ended))
        return self._by_machine()

    def _by_machine(self) -> GuestTree:
        engine = self._disks.machine
        assert engine is not None  # or its state would say so
        tree = engine.open(self.part, self.raw)
        self._disks.engines[self._where] = MACHINE
        return tree

    def _by_parsers(self, blocks: ReadAt) -> GuestTree:
        tree = self._parsed(blocks)
        self._disks.engines[self._where] = PARSERS
        return tree

    def _parsed(self, blocks: ReadAt) -> GuestTree:
        process = self._disks.parser(blocks, str(self.kind), self._where)
        try:
            return ParsedTree(process)
        except StoreError:
            process.close()
            raise


def open_disk(stream: ReadAt, name: str = "disk", options: DiskOptions = DiskOptions()) -> Disk:
    """One disk by itself; `close()` it when done."""
    return Disk(stream, name, Disks(options))

"""The child: one disk or file system, parsed on request. `python -m store.disks.parsers.child`.

arguments: descriptor of the socket, size of the stream, kind of file system (or `table`),
           memory in bytes, seconds of CPU time for each request, entries of a directory at most
"""

import codecs
import os
import signal
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from importlib import import_module
from itertools import islice
from typing import NoReturn

from store.disks.parsers import sandbox, wire
from store.disks.parsers.blocks import CachedBlocks
from store.disks.parsers.files import BadFile, FileSystem, Inode, NoKey

PARSERS = {
    "table": ("layout", "Layout"),
    "ext2": ("ext", "Ext"), "ext3": ("ext", "Ext"), "ext4": ("ext", "Ext"),
    "xfs": ("xfs", "Xfs"), "btrfs": ("btrfs", "Btrfs"), "ntfs": ("ntfs", "Ntfs"),
    "fat": ("fat", "Fat"), "exfat": ("exfat", "ExFat"),
    "luks": ("fve", "luks"), "bitlocker": ("fve", "bitlocker"),
}  # fmt: skip
# Names held: some 30 MB.
HELD = 200_000
PATIENCE_S = 2.0
CODECS = ("ascii", "utf-8", "utf-16-le", "cp437", "latin-1")


class Gone(Exception):
    """The parent has closed its end."""


class Link:
    """The child's end of the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def receive(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises Gone."""
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._connection.recv_into(view)
            if not count:
                raise Gone
            view = view[count:]
        return bytes(data)

    def send(self, kind: int, payload: bytes) -> None:
        self._connection.sendall(wire.ANSWER.pack(kind, len(payload)) + payload)

    def fetch(self, offset: int, size: int) -> bytes:
        """Bytes of the disk, from the parent."""
        parts = []
        while size:
            many = min(size, wire.MAX_FETCH)
            self.send(wire.WANT, wire.WANT_BLOCKS.pack(offset, many))
            good, length = wire.ANSWER.unpack(self.receive(wire.ANSWER.size))
            data = self.receive(length)
            if not good or length != many:
                raise OSError("the disk cannot be read")
            parts.append(data)
            offset, size = offset + many, size - many
        return parts[0] if len(parts) == 1 else b"".join(parts)


class Directory:
    """The names of one directory, read as far as somebody has asked."""

    def __init__(self, names: Iterator[tuple[bytes, int]], limit: int) -> None:
        self._rest, self._limit = names, limit
        self.names: list[tuple[bytes, int]] = []
        self.by_name: dict[bytes, int] = {}
        self.done = False

    def read(self, count: int) -> None:
        """Up to `count` names more."""
        found = [*islice(self._rest, count)]
        self.done = len(found) < count
        self.names += found
        self.by_name.update(found)
        if len(self.names) > self._limit:
            raise BadFile(f"a directory of more than {self._limit} names")


class Server:
    """Answers requests about one file system."""

    def __init__(self, files: FileSystem, entries: int) -> None:
        self._files, self._entries = files, entries
        self._held: OrderedDict[int, Directory] = OrderedDict()

    def answer(self, op: int, number: int, a: int, size: int, name: bytes) -> bytes | None:
        """The payload; None when it takes longer than one request may: ask again."""
        files = self._files
        if op == wire.ROOT:
            return wire.encode_inode(files.inode(files.root()), b"")
        if op == wire.INODE:
            return wire.encode_inode(files.inode(number), b"")
        if op == wire.LIST:
            return self._list(number, a)
        if op == wire.LOOKUP:
            return self._lookup(number, name)
        if op == wire.RUNS:
            return wire.encode_runs(files.runs(number))
        if op == wire.READ:
            return files.read(number, a, size)
        return bytes(getattr(files, "label", b""))

    def _directory(self, number: int) -> Directory:
        found = self._held.get(number)
        if found is None:
            found = self._held[number] = Directory(self._files.names(number), self._entries)
        self._held.move_to_end(number)
        while len(self._held) > 1 and sum(len(one.names) for one in self._held.values()) > HELD:
            self._held.popitem(last=False)
        return found

    def _list(self, number: int, cursor: int) -> bytes | None:
        directory = self._directory(number)
        started, records, size = time.monotonic(), [], 0
        try:
            while size < wire.PAGE_SIZE and time.monotonic() - started < PATIENCE_S:
                if cursor >= len(directory.names):
                    if directory.done:
                        break
                    directory.read(256)
                    continue
                name, child = directory.names[cursor]
                record = self._record(name, child)
                records.append(record)
                size += len(record)
                cursor += 1
        except Exception:
            self._held.pop(number, None)
            raise
        done = directory.done and cursor >= len(directory.names)
        return wire.PAGE.pack(done, cursor) + b"".join(records)

    def _lookup(self, number: int, name: bytes) -> bytes | None:
        directory, started = self._directory(number), time.monotonic()
        try:
            while name not in directory.by_name and not directory.done:
                if time.monotonic() - started > PATIENCE_S:
                    return None
                directory.read(256)
        except Exception:
            self._held.pop(number, None)
            raise
        child = directory.by_name.get(name)
        return b"" if child is None else self._record(name, child)

    def _record(self, name: bytes, child: int) -> bytes:
        """A name and its inode; a name alone when that cannot be read."""
        try:
            return wire.encode_inode(self._files.inode(child), name)
        except (MemoryError, OSError, Gone):
            raise
        except Exception:  # noqa: BLE001 - parsers fail in any way on a broken disk
            return wire.encode_inode(Inode(child, wire.BROKEN), name)


def serve(link: Link, blocks: CachedBlocks, kind: str, cpu_s: float, entries: int) -> NoReturn:
    """Answer requests until the parent goes."""
    module, factory = PARSERS[kind]
    parser = getattr(sys.modules[f"store.disks.parsers.{module}"], factory)
    server: Server | None = None
    while True:
        op, number, a, size, length = wire.REQUEST.unpack(link.receive(wire.REQUEST.size))
        name = link.receive(length)
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        try:
            if op == wire.TABLE:
                link.send(wire.DONE, parser(blocks).answer())
                continue
            if op == wire.UNLOCK:
                server = Server(parser(blocks, wire.decode_keys(name)), entries)
                link.send(wire.DONE, b"")
                continue
            if server is None:
                server = Server(parser(blocks), entries)
            payload = server.answer(op, number, a, size, name)
            link.send(wire.AGAIN if payload is None else wire.DONE, payload or b"")
        except Gone:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever is wrong is the disk's fault
            said = str(error) if isinstance(error, BadFile) else f"{type(error).__name__}: {error}"
            answer = wire.LOCKED if isinstance(error, NoKey) else wire.FAILED
            link.send(answer, said.encode("utf-8", "replace")[:500])
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)


def _refuse(link: Link, why: str) -> NoReturn:
    """Answer whatever is asked with this."""
    while True:
        *_, length = wire.REQUEST.unpack(link.receive(wire.REQUEST.size))
        link.receive(length)
        link.send(wire.FAILED, why.encode())


def main(arguments: list[str]) -> NoReturn:
    """Import what is needed, give up everything else, and serve."""
    descriptor, size, memory, entries = (int(arguments[index]) for index in (0, 1, 3, 5))
    kind, cpu_s = arguments[2], float(arguments[4])
    import_module(f"store.disks.parsers.{PARSERS[kind][0]}")
    for codec in CODECS:
        codecs.lookup(codec)
    link = Link(socket.socket(fileno=descriptor))
    refusal = ""
    try:
        sandbox.enter(memory)
    except OSError as error:
        refusal = f"it is not parsed, for its parser cannot be confined here: {error}"
    try:
        if refusal:
            _refuse(link, refusal)
        serve(link, CachedBlocks(size, link.fetch), kind, cpu_s, entries)
    except (Gone, OSError):
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])

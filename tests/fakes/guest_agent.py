"""What the micro-VM's agent says, said by a Python process: what a test wants, and nonsense.

Run as a program: `python -m tests.fakes.guest_agent PORT FIRST_ROOT`; the "first root" is a word
that says how it behaves.
"""

import errno
import os
import socket
import stat
import struct
import sys
import time

from store.disks.microvm.protocol import VERSION, Key, Op, Page, Record, Reply

CONTENT = bytes(range(256)) * 16
TOP = Key(0, 2)
LONG_S = 600


def encode_reply(reply: Reply) -> bytes:
    return struct.pack("<IIi", 8 + len(reply.payload), reply.id, reply.error) + reply.payload


def encode_record(record: Record) -> bytes:
    xattrs = b"".join(
        struct.pack("<HI", len(name), len(value)) + name + value for name, value in record.xattrs
    )
    return (
        struct.pack(
            "<QQQqIIIIIIIiHHI",
            *record.key, record.size, *record.mtime, record.mode, *record.owner, record.links,
            *record.device, record.error, len(record.name), len(record.target), len(xattrs),
        )
        + record.name + record.target + xattrs
    )  # fmt: skip


def encode_page(page: Page) -> bytes:
    head = struct.pack("<QII", page.following, len(page.records), page.is_last)
    return head + b"".join(map(encode_record, page.records))


def record_of(key: Key, name: bytes = b"") -> Record:
    """Inode 2 is the root, others are files."""
    mode = stat.S_IFDIR | 0o755 if key == TOP else stat.S_IFREG | 0o644
    return Record(key, len(CONTENT), (1, 2), mode, (3, 4), 1, (0, 0), 0, name, b"", ())


class Agent:
    """Behaves as its word says."""

    def __init__(self, port: socket.socket, word: str) -> None:
        self._port, self._word = port, word

    def live(self) -> None:
        self._begin()
        header = struct.Struct("<IIIQQQI")
        with self._port.makefile("rb") as requests:
            while head := requests.read(header.size):
                length, ident, op, root, inode, offset, size = header.unpack(head)
                name = requests.read(length + 4 - header.size)
                self._answer(ident, Op(op), Key(root, inode), offset, size, name)

    def _begin(self) -> None:
        ready = struct.pack("<IQQ", VERSION, *TOP)
        if self._word == "deaf":
            time.sleep(LONG_S)
        if self._word == "panic":
            self._panic()
        if self._word == "unmountable":
            self._send(
                Reply(0, errno.EINVAL, ready + b"<3>[ 1.0] ext4: no such magic\n<6>[ 2.0] x\n")
            )
        else:
            self._send(Reply(0, 0, ready))

    def _answer(self, ident: int, op: Op, key: Key, offset: int, size: int, name: bytes) -> None:
        if op is Op.STAT:
            self._send(Reply(ident, 0, encode_record(record_of(key))))
        elif op is Op.LOOKUP:
            found = encode_record(record_of(Key(0, 7), name))
            self._send(Reply(ident, 0 if name == b"seven" else errno.ENOENT, found))
        elif op is Op.LIST:
            self._list(ident, offset)
        else:
            self._read(ident, offset, size)

    def _list(self, ident: int, offset: int) -> None:
        records = [
            record_of(Key(0, number + 3), b"f%d" % number) for number in range(offset, offset + 4)
        ]
        last = offset >= 8 and self._word != "endless"
        self._send(Reply(ident, 0, encode_page(Page(records, offset + 4, last))))

    def _read(self, ident: int, offset: int, size: int) -> None:
        if self._word == "panics-on-read":
            self._panic()
        if self._word == "dies-on-read":
            sys.exit(3)
        if self._word == "silent-on-read":
            return
        if self._word == "nonsense-on-read":
            self._port.sendall(b"\xff" * 64)
        elif self._word == "answers-another":
            self._send(Reply(ident + 1, 0, b""))
        elif self._word == "short":
            self._send(Reply(ident, 0, CONTENT[offset : offset + size - 1]))
        elif self._word.startswith("errno="):
            self._send(Reply(ident, int(self._word[6:]), b""))
        else:
            self._send(Reply(ident, 0, CONTENT[offset : offset + size]))

    def _panic(self) -> None:
        print("[ 3.1] Kernel panic - not syncing: \x1b[31mfake", flush=True)
        sys.exit(0)

    def _send(self, reply: Reply) -> None:
        self._port.sendall(encode_reply(reply))


if __name__ == "__main__":
    os.lseek(int(sys.argv[2]), 0, os.SEEK_SET)
    word = os.read(int(sys.argv[2]), 100).decode()
    Agent(socket.socket(fileno=int(sys.argv[1])), word).live()

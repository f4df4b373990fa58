"""A child that breaks the rules, in the way its kind of file system says. `python -m …`."""

import socket
import stat
import struct
import sys
import time

from store.disks.parsers import wire
from store.disks.parsers.files import Inode

FOLDER = wire.encode_inode(Inode(2, stat.S_IFDIR | 0o755), b"")
NAMES = b"".join(wire.encode_inode(Inode(3, stat.S_IFREG), b"name") for _ in range(100))


def page(names: bytes) -> bytes:
    """One of a directory that goes on."""
    payload = wire.PAGE.pack(0, 0) + names
    return wire.ANSWER.pack(wire.DONE, len(payload)) + payload


# For the roots of file systems that can be opened.
ROOTS = {"endless": page(NAMES), "hesitant": page(b""), "tired": b""}
ANSWERS = ROOTS | {
    "noise": b"\x07" * 64,
    "flood": wire.ANSWER.pack(wire.DONE, 0xFFFFFFFF),
    "beyond": wire.ANSWER.pack(wire.WANT, 12) + wire.WANT_BLOCKS.pack(1 << 62, 4096),
    "greedy": wire.ANSWER.pack(wire.WANT, 12) + wire.WANT_BLOCKS.pack(0, 0xFFFFFFFF),
    "liar": wire.ANSWER.pack(wire.DONE, 3) + b"abc",
    "rude": wire.ANSWER.pack(wire.FAILED, 9) + b"\x1b[31mred\n",
    "slow": wire.ANSWER.pack(wire.AGAIN, 0),
}


def main() -> None:
    link, kind = socket.socket(fileno=int(sys.argv[1])), sys.argv[3]
    while True:
        request = link.recv(wire.REQUEST.size, socket.MSG_WAITALL)
        if not request or kind == "dead":
            return
        if kind == "mute" or (kind == "tired" and request[0] != wire.ROOT):
            time.sleep(60)
        if kind == "reader":
            for _ in range(10_000):
                link.sendall(wire.ANSWER.pack(wire.WANT, 12) + wire.WANT_BLOCKS.pack(0, 4096))
                link.recv(struct.calcsize("<BI") + 4096, socket.MSG_WAITALL)
        if kind in ROOTS and request[0] == wire.ROOT:
            link.sendall(wire.ANSWER.pack(wire.DONE, len(FOLDER)) + FOLDER)
            continue
        link.sendall(ANSWERS[kind])


if __name__ == "__main__":
    main()

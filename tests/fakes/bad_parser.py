"""A child that breaks the rules, in the way its kind of file system says. `python -m …`."""

import socket
import struct
import sys
import time

from store.disks.parsers import wire

ANSWERS = {
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
        if kind == "mute":
            time.sleep(60)
        if kind == "reader":
            for _ in range(10_000):
                link.sendall(wire.ANSWER.pack(wire.WANT, 12) + wire.WANT_BLOCKS.pack(0, 4096))
                link.recv(struct.calcsize("<BI") + 4096, socket.MSG_WAITALL)
        link.sendall(ANSWERS[kind])


if __name__ == "__main__":
    main()

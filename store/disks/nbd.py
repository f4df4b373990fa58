"""The server's side of the NBD protocol, as values: what to answer to what a client says.

Fixed newstyle handshake, simple replies.

Source: NetworkBlockDevice/nbd doc/proto.md.
"""

from struct import Struct
from typing import NamedTuple

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
REPLY_MAGIC = 0x67446698

GREETING = Struct(">QQH")
OPTION = Struct(">QII")
OPTION_REPLY = Struct(">QIII")
REQUEST = Struct(">IHHQQI")
REPLY = Struct(">IIQ")
INFO_EXPORT = Struct(">HQH")
INFO_BLOCK_SIZE = Struct(">HIII")
OLD_EXPORT = Struct(">QH")

FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES = 1, 2
OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_INFO, OPT_GO = 1, 2, 3, 6, 7
REP_ACK, REP_SERVER, REP_INFO = 1, 2, 3
REP_ERR_UNSUP = 2**31 + 1
CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_WRITE_ZEROES = 0, 1, 2, 3, 4, 6
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN = (
    1, 2, 4, 8, 32, 64, 256,
)  # fmt: skip

MAX_OPTION = 64 * 1024
MAX_REQUEST = 32 << 20
PREFERRED = 4096


class Request(NamedTuple):
    """One command of the transmission phase; `offset` and `length` in bytes."""

    kind: int
    cookie: int
    offset: int
    length: int


def greeting() -> bytes:
    """What the server says first."""
    return GREETING.pack(NBDMAGIC, IHAVEOPT, FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)


def option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    """One answer to one option."""
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def export_replies(option: int, size: int, flags: int) -> bytes:
    """The whole answer to INFO and GO."""
    export = INFO_EXPORT.pack(0, size, flags)
    blocks = INFO_BLOCK_SIZE.pack(3, 1, PREFERRED, MAX_REQUEST)
    return (
        option_reply(option, REP_INFO, export)
        + option_reply(option, REP_INFO, blocks)
        + option_reply(option, REP_ACK)
    )


def transmission_flags(*, writable: bool) -> int:
    """What an export can do."""
    if not writable:
        return HAS_FLAGS | READ_ONLY | CAN_MULTI_CONN
    return HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES | CAN_MULTI_CONN


def parse_request(header: bytes) -> Request | None:
    """The request whose 28 bytes `header` is; None if it is none: then the client is mad."""
    magic, _, kind, cookie, offset, length = REQUEST.unpack(header)
    return Request(kind, cookie, offset, length) if magic == REQUEST_MAGIC else None


def reply(cookie: int, error: int = 0) -> bytes:
    """The head of an answer; the data of a READ follow."""
    return REPLY.pack(REPLY_MAGIC, error, cookie)

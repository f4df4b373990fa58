"""The items a pxar archive is made of: types, framing, the rules for names, the name hash.

An archive is a sequence of items without padding or alignment:

    htype u64 | full_size u64 | content (full_size - 16)

Integers are little-endian. Each htype is the SipHash-2-4 of an ASCII sentence, so the values can be
derived again (the tests do).

Source: pxar src/format/mod.rs (spec 9.1, 9.2, 9.8).
"""

from struct import Struct

from siphash24 import siphash24

from store.errors import FormatError

PXAR_FORMAT_VERSION = 0x730F6C75DF16A40D
PXAR_PRELUDE = 0xE309D79D9F7B771B
PXAR_ENTRY = 0xD5956474E588ACEF
PXAR_ENTRY_V1 = 0x11DA850A1C1CCEFF
PXAR_FILENAME = 0x16701121063917B3
PXAR_SYMLINK = 0x27F971E7DBF5DC5F
PXAR_HARDLINK = 0x51269C8422BD7275
PXAR_DEVICE = 0x9FC9E906586D5CE9
PXAR_XATTR = 0x0DAB0229B57DCD03
PXAR_ACL_USER = 0x2CE8540A457D55B8
PXAR_ACL_GROUP = 0x136E3ECEB04C03AB
PXAR_ACL_GROUP_OBJ = 0x10868031E9582876
PXAR_ACL_DEFAULT = 0xBBBB13415A6896F5
PXAR_ACL_DEFAULT_USER = 0xC89357B40532CD1F
PXAR_ACL_DEFAULT_GROUP = 0xF90A8A5816038FFE
PXAR_FCAPS = 0x2DA9DD9DB5F7FB67
PXAR_QUOTA_PROJID = 0xE07540E82F7D1CBB
PXAR_PAYLOAD = 0x28147A1B0B7C1A25
PXAR_PAYLOAD_REF = 0x419D3D6BC4BA977E
PXAR_GOODBYE = 0x2FEC4FA642D5731D
PXAR_GOODBYE_TAIL_MARKER = 0xEF5EED5B753E1555
PXAR_PAYLOAD_START_MARKER = 0x834C68C2194A4ED2
PXAR_PAYLOAD_TAIL_MARKER = 0x6C72B78B984C81B5

HEADER_SIZE = 16
ENTRY_SIZE = 56
ENTRY_V1_SIZE = 48
MAX_NAME_LENGTH = 4096
MAX_TARGET_LENGTH = 4096
MAX_XATTR_NAME = 255
MAX_XATTR_SIZE = 64 * 1024

# Stock readers keep the metadata of one entry in memory whole, and so do we; the format sets no
# limit. Linux lists at most 64 KiB of xattr names per file, which in practice is far below this.
MAX_METADATA_SIZE = 64 * 1024 * 1024

# No stream is longer; with sums of two still within 63 bits, offsets fit what systems take.
MAX_STREAM_SIZE = 1 << 62

HEADER = Struct("<QQ")
ONE_U64 = Struct("<QQQ")
TWO_U64 = Struct("<QQQQ")

PXAR_HASH_KEY = bytes.fromhex("db50b4fb1c3fac83bd9f3679681b4faa")
PAYLOAD_START = HEADER.pack(PXAR_PAYLOAD_START_MARKER, HEADER_SIZE)
PAYLOAD_TAIL = HEADER.pack(PXAR_PAYLOAD_TAIL_MARKER, HEADER_SIZE)

FORBIDDEN_NAMES = frozenset({b"", b".", b".."})


def hash_name(name: bytes) -> int:
    """SipHash-2-4 of a name's bare bytes, as goodbye tables hold it: unsigned, 64 bits."""
    return int(siphash24(name, key=PXAR_HASH_KEY).intdigest()) & 0xFFFF_FFFF_FFFF_FFFF


def name_is_valid(name: bytes) -> bool:
    """Whether a name may stand in an archive: 1 to 4096 bytes, not `.`, `..`; no `/`, no NUL."""
    return not (
        b"/" in name or b"\0" in name or name in FORBIDDEN_NAMES or len(name) > MAX_NAME_LENGTH
    )


def encode_item(htype: int, content: bytes) -> bytes:
    """One item: header and content."""
    return HEADER.pack(htype, HEADER_SIZE + len(content)) + content


def payload_header(size: int) -> bytes:
    """The 16 bytes before a file's content, in the archive (v1) or the payload stream (v2)."""
    return HEADER.pack(PXAR_PAYLOAD, HEADER_SIZE + size)


def item_error(offset: int, htype: int, size: int, expected: str) -> FormatError:
    """A FormatError for an item that must not stand at `offset`."""
    return FormatError(
        f"pxar archive: found item {htype:#018x} of {size} bytes at {offset}, expected {expected}"
    )

"""Data blobs: the envelope of every chunk, manifest, configuration file and log in a datastore."""

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import zstandard
from zlib_ng.zlib_ng import crc32  # 50 GB/s; with zlib's 4, it would be 7 % of decoding a chunk

from store.errors import FormatError, IntegrityError, KeyRequired
from store.format.buffer import Buffer
from store.format.crypt import CIPHER_SLACK, CryptConfig, chunk_digest
from store.names import Digest

UNCOMPRESSED_BLOB_MAGIC_1_0 = bytes.fromhex("42ab3807be8370a1")
COMPRESSED_BLOB_MAGIC_1_0 = bytes.fromhex("31b958426fb6a37f")
ENCRYPTED_BLOB_MAGIC_1_0 = bytes.fromhex("7b6785be222d4cf0")
ENCR_COMPR_BLOB_MAGIC_1_0 = bytes.fromhex("e6591bbf0bbfd80b")

COMPRESSED_MAGICS = frozenset({COMPRESSED_BLOB_MAGIC_1_0, ENCR_COMPR_BLOB_MAGIC_1_0})
ENCRYPTED_MAGICS = frozenset({ENCRYPTED_BLOB_MAGIC_1_0, ENCR_COMPR_BLOB_MAGIC_1_0})
PLAIN_MAGICS = frozenset({UNCOMPRESSED_BLOB_MAGIC_1_0, COMPRESSED_BLOB_MAGIC_1_0})

HEADER = struct.Struct("<8sI")
ENCRYPTED_HEADER = struct.Struct("<8sI16s16s")

MAX_BLOB_SIZE = 128 * 1024 * 1024
MAX_CHUNK_SIZE = 16 * 1024 * 1024

COMPRESSION_LEVEL = 1
# A zstd block is at least 4 bytes and unpacks to at most 128 KiB.
MOST_PLAIN_PER_BYTE = 32 * 1024
SMALLEST_BITE = 64
ROOMS_KEPT = 4
# A chunk has 128 of them, unless its writer flushed often.
MOST_BLOCKS = 1024


class _Tools(threading.local):
    """One thread's zstd contexts, which must not be shared."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


class _Rooms:
    """Scratch room for decrypted bytes. Thread-safe: list operations are atomic.

    Some is kept because page faults in fresh memory can cost more than decrypting into it; not one
    for each thread, because there are many that wait for a network.
    """

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    @contextmanager
    def room(self, size: int) -> Iterator[bytearray]:
        """Lend `size` bytes or more; no huge one is kept."""
        try:
            room = self._free.pop()
        except IndexError:
            room = bytearray(size)
        if len(room) < size:
            room = bytearray(size)
        yield room
        if len(self._free) < ROOMS_KEPT and len(room) <= MAX_CHUNK_SIZE + CIPHER_SLACK:
            self._free.append(room)


_tools = _Tools()
_rooms = _Rooms()


def encode_blob(
    plain: Buffer, key: CryptConfig | None = None, *, iv: bytes | None = None, compress: bool = True
) -> bytes:
    """Return one whole blob. Arguments and errors as `encode_blob_parts`."""
    return b"".join(encode_blob_parts(plain, key, iv=iv, compress=compress))


def encode_blob_parts(
    plain: Buffer, key: CryptConfig | None = None, *, iv: bytes | None = None, compress: bool = True
) -> tuple[bytes, Buffer]:
    """Encode one blob as its header and its body, to be written one after the other without a copy.

    The compressed form is kept if it is not longer than the plain one, as PBS 4 does; PBS 3 wants
    it shorter. (PBS 4 may also give up a few bytes earlier: it lends zstd no more room than the
    plain form has. Readers take either.) Compression comes before encryption. Safe in any number
    of threads; all but the header runs without the GIL.

    Args:
        plain: at most MAX_BLOB_SIZE (128 MiB) bytes. It may be returned as the body, so it must
            not change.
        key: encrypt with it, or None for a plain blob.
        iv: 16 random bytes, needed with a key, never used twice with it.
        compress: try zstd level 1.

    Returns:
        The header (12 or 44 bytes; layout at `decode_blob`) and the body.

    Raises:
        FormatError: `plain` is larger than a blob may be.
    Source: proxmox-backup pbs-datastore/src/data_blob.rs (spec section 2).
    """
    if len(plain) > MAX_BLOB_SIZE:
        raise FormatError(f"blob of {len(plain)} bytes: at most {MAX_BLOB_SIZE} are allowed")
    body = _tools.compressor.compress(memoryview(plain)) if compress else None
    compressed = body is not None and len(body) <= len(plain)
    content = body if body is not None and compressed else plain
    if key is None:
        magic = COMPRESSED_BLOB_MAGIC_1_0 if compressed else UNCOMPRESSED_BLOB_MAGIC_1_0
        return HEADER.pack(magic, crc32(content)), content
    if iv is None:
        raise ValueError("encryption needs an IV")
    tag, sealed = key.encrypt(iv, content)
    magic = ENCR_COMPR_BLOB_MAGIC_1_0 if compressed else ENCRYPTED_BLOB_MAGIC_1_0
    return ENCRYPTED_HEADER.pack(magic, crc32(sealed), iv, tag), sealed


def decode_blob(
    raw: Buffer, key: CryptConfig | None = None, *, max_size: int = MAX_BLOB_SIZE
) -> bytes:
    """Return the plaintext of one data blob.

    magic 8 | crc32 4 | payload                       plain or zstd
    magic 8 | crc32 4 | iv 16 | tag 16 | payload      AES-256-GCM, same two kinds

    Integers are little-endian. The CRC covers the payload alone: it finds rot, not tampering.
    zstd payloads may lack a content size (PBS 3 wrote such) and may be several frames.

    Args:
        raw: one whole blob, at least 12 bytes (44 if encrypted).
        key: needed if the magic says encrypted, else not used.
        max_size: the most that may come out; never much more than this is allocated.

    Returns:
        At most `max_size` bytes.

    Raises:
        FormatError: unknown magic, shorter than its header, no valid zstd data, or too large
            once unpacked.
        IntegrityError: CRC or tag mismatch.
        KeyRequired: encrypted, and no key given.
    Source: proxmox-backup pbs-datastore/src/{file_formats,data_blob}.rs (spec section 2).
    """
    plain = _decode(raw, key, max_size, None)
    assert isinstance(plain, bytes)
    return plain


def _decode(
    raw: Buffer, key: CryptConfig | None, max_size: int, target: memoryview | None
) -> bytes | memoryview:
    """`decode_blob`, into `target` if it is just what fits in there, before CIPHER_SLACK bytes."""
    magic, payload = _checked_payload(raw)
    compressed = magic in COMPRESSED_MAGICS
    fitting = None if target is None else target[:-CIPHER_SLACK]
    if magic not in ENCRYPTED_MAGICS:
        return _unpack(payload, max_size, fitting, compressed=compressed)
    if key is None:
        raise KeyRequired("the blob is encrypted, and no key was given")
    _, _, iv, tag = ENCRYPTED_HEADER.unpack_from(raw)
    if target is not None and not compressed and len(payload) + CIPHER_SLACK == len(target):
        return key.decrypt_into(iv, tag, payload, target)
    with _rooms.room(len(payload) + CIPHER_SLACK) as room:
        payload = key.decrypt_into(iv, tag, payload, room)
        return _unpack(payload, max_size, fitting, compressed=compressed)


def _unpack(
    payload: memoryview, max_size: int, target: memoryview | None, *, compressed: bool
) -> bytes | memoryview:
    if compressed:
        if target is not None and _decompress_into(payload, target):
            return target
        return _decompress(payload, max_size)
    if len(payload) > max_size:
        raise FormatError(f"blob holds {len(payload)} bytes, more than the {max_size} allowed")
    if target is not None and len(payload) == len(target):
        target[:] = payload
        return target
    return bytes(payload)


def is_encrypted(raw: Buffer) -> bool:
    """Say whether a blob is encrypted, from its first 8 bytes. Raises FormatError: no blob."""
    magic = bytes(memoryview(raw)[:8])
    if magic in PLAIN_MAGICS:
        return False
    if magic in ENCRYPTED_MAGICS:
        return True
    raise FormatError(f"not a data blob: it starts with {magic.hex() or 'nothing'}")


def check_blob(raw: Buffer) -> None:
    """Check what needs no key: magic, header and CRC. Raises FormatError, IntegrityError."""
    _checked_payload(raw)


def decode_chunk(
    raw: Buffer,
    key: CryptConfig | None,
    digest: Digest,
    size: int,
    *,
    encrypted: bool,
    target: memoryview | None = None,
) -> bytes | memoryview:
    """Return the plaintext of one chunk, fully verified.

    Args:
        raw: the whole chunk file.
        key: the snapshot's key; needed if `encrypted`.
        digest: the name the index has for it.
        size: the length the index gives it, in bytes.
        encrypted: whether the manifest says its archive is. A plain chunk in an encrypted archive
            may be an attack.
        target: `size` + CIPHER_SLACK bytes to put the plaintext in, where that saves fresh memory.
            They may also be left alone, and after an error hold anything.

    Returns:
        The plaintext: read-only in `target`, or bytes of their own.

    Raises:
        FormatError, KeyRequired: as `decode_blob`; also a `size` beyond MAX_CHUNK_SIZE (16 MiB).
        IntegrityError: CRC, tag, encryption state, size or digest is not what it should be.
    Source: proxmox-backup pbs-client/src/remote_chunk_reader.rs (spec section 2.6).
    """
    if size > MAX_CHUNK_SIZE:
        raise FormatError(f"chunk of {size} bytes: at most {MAX_CHUNK_SIZE} are allowed")
    if is_encrypted(raw) != encrypted:
        found, expected = ("plain", "encrypted") if encrypted else ("encrypted", "plain")
        raise IntegrityError(f"the chunk is {found}, its archive is {expected}")
    plain = _decode(raw, key, MAX_CHUNK_SIZE, target)
    if len(plain) != size:
        raise IntegrityError(f"the chunk holds {len(plain)} bytes, the index says {size}")
    found_digest = chunk_digest(plain, key if encrypted else None)
    if found_digest != digest:
        raise IntegrityError(f"the chunk's content has the digest {found_digest}")
    return plain.toreadonly() if isinstance(plain, memoryview) else plain


def _checked_payload(raw: Buffer) -> tuple[bytes, memoryview]:
    """Return magic and payload of a blob whose magic, length and CRC are good."""
    view = memoryview(raw)
    header = ENCRYPTED_HEADER if is_encrypted(view) else HEADER
    if len(view) < header.size:
        raise FormatError(f"blob of {len(view)} bytes: shorter than its header ({header.size})")
    magic, expected = HEADER.unpack_from(view)
    payload = view[header.size :]
    found = crc32(payload)
    if found != expected:
        raise IntegrityError(f"CRC mismatch: found {found:08x}, expected {expected:08x}")
    return magic, payload


def _decompress(payload: memoryview, max_size: int) -> bytes:
    """Unpack zstd data, in one call if it is one frame of known size. Raises FormatError.

    python-zstandard 0.25 ignores data behind a frame of no or unknown size, so it is not asked.
    """
    try:
        size = zstandard.frame_content_size(payload)
        if size > max_size:
            raise FormatError(f"blob unpacks to {size} bytes, more than the {max_size} allowed")
        if size > 0:
            return _tools.decompressor.decompress(payload, allow_extra_data=False)
    except zstandard.ZstdError:
        pass  # more than one frame, or damage: the long way tells which
    return _decompress_frames(payload, max_size)


def _decompress_into(payload: memoryview, target: memoryview) -> bool:
    """Unpack zstd data if it is one frame that fills `target`; False where it is not, or bad."""
    try:
        if zstandard.frame_content_size(payload) != len(target) or _frame_size(payload) != len(
            payload
        ):
            return False
        with _tools.decompressor.stream_reader(payload) as frame:
            return bool(frame.readinto(target) == len(target))
    except zstandard.ZstdError:
        return False  # the long way tells what is wrong


def _frame_size(payload: memoryview) -> int:
    """How long the first frame is, by the sizes of its blocks.

    More than there is if it is cut short, or has absurdly many blocks.

    Source: RFC 8878, 3.1.1. A block has a header of 3 bytes: last 1 bit, type 2 bits, size 21 bits.
    """
    position = zstandard.frame_header_size(payload)
    for _ in range(MOST_BLOCKS):
        block = int.from_bytes(payload[position : position + 3], "little")
        is_one_byte_repeated = block & 6 == 2
        position += 3 + (1 if is_one_byte_repeated else block >> 3)
        if block & 1:
            has_checksum = zstandard.get_frame_parameters(payload).has_checksum
            return position + (4 if has_checksum else 0)
    return len(payload) + 1


def _decompress_frames(payload: memoryview, max_size: int) -> bytes:
    """Unpack any zstd frames, in bites so small that a bomb is found early. Raises FormatError."""
    pieces: list[bytes] = []
    position, room = 0, max_size
    frame = _tools.decompressor.decompressobj()
    try:
        while position < len(payload):
            if frame.eof:
                frame = _tools.decompressor.decompressobj()
            bite = payload[position : position + max(SMALLEST_BITE, room // MOST_PLAIN_PER_BYTE)]
            pieces.append(frame.decompress(bite))
            position += len(bite) - len(frame.unused_data)
            room -= len(pieces[-1])
            if room < 0:
                raise FormatError(f"blob unpacks to more than the {max_size} bytes allowed")
    except zstandard.ZstdError as error:
        raise FormatError(f"bad zstd data: {error}") from error
    if not frame.eof:
        raise FormatError("bad zstd data: cut short")
    return b"".join(pieces)

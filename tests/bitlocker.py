"""BitLocker volumes, made of plain ones: nothing on Linux makes them.

    boot sector | volume, encrypted in place | metadata (three copies of 64 KiB) | first 8 KiB

The metadata is a list of datums: a volume master key (VMK) for each way to open it, encrypted with
that, and the volume's key, encrypted with the VMK.

Source: libyal/libbde documentation/BitLocker Drive Encryption (BDE) format.asciidoc; cryptsetup
lib/bitlk/bitlk.c.
"""

import hashlib
import struct
from binascii import crc32
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from pathlib import Path
from uuid import UUID

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESCCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, ECB, XTS

SECTOR, HEAD, AREA = 512, 8192, 64 << 10
_SIGNATURE = b"-FVE-FS-"
_MARK = UUID("4967d63b-2e29-4ad8-8399-f6a339e3d001").bytes_le
_BOOT_MARK_AT, _TO_GO_MARK_AT = 160, 424
_ROUNDS = 1 << 20
_TIME = 132_000_000_000_000_000
_ENCRYPTED = 4
# What a datum is for, and what it is.
_PROPERTY, _MASTER_KEY, _VOLUME_KEY, _STARTUP, _DESCRIPTION, _MOVED = 0, 2, 3, 6, 7, 15
_KEY, _TEXT, _STRETCH, _USE, _CCM, _MASTER, _EXTERNAL, _PLACE = 1, 2, 3, 4, 5, 8, 9, 15
_CLEAR, _BY_FILE, _BY_RECOVERY, _BY_PASSWORD = 0, 0x200, 0x800, 0x2000
_STRETCHED, _CCM_KEY, _EXTERN_KEY, _VMK = 0x1000, 0x2001, 0x2002, 0x2003


class Method(IntEnum):
    """How the volume is encrypted."""

    CBC_128, CBC_256, XTS_128, XTS_256 = range(0x8002, 0x8006)

    @property
    def key_size(self) -> int:
        """Bytes."""
        return {"CBC_128": 16, "CBC_256": 32, "XTS_128": 32, "XTS_256": 64}[self.name]


@dataclass
class BitLocker:
    """The keys of a volume, and the ways to open it: those that are given, and `startup_key()`.

    recovery: eight groups of six digits, each a multiple of 11.
    suspended: its protection is; whoever has the disk can read it.
    to_go: as Windows makes it on a FAT, with a boot sector that old systems take for a FAT's.
    """

    method: Method
    password: str = ""
    recovery: str = ""
    suspended: bool = False
    to_go: bool = False
    master_key: bytes = bytes(range(32))
    startup: bytes = bytes(range(100, 132))
    volume_key: bytes = field(init=False)
    _nonces: int = 0

    def __post_init__(self) -> None:
        self.volume_key = hashlib.sha512(b"volume" + self.method.name.encode()).digest()
        self.volume_key = self.volume_key[: self.method.key_size]

    def startup_key(self) -> bytes:
        """The content of a .BEK file that opens it."""
        key = _datum(_PROPERTY, _KEY, struct.pack("<HH", _EXTERN_KEY, 0) + self.startup)
        name = _datum(_PROPERTY, _TEXT, "ExternalKey\0".encode("utf-16-le"))
        said = _datum(_STARTUP, _EXTERNAL, _ident(_BY_FILE) + struct.pack("<Q", _TIME) + name + key)
        return _dataset(said, _ident(_BY_FILE), 0)

    def encrypt(self, plain: Path, image: Path) -> None:
        """Needs three stretches of zeros of 64 KiB in `plain`, and one of 8: nothing else may be
        there, or it would be lost."""
        data = bytearray(plain.read_bytes())
        *areas, moved = _free_places(data)
        cipher = _sectors(self.method, self.volume_key)
        head = bytes(data[:HEAD])
        for at in range(0, len(data), SECTOR):
            data[at : at + SECTOR] = cipher(at, bytes(data[at : at + SECTOR]))
        for at in range(0, HEAD, SECTOR):
            place = moved + at
            data[place : place + SECTOR] = cipher(place, head[at : at + SECTOR])
        data[:HEAD] = self._boot_sector(head, areas).ljust(HEAD, b"\0")
        metadata = self._metadata(len(data), areas, moved)
        for area in areas:
            data[area : area + AREA] = metadata.ljust(AREA, b"\0")
        image.write_bytes(data)

    def _boot_sector(self, plain: bytes, areas: list[int]) -> bytes:
        sector = bytearray(plain[:SECTOR]) if self.to_go else bytearray(SECTOR)
        sector[:13] = b"\xeb\x58\x90" + (b"MSWIN4.1" if self.to_go else _SIGNATURE) + b"\0\2"
        sector[13] = 8
        sector[510:] = b"\x55\xaa"
        at = _TO_GO_MARK_AT if self.to_go else _BOOT_MARK_AT
        struct.pack_into("<16sQQQ", sector, at, _MARK, *areas)
        return bytes(sector)

    def _metadata(self, size: int, areas: list[int], moved: int) -> bytes:
        datums = b"".join(self._master_keys())
        datums += self._boxed(self.master_key, self.method, self.volume_key, _VOLUME_KEY)
        datums += _datum(_DESCRIPTION, _TEXT, "PC C: 01/01/2026\0".encode("utf-16-le"))
        datums += _datum(_MOVED, _PLACE, struct.pack("<QQ", moved, HEAD))
        dataset = _dataset(datums, _ident(1), self.method)
        length = 64 + len(dataset)
        padding = bytes(-length % 16)
        head = struct.pack(
            "<8sHHHHQIIQQQQ", _SIGNATURE, (length + len(padding)) >> 4, 2, _ENCRYPTED, _ENCRYPTED,
            size, 0, HEAD // SECTOR, *areas, moved,
        )  # fmt: skip
        block = head + dataset + padding
        digest = hashlib.sha256(block).digest()
        proof = self._boxed(self.master_key, 0x2005, digest, 4)
        return block + struct.pack("<HHI", 8 + len(proof), 2, crc32(block)) + proof

    def _master_keys(self) -> Iterator[bytes]:
        if self.suspended:
            yield self._master(_CLEAR, self.startup, _given(_EXTERN_KEY, self.startup))
        if self.password:
            key = hashlib.sha256(hashlib.sha256(self.password.encode("utf-16-le")).digest())
            yield self._stretched(_BY_PASSWORD, key.digest())
        if self.recovery:
            numbers = [int(group) // 11 for group in self.recovery.split("-")]
            key = hashlib.sha256(struct.pack("<8H", *numbers))
            yield self._stretched(_BY_RECOVERY, key.digest())
        use = _datum(_PROPERTY, _USE, struct.pack("<HH", _EXTERN_KEY, 0))
        yield self._master(_BY_FILE, self.startup, use)

    def _stretched(self, way: int, key: bytes) -> bytes:
        salt = hashlib.md5(way.to_bytes(2, "big"), usedforsecurity=False).digest()
        key = _stretched(key, salt)
        inner = self._boxed(self.master_key, _CCM_KEY, key)
        stretch = struct.pack("<HH", _STRETCHED, 0) + salt + inner
        return self._master(way, key, _datum(_PROPERTY, _STRETCH, stretch))

    def _master(self, way: int, key: bytes, how: bytes) -> bytes:
        head = _ident(way) + struct.pack("<QHH", _TIME, 0, way)
        boxed = self._boxed(key, _VMK, self.master_key)
        return _datum(_MASTER_KEY, _MASTER, head + how + boxed)

    def _boxed(self, key: bytes, kind: int, content: bytes, role: int = _PROPERTY) -> bytes:
        """A key encrypted with another."""
        self._nonces += 1
        nonce = struct.pack("<QI", _TIME, self._nonces)
        sealed = AESCCM(key, 16).encrypt(nonce, _given(kind, content), None)
        return _datum(role, _CCM, nonce + sealed[-16:] + sealed[:-16])


def _ident(number: int) -> bytes:
    return UUID(int=0xB17 << 64 | number).bytes_le


def _given(kind: int, content: bytes) -> bytes:
    return _datum(_PROPERTY, _KEY, struct.pack("<HH", kind, 0) + content)


def _datum(role: int, kind: int, content: bytes) -> bytes:
    return struct.pack("<HHHH", 8 + len(content), role, kind, 1) + content


def _dataset(datums: bytes, ident: bytes, method: int) -> bytes:
    size = 48 + len(datums)
    return struct.pack("<IIII16sIHHQ", size, 1, 48, size, ident, 99, method, 0, _TIME) + datums


@cache
def _stretched(key: bytes, salt: bytes) -> bytes:
    """A million rounds, as Windows does."""
    last = bytes(32)
    for count in range(_ROUNDS):
        last = hashlib.sha256(last + key + salt + count.to_bytes(8, "little")).digest()
    return last


def _sectors(method: Method, key: bytes) -> Callable[[int, bytes], bytes]:
    """What encrypts a sector that lies at some place."""
    aes = AES(key)

    def by_xts(place: int, data: bytes) -> bytes:
        return _once(Cipher(aes, XTS((place // SECTOR).to_bytes(16, "little"))), data)

    def by_cbc(place: int, data: bytes) -> bytes:
        start = _once(Cipher(aes, ECB()), place.to_bytes(16, "little"))
        return _once(Cipher(aes, CBC(start)), data)

    return by_xts if method >= Method.XTS_128 else by_cbc


def _once(cipher: Cipher[XTS | ECB | CBC], data: bytes) -> bytes:
    encryptor = cipher.encryptor()
    return encryptor.update(data) + encryptor.finalize()


def _free_places(data: bytearray) -> list[int]:
    """Four places, apart from each other, with 64 KiB of zeros."""
    zeros, found, at = bytes(AREA), [], AREA
    while len(found) < 4:
        if data[at : at + AREA] == zeros:
            found.append(at)
            at += 8 * AREA
        at += AREA
    return found

"""What a guest has encrypted: LUKS and BitLocker, by dissect.fve. One file: the plaintext.

Tried are, of each key given: as a passphrase, as a BitLocker recovery password, and as the content
of a key file. A BitLocker volume whose protection is suspended opens without any.

Source of the order of trials: cryptsetup(8), manage-bde.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from Crypto.Cipher import AES
from dissect.fve.bde import BDE
from dissect.fve.crypto import argon2
from dissect.fve.crypto._pycryptodome import EBOIV, CbcMode, XtsMode
from dissect.fve.crypto.base import Plain, Plain64
from dissect.fve.luks import LUKS

from store.disks.parsers.blocks import BlockFile, CachedBlocks
from store.disks.parsers.cbc import Cbc
from store.disks.parsers.files import BadFile, Inode, NoKey, Run
from store.disks.parsers.xts import Xts

# Both load code and start threads at their first use, which in the sandbox is too late.
for _mode in (AES.MODE_ECB, AES.MODE_CBC):
    AES.new(bytes(16), _mode).encrypt(bytes(16))
AES.new(bytes(16), AES.MODE_CCM, nonce=bytes(12)).encrypt(bytes(16))
if argon2.HAS_ARGON2:
    argon2.hash_secret_raw(b"warm", bytes(16), 1, 32, 1, 16, "argon2id")

ROOT = 1
FILE_MODE = 0o100400
NO_KEY = "no key given opens it"


class _Stream(Protocol):
    """Decrypts as it is read."""

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def read(self, size: int, /) -> bytes: ...

    def tell(self) -> int: ...


class Plaintext:
    """A FileSystem of one file, its root, which is what is inside."""

    def __init__(self, stream: _Stream, size: int) -> None:
        self._stream, self._size = stream, size

    def root(self) -> int:
        return ROOT

    def inode(self, number: int) -> Inode:
        return Inode(ROOT, FILE_MODE, size=self._size)

    def names(self, number: int) -> Iterator[tuple[bytes, int]]:
        raise BadFile("no directory")

    def runs(self, number: int) -> list[Run] | None:
        return None

    def read(self, number: int, offset: int, size: int) -> bytes:
        self._stream.seek(offset)
        return bytes(self._stream.read(max(0, min(size, self._size - offset))))


def luks(blocks: CachedBlocks, keys: list[bytes]) -> Plaintext:
    """Raises NoKey when none fits."""
    volume = LUKS(BlockFile(blocks))
    problems = []
    for key in keys:
        try:
            volume.unlock_with_passphrase(key)
        except (ValueError, NotImplementedError, RuntimeError) as error:
            problems.append(str(error).replace("\n", " "))
            continue
        stream = _hurried(volume.open())
        return Plaintext(stream, min(_size(stream), blocks.size))
    raise NoKey(f"{NO_KEY} ({'; '.join(problems)})" if problems else NO_KEY)


def bitlocker(blocks: CachedBlocks, keys: list[bytes]) -> Plaintext:
    """Raises NoKey when none fits."""
    volume = BDE(BlockFile(blocks))
    if not volume.unlocked:
        for attempt in _attempts(volume, keys):
            with suppress(ValueError, TypeError, EOFError, NotImplementedError):
                attempt()
                break
        else:
            raise NoKey(NO_KEY)
    stream = _hurried(volume.open())
    return Plaintext(stream, min(_size(stream), blocks.size))


def _attempts(volume: BDE, keys: list[bytes]) -> Iterator[Callable[[], object]]:
    """What costs little first: a passphrase takes a second."""
    if volume.has_clear_key():
        yield volume.unlock_with_clear_key
    texts = [text for text in map(_text, keys) if text is not None]
    if volume.has_bek():
        yield from (partial(volume.unlock_with_bek, io.BytesIO(key)) for key in keys)
    if volume.has_recovery_password():
        yield from (partial(volume.unlock_with_recovery_password, text) for text in texts)
    if volume.has_passphrase():
        yield from (partial(volume.unlock_with_passphrase, text) for text in texts)


def _text(key: bytes) -> str | None:
    """A key that may have been typed."""
    try:
        return key.decode()
    except UnicodeDecodeError:
        return None


def _hurried(stream: Any) -> Any:  # noqa: ANN401 - dissect's
    """The same stream with a quicker cipher, where it is a usual one."""
    cipher = getattr(stream, "cipher", None)
    if isinstance(cipher, XtsMode) and type(cipher.iv_mode) in (Plain, Plain64):
        bits = 32 if type(cipher.iv_mode) is Plain else 64
        stream.cipher = Xts(cipher.key, cipher.sector_size, cipher.iv_sector_size, bits)
    if isinstance(cipher, CbcMode) and type(cipher.iv_mode) is EBOIV:
        stream.cipher = Cbc(cipher.key[: cipher.key_size_bytes], cipher.sector_size)
    return stream


def _size(stream: _Stream) -> int:
    known = getattr(stream, "size", None)
    return int(known) if known is not None else int(stream.seek(0, io.SEEK_END))

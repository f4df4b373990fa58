"""The files of a chunk cache: one directory, nothing in it but ours.

    CACHEDIR.TAG                          backup programs leave the directory out
    index.sqlite, index.sqlite-journal    see store.backends.cache.database
    tmp/<64 hex>.<6 hex>                  files being written; left by who was killed
    <16 hex>/<1 hex>/<64 hex>             datastore, first digit of the digest, encoded chunk

A key is 40 bytes: the datastore's 8, then the digest. Every method may raise OSError, and may be
called from any thread and process: a file appears and goes as a whole.
"""

import errno
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from stat import S_ISREG

from store.backends.local.reading import open_existing
from store.backends.local.writing import write_all
from store.errors import FormatError, InvalidName, PermissionDenied
from store.format.blob import ENCRYPTED_HEADER, MAX_CHUNK_SIZE

INDEX = "index.sqlite"
JOURNAL = f"{INDEX}-journal"
TEMPORARY = "tmp"
TAG = "CACHEDIR.TAG"
TAG_TEXT = b"""Signature: 8a477f597d28d172789f06886806bc55
# Chunks of Vaultway datastores, as they are stored. May be deleted at any time.
"""
OURS = re.compile(rf"[0-9a-f]{{16}}|{TEMPORARY}|{re.escape(TAG)}|{re.escape(INDEX)}(-journal)?")
HARMLESS = "lost+found"
TEMPORARY_NAME = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{6}")
CHUNK_NAME = re.compile(r"[0-9a-f]{64}")
DATASTORE_NAME = re.compile(r"[0-9a-f]{16}")

DATASTORE_SIZE = 8
DIRECTORIES = 16
MAX_SIZE = MAX_CHUNK_SIZE + ENCRYPTED_HEADER.size
BLOCK = 4096
ENTRY = 128  # bytes of a file's name in its directory
LEFT_BEHIND_S = 600.0  # longer than writing 16 MiB takes anywhere
RESERVE_PERCENT = 5
MAX_RESERVE = 2 << 30


class CacheFiles:
    """The directory of a chunk cache."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self.index = f"{self.root}/{INDEX}"

    def claim(self) -> None:
        """Make the directory ours: mode 0700, tag, index file; remove what killed writers left.

        Raises:
            InvalidName: it holds something that is not ours, or is no directory.
            PermissionDenied: it belongs to somebody else, who could plant symlinks in it.
            OSError.
        """
        try:
            os.makedirs(self.root, 0o700, exist_ok=True)
        except FileExistsError as error:
            what = f"cache directory {self.root}: not a directory"
            raise InvalidName(f"{what}; give an empty or a new directory") from error
        status = os.stat(self.root)
        if status.st_uid != os.geteuid():
            raise PermissionDenied(f"{self.root}: belongs to another user")
        names = os.listdir(self.root)
        foreign = sorted(name for name in names if not (OURS.fullmatch(name) or name == HARMLESS))
        if foreign:
            raise InvalidName(
                f"cache directory {self.root}: not empty (it holds {foreign[0]!r}); "
                "give an empty or a new directory"
            )
        if status.st_mode & 0o777 != 0o700:
            os.chmod(self.root, 0o700)
        with suppress(FileExistsError):
            os.mkdir(f"{self.root}/{TEMPORARY}", 0o700)
        for path, text in ((f"{self.root}/{TAG}", TAG_TEXT), (self.index, b"")):
            with suppress(FileExistsError):
                _write_new(path, text)
        self._sweep()

    def _sweep(self) -> None:
        """Remove the temporary files of writers that were killed."""
        with os.scandir(f"{self.root}/{TEMPORARY}") as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    age_s = time.time() - entry.stat(follow_symlinks=False).st_mtime
                    if TEMPORARY_NAME.fullmatch(entry.name) and age_s > LEFT_BEHIND_S:
                        os.unlink(entry.path)

    def forget_index(self) -> None:
        """Remove a damaged index."""
        for name in (INDEX, JOURNAL):
            with suppress(FileNotFoundError):
                os.unlink(f"{self.root}/{name}")

    def path(self, key: bytes) -> str:
        text = key.hex()
        datastore, digest = text[: 2 * DATASTORE_SIZE], text[2 * DATASTORE_SIZE :]
        return f"{self.root}/{datastore}/{digest[0]}/{digest}"

    def read(self, key: bytes) -> bytes | None:
        """A chunk's whole file, unchecked; None when there is none.

        Raises FormatError for what no cached chunk is: a directory, a symlink, a huge file.
        """
        path = self.path(key)
        try:
            descriptor = open_existing(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):  # a symlink, a socket
                raise FormatError("not a regular file") from error
            raise
        try:
            status = os.fstat(descriptor)
            if not S_ISREG(status.st_mode) or status.st_size > MAX_SIZE:
                raise FormatError("not a regular file of a chunk's size")
            return os.read(descriptor, status.st_size)
        finally:
            os.close(descriptor)

    @contextmanager
    def staged(self, key: bytes, raw: bytes) -> Iterator[str]:
        """A temporary file with a chunk, to be placed before the end of the `with`."""
        name = f"{key[DATASTORE_SIZE:].hex()}.{secrets.token_hex(3)}"
        path = f"{self.root}/{TEMPORARY}/{name}"
        try:
            _write_new(path, raw)
        except FileNotFoundError:  # somebody deleted the directory
            self.claim()
            _write_new(path, raw)
        try:
            yield path
        finally:
            with suppress(FileNotFoundError):  # placed
                os.unlink(path)

    def place(self, staged: str, key: bytes) -> None:
        """Give a temporary file its final name."""
        path = self.path(key)
        try:
            os.rename(staged, path)
        except FileNotFoundError:
            self._make_directory(os.path.dirname(path))
            os.rename(staged, path)

    def _make_directory(self, path: str) -> None:
        for directory in (os.path.dirname(path), path):  # makedirs gives the last its mode alone
            with suppress(FileExistsError):
                os.mkdir(directory, 0o700)

    def remove(self, key: bytes) -> bool:
        """Remove a chunk's file; False when there is none."""
        try:
            os.unlink(self.path(key))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def size(self, key: bytes) -> int | None:
        """Bytes of a chunk's file; None when there is none."""
        try:
            return os.lstat(self.path(key)).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def datastores(self) -> list[bytes]:
        """Those that have a directory here."""
        names = (name for name in os.listdir(self.root) if DATASTORE_NAME.fullmatch(name))
        return [bytes.fromhex(name) for name in names]

    def chunks(self, datastore: bytes, digit: int) -> Iterator[tuple[bytes, int]]:
        """Key and size of a datastore's chunks whose digests start with `digit` (0 to 15)."""
        with suppress(FileNotFoundError), os.scandir(self._directory(datastore, digit)) as entries:
            for entry in entries:
                if CHUNK_NAME.fullmatch(entry.name):
                    with suppress(FileNotFoundError):
                        size = entry.stat(follow_symlinks=False).st_size
                        yield datastore + bytes.fromhex(entry.name), size

    def _directory(self, datastore: bytes, digit: int) -> str:
        return f"{self.root}/{datastore.hex()}/{digit:x}"

    def overhead(self) -> int:
        """Bytes of disk that the index and the directories take."""
        directories = 2 + len(self.datastores()) * (1 + DIRECTORIES)
        total = (directories + 1) * BLOCK  # and the tag
        for name in (INDEX, JOURNAL):
            with suppress(FileNotFoundError):
                total += os.stat(f"{self.root}/{name}").st_blocks * 512
        return total

    def spare(self) -> int:
        """Bytes the disk has free beyond what is left to others; negative when short of that."""
        status = os.statvfs(self.root)
        reserve = min(status.f_blocks * status.f_frsize * RESERVE_PERCENT // 100, MAX_RESERVE)
        return status.f_bavail * status.f_frsize - reserve


def cost(size: int) -> int:
    """Bytes of disk that a chunk of `size` bytes takes, with its place in the directory."""
    return -(-size // BLOCK) * BLOCK + ENTRY


def _write_new(path: str, data: bytes) -> None:
    """Make a file, mode 0600; none is left when that fails. Raises OSError (EEXIST)."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, (data,))
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(descriptor)

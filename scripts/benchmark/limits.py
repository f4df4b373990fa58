"""The machine's own limit: the bare library calls in forked loops that share nothing, one per CPU.

usage: python -m scripts.benchmark.limits …
    encode IMAGE FOLDER              hash, compress, encrypt, write every new chunk
    decode KEY STORE INDEX           read, decrypt, decompress, hash every chunk
    decode KEY STORE INDEX TARGET    and write it to TARGET
Prints seconds. An `encode` into a folder that has the chunks is the limit of a second backup: read
and hash.
"""

import base64
import hashlib
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import zstandard
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

CHUNK = 4 << 20
ZERO = bytes(CHUNK)
KEY = bytes(range(32))
MAGIC = b"limits: "
HEADER = 44  # magic 8, crc 4, iv 16, tag 16
FIXED_INDEX_HEADER = 4096
WORKERS = len(os.sched_getaffinity(0))


def in_forks(work: Callable[[int], None]) -> float:
    """Run `work(0)`, `work(1)`, … in one process each; returns the seconds until the last is
    done."""
    began, children = time.perf_counter(), []
    for number in range(WORKERS):
        child = os.fork()
        if not child:
            try:
                work(number)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    failed = [child for child in children if os.waitpid(child, 0)[1]]
    if failed:
        sys.exit("a loop failed")
    return time.perf_counter() - began


def encode(image: str, folder: Path) -> float:
    """What a backup of `image` in 4 MiB chunks can't do without."""
    folder.mkdir(exist_ok=True)
    known = {path.name for path in folder.iterdir()}
    source, size = os.open(image, os.O_RDONLY), Path(image).stat().st_size

    def work(number: int) -> None:
        buffer, compressor = bytearray(CHUNK), zstandard.ZstdCompressor(level=1)
        view = memoryview(buffer)
        for offset in range(number * CHUNK, size, CHUNK * WORKERS):
            count = os.preadv(source, [buffer], offset)
            if count == CHUNK and buffer == ZERO:
                continue
            name = hashlib.sha256(view[:count]).hexdigest()
            if name not in known:
                put(folder / name, compressor.compress(view[:count]))

    return in_forks(work)


def put(path: Path, body: bytes) -> None:
    iv = os.urandom(16)
    encryptor = Cipher(algorithms.AES(KEY), modes.GCM(iv)).encryptor()
    body = encryptor.update(body)
    encryptor.finalize()
    head = MAGIC + zlib.crc32(body).to_bytes(4, "little") + iv + encryptor.tag
    temporary = path.with_suffix(f".{os.getpid()}")
    file = os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600)
    os.writev(file, [head, body])
    os.close(file)
    temporary.rename(path)


def chunk_files(store: Path, index: Path) -> list[Path]:
    """The chunks of a fixed index, in order."""
    digests = index.read_bytes()[FIXED_INDEX_HEADER:].hex()
    names = (digests[start : start + 64] for start in range(0, len(digests), 64))
    return [store / ".chunks" / name[:4] / name for name in names]


def decode(key_file: Path, store: Path, index: Path, target: str | None) -> float:
    """What a restore of an encrypted image can't do without; a chunk that repeats (zeros) counts
    once."""
    key = base64.b64decode(json.loads(key_file.read_text())["data"])
    first: dict[Path, int] = {}
    for number, path in enumerate(chunk_files(store, index)):
        first.setdefault(path, number)
    jobs = list(first.items())
    out = os.open(target, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600) if target else -1

    def work(number: int) -> None:
        for path, position in jobs[number::WORKERS]:
            plain = open_chunk(path.read_bytes(), key)
            hashlib.sha256(plain).digest()
            if target and plain != ZERO[: len(plain)]:
                os.pwrite(out, plain, position * CHUNK)

    return in_forks(work)


def open_chunk(raw: bytes, key: bytes) -> bytes:
    decryptor = Cipher(algorithms.AES(key), modes.GCM(raw[12:28], raw[28:44])).decryptor()
    packed = decryptor.update(memoryview(raw)[HEADER:])
    decryptor.finalize()
    if packed[:4] != zstandard.FRAME_HEADER:
        return packed
    return zstandard.ZstdDecompressor().decompress(packed, max_output_size=16 << 20)


def arguments() -> Iterator[str | None]:
    yield from sys.argv[1:]
    while True:
        yield None


def main() -> None:
    what, first, second, third, fourth = (
        value for value, _ in zip(arguments(), range(5), strict=False)
    )
    assert first
    assert second
    if what == "encode":
        print(encode(first, Path(second)))
    else:
        assert third
        print(decode(Path(first), Path(second), Path(third), fourth))


if __name__ == "__main__":
    main()

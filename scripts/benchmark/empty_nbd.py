"""An nbdkit Python plugin that does nothing: slices of memory. The limit of our export.

What is written is thrown away.

usage: nbdkit python empty_nbd.py size=BYTES
"""

import os

import nbdkit

API_VERSION = 2
CHUNK = 4 << 20
parameters = {"size": "1073741824"}
chunks: list[memoryview] = []


def config(key: str, value: str) -> None:
    parameters[key] = value


def thread_model() -> int:
    return nbdkit.THREAD_MODEL_SERIALIZE_ALL_REQUESTS


def get_ready() -> None:
    chunks.extend(memoryview(os.urandom(CHUNK)) for _ in range(16))


def open(readonly: bool) -> int:  # noqa: A001 - nbdkit's name for it
    return 1


def get_size(handle: int) -> int:
    return int(parameters["size"])


def can_multi_conn(handle: int) -> bool:
    return True


def pread(handle: int, buffer: bytearray, offset: int, flags: int) -> None:
    view, done = memoryview(buffer), 0
    while done < len(view):
        number, start = divmod(offset + done, CHUNK)
        part = chunks[number % len(chunks)][start : start + len(view) - done]
        view[done : done + len(part)] = part
        done += len(part)


def pwrite(handle: int, buffer: bytearray, offset: int, flags: int) -> None:
    pass


def flush(handle: int, flags: int) -> None:
    pass

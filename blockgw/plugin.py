"""nbdkit's callbacks: the script that nbdkit's Python plugin runs. Nothing else imports nbdkit.

Runs in nbdkit's process, in the Python embedded there. Requests of one connection run in a few
threads at once (store/notes/0009-nbd-thread-model.md), connections beside each other. All settings
come through a pipe.
"""

import ctypes
import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NoReturn

import nbdkit

from blockgw.device import Device
from blockgw.server import Server
from blockgw.settings import Settings
from blockgw.thread_state import (
    KeptState,
    keep_thread_state,
    keep_thread_state_to_its_end,
    let_go_of_thread_state,
)
from blockgw.writing.device import WritableDevice
from store.errors import StoreError

API_VERSION = 2
MINIMUM_BLOCK, WRITTEN_BLOCK, MAXIMUM_BLOCK = 1, 4096, 32 << 20
MOST_EXTENTS = 10_000
FAILURES = (StoreError, OSError)
# A guard: no thread of ours runs Python for long; one that does must not stop the others for 5 ms.
SWITCH_INTERVAL_S = 0.0005
PR_SET_PDEATHSIG = 1
FUA = nbdkit.FLAG_FUA
HOLE = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO


class State:
    """The plugin's variables: nbdkit calls functions, not methods."""

    settings_fd: int | None = None
    settings: Settings
    server: Server


thread = KeptState()


# What NBD has no number for, nbdkit would make EINVAL: a client would look for its own mistake.
NBD_NUMBERS = {errno.EACCES: errno.EPERM, errno.EBUSY: errno.EIO}


def fail(error: StoreError | OSError) -> NoReturn:
    """Give the client the error's number, and the log its one line (`format_exception`)."""
    number = error.errno or errno.EIO
    nbdkit.set_error(NBD_NUMBERS.get(number, number))
    raise error


def format_exception(*arguments: Any, **options: Any) -> list[str]:  # noqa: ANN401 - whatever traceback's takes
    """The traceback module's function for nbdkit, which logs every exception through it.

    Ours say all in one line; a traceback for each failed read would bury the rest.
    """
    error = next((argument for argument in arguments if isinstance(argument, BaseException)), None)
    if isinstance(error, FAILURES):
        return [str(error)]
    return _format_exception(*arguments, **options)


_format_exception: Callable[..., list[str]] = traceback.format_exception


def config(key: str, value: str) -> None:
    """`config_fd=N` is the only parameter: the descriptor to read the settings from."""
    if key != "config_fd":
        raise ValueError(f"unknown parameter {key!r}")
    State.settings_fd = int(value)


def thread_model() -> int:
    """Parallel: a read that waits for a chunk holds up no other. `--threads` keeps them few.

    With one thread, that is the connection's own: `open`, all requests and `close` run in it. With
    more they serve the requests, and have ended before `close`.
    """
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def get_ready() -> None:
    """Read the settings. Starts no threads and opens nothing: nbdkit may fork afterwards."""
    configure_logging()
    die_with_parent()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    traceback.format_exception = format_exception
    if State.settings_fd is None:
        raise ValueError("no config_fd=N: this script is for `vaultway export`")
    with os.fdopen(State.settings_fd, "rb") as pipe:
        State.settings = Settings.decode(pipe.read())


def after_fork() -> None:
    """Open the datastore, before anything is served; connections and threads may begin now."""
    try:
        State.server = Server(State.settings)
    except StoreError as error:
        fail(error)


def configure_logging() -> None:
    """To stderr, which the launcher passes on, in the form of the program's own lines."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.addLevelName(logging.WARNING, "warning")
    logging.addLevelName(logging.ERROR, "error")
    logging.logThreads = False  # to name a thread of nbdkit's is to remember it for ever


def die_with_parent() -> None:
    """Be killed when the launcher dies.

    For --exit-with-parent nbdkit gets SIGTERM, and then waits for its clients to leave.
    """
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        logging.warning("nbdkit may outlive vaultway: prctl failed")


def cleanup() -> None:
    """No more requests come: end the read-ahead threads before Python goes, give locks back."""
    try:
        State.server.close()
    except StoreError as error:
        logging.error("%s", error)  # noqa: TRY400 - no traceback for users


def list_exports(_readonly: int, _is_tls: int) -> Iterator[str | tuple[str, str]]:
    """All images, for `nbdinfo --list`."""
    try:
        return iter(State.server.served.names())
    except StoreError as error:
        fail(error)


def default_export(_readonly: int, _is_tls: int) -> str:
    """The name that stands for the empty one."""
    try:
        return State.server.served.default()
    except StoreError as error:
        fail(error)


def open(_readonly: int) -> Device:  # noqa: A001 - nbdkit's name
    """A client comes for the export it named."""
    try:
        device = State.server.served.open(nbdkit.export_name())
    except StoreError as error:
        fail(error)
    if State.server.threads == 1:
        keep_thread_state(thread)
    return device


def close(device: Device) -> None:
    """The client is gone. Not called when nbdkit ends."""
    device.close()
    if State.server.threads == 1:
        let_go_of_thread_state(thread)


def get_size(device: Device) -> int:
    """In bytes."""
    return device.size


def block_size(device: Device) -> tuple[int, int, int]:
    """Any byte; a chunk at a time is best to read, a page to write; what nbdkit allows."""
    best = WRITTEN_BLOCK if isinstance(device, WritableDevice) else device.chunk_size
    return MINIMUM_BLOCK, min(best, MAXIMUM_BLOCK), MAXIMUM_BLOCK


def can_write(device: Device) -> bool:
    """A head is written to; a snapshot does not change."""
    return isinstance(device, WritableDevice)


can_flush = can_trim = can_zero = can_fast_zero = can_write


def can_fua(device: Device) -> int:
    """A write that is durable when it is answered costs what a flush does."""
    return int(nbdkit.FUA_NATIVE if can_write(device) else nbdkit.FUA_NONE)


def can_multi_conn(_: Device) -> bool:
    """What one connection wrote all see at once, and a flush is of all that was written."""
    return True


def can_cache(_: Device) -> int:
    """NBD_CMD_CACHE starts the decoding."""
    return int(nbdkit.CACHE_NATIVE)


def is_rotational(_: Device) -> bool:
    """A guest need not sort its requests."""
    return False


def can_extents(_: Device) -> bool:
    """The index knows the holes."""
    return True


def pread(device: Device, buffer: memoryview, offset: int, _flags: int) -> None:
    """Fill `buffer` from `offset`."""
    if not thread.kept:
        keep_thread_state_to_its_end(thread)
    try:
        device.read_into(buffer, offset)
    except FAILURES as error:
        fail(error)


def pwrite(device: WritableDevice, data: memoryview, offset: int, flags: int) -> None:
    """Write `data`, which is nbdkit's and gone after the call."""
    if not thread.kept:
        keep_thread_state_to_its_end(thread)
    try:
        device.write(offset, data, fua=bool(flags & FUA))
    except FAILURES as error:
        fail(error)


def zero(device: WritableDevice, count: int, offset: int, flags: int) -> None:
    """Zeros are a hole, whatever the client prefers (FLAG_MAY_TRIM): they read the same."""
    try:
        device.zero(offset, count, fua=bool(flags & FUA))
    except FAILURES as error:
        fail(error)


def trim(device: WritableDevice, count: int, offset: int, flags: int) -> None:
    """Nobody needs the range any more."""
    try:
        device.trim(offset, count, fua=bool(flags & FUA))
    except FAILURES as error:
        fail(error)


def flush(device: WritableDevice, _flags: int) -> None:
    """Of all connections."""
    try:
        device.flush()
    except FAILURES as error:
        fail(error)


def extents(device: Device, count: int, offset: int, flags: int) -> Iterator[tuple[int, int, int]]:
    """`(offset, length, type)`: zeros are holes. A client asks again for what is left out."""
    one = bool(flags & nbdkit.FLAG_REQ_ONE)
    try:
        found = list(islice(device.extents(offset, count, one=one), MOST_EXTENTS))
    except FAILURES as error:
        fail(error)  # from an iterator, nbdkit would leave the exception to its next call
    return iter([(start, length, HOLE if is_zero else 0) for start, length, is_zero in found])


def cache(device: Device, count: int, offset: int, _flags: int) -> None:
    """Decode in the background."""
    device.prefetch(offset, count)

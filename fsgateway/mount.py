"""One mount from start to end: opened, served on trio's event loop, unmounted."""

import gc
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyfuse3
import trio

from fsgateway import extra_handlers
from fsgateway.attributes import Presentation
from fsgateway.bridge import DISK_THREADS, THREADS, Bridge
from fsgateway.notify import notify
from fsgateway.operations import VaultwayOperations
from fsgateway.options import MountOptions
from fsgateway.readahead import Loader
from fsgateway.reading import Reader
from fsgateway.seeking import Seeker
from fsgateway.tree import NamespaceNode
from fsgateway.view import View
from fsgateway.views import show_views
from fsgateway.waiting import Activity, short_waits
from fsgateway.writing.mounting import add_handlers, open_heads
from fsgateway.writing.open_heads import OpenHeads
from fsgateway.writing.operations import WritableOperations
from store.datastore.chunk_cache import reads_at_once
from store.datastore.datastore import Datastore
from store.disks.disk import DiskOptions, Disks
from store.errors import BackendError
from store.format.crypt import CryptConfig
from store.names import Namespace

log = logging.getLogger(__name__)

ROOT = Namespace()
READ_AHEAD_KIB = 1024
# How long a thread that only computes may keep the event loop waiting.
SWITCH_INTERVAL_S = 0.0005
# How long readers may go on after a signal: then the storage is told to hurry, then they are left.
HURRY_S = 3.0
LEAVE_S = 10.0
# Listings make entries by the thousand and keep most of them: no garbage to look for.
YOUNG_OBJECTS = 50_000
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class MountRequest:
    """What to mount where.

    Attributes:
        repository: as the user wrote it; what `df` and /proc/mounts show.
        mountpoint: an existing directory, resolved.
        key: to read encrypted snapshots with.
        namespace: the part to show, with all below it.
        disk_keys: what disks encrypted by their guests may be opened with.
    """

    repository: str
    mountpoint: Path
    options: MountOptions
    key: CryptConfig | None = None
    namespace: Namespace = ROOT
    disk_keys: tuple[bytes, ...] = ()


def serve(request: MountRequest, datastore: Datastore, on_ready: Callable[[], None]) -> None:
    """Mount, call `on_ready` when the mount answers, and serve it until its end.

    SIGTERM, SIGINT and SIGHUP unmount; files that are open then become unreadable. Ten seconds
    later, or at the second signal, nobody waits for the datastore any more.

    Raises:
        NotFound: no such namespace.
        BackendError: it could not be mounted. Nothing is left mounted.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)
    datastore.list_namespaces(request.namespace, 0)
    backend = datastore.backend
    activity = Activity()
    inside_disks = Bridge(DISK_THREADS, activity)
    bridge = Bridge(reads_at_once(backend, THREADS, backend.parallelism), activity, inside_disks)
    ahead = reads_at_once(backend, os.cpu_count() or 1, backend.parallelism)
    loader = Loader(bridge, ahead, datastore.memory_bytes, backend)
    disks = Disks(DiskOptions(request.disk_keys, use_machine=request.options.micro_vm))
    view = View(datastore, request.key, datastore.memory_bytes, disks=disks)
    reader = Reader(bridge, loader, caches_images=request.options.kernel_cache)
    seeker = Seeker(reader.files, bridge, loader)
    show_views(view, versions=request.options.versions, shadow_copy=request.options.shadow_copy)
    heads = open_heads(request.options, view) if request.options.writable else None
    operations = _operations(request, view, bridge, reader, heads)
    extra_handlers.set_handler("lseek", seeker.lseek)
    if isinstance(operations, WritableOperations):
        add_handlers(operations, seeker)
    with _libfuse_errors(request.mountpoint):
        options = request.options.for_fuse(request.repository)
        pyfuse3.init(operations, str(request.mountpoint), options)
    try:
        with short_waits(activity):
            trio.run(_run, request.mountpoint, loader, view, on_ready, operations, activity)
    finally:
        loader.stop()
        pyfuse3.close(unmount=True)
        if heads is not None:
            heads.close()
        view.close()
    log.info("unmounted %s", request.mountpoint)


def _operations(
    request: MountRequest, view: View, bridge: Bridge, reader: Reader, heads: OpenHeads | None
) -> VaultwayOperations:
    options = request.options
    presentation = Presentation(os.geteuid(), os.getegid(), options.uid, options.gid, options.umask)
    root = NamespaceNode(view, (), request.namespace)
    if heads is not None:
        return WritableOperations(
            view, root, presentation, bridge, reader, heads, enforce_acls=options.xattrs
        )
    return VaultwayOperations(
        view, root, presentation, bridge, reader, enforce_acls=options.enforces_permissions
    )


async def _run(
    mountpoint: Path,
    loader: Loader,
    view: View,
    on_ready: Callable[[], None],
    operations: VaultwayOperations,
    activity: Activity,
) -> None:
    async with trio.open_nursery() as nursery:
        loader.start_soon = activity.starting(nursery.start_soon)
        nursery.start_soon(_stop_on_signals, mountpoint, view)
        nursery.start_soon(_announce, mountpoint, on_ready)
        # Who waits for an answer of ours is waited for, as pyfuse3 does for its own.
        async with trio.open_nursery() as answering:
            start_soon = activity.starting(answering.start_soon)
            operations.entries.start_soon = start_soon
            if isinstance(operations, WritableOperations):
                operations.start_soon = start_soon
                operations.begin()
                nursery.start_soon(operations.seal_idle_heads)
            await pyfuse3.main()
            loader.start_soon = operations.entries.start_soon = None
            if isinstance(operations, WritableOperations):
                operations.start_soon = None
        await loader.close()
        nursery.cancel_scope.cancel()


async def _announce(mountpoint: Path, on_ready: Callable[[], None]) -> None:
    """Wait for the first answer through the kernel: only then it is up."""
    device = await trio.to_thread.run_sync(_device, mountpoint, abandon_on_cancel=True)
    _widen_read_ahead(device)
    log.info("mounted at %s", mountpoint)
    on_ready()


def _device(mountpoint: Path) -> int:
    """The number of what is mounted, asked for by another process.

    A thread of ours would wait for our own answer, and a kill -9 at that moment could not end us.
    """
    words = ["stat", "--format=%d", str(mountpoint)]
    return int(subprocess.run(words, check=True, capture_output=True).stdout)


def _widen_read_ahead(device: int) -> None:
    """Let the kernel ask for 1 MiB at a time: twice as fast. Only root may; others go without."""
    path = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    with suppress(OSError):
        path.write_text(str(READ_AHEAD_KIB))


async def _stop_on_signals(mountpoint: Path, view: View) -> None:
    with trio.open_signal_receiver(*SIGNALS) as signals:
        number = await anext(signals)
        log.info("%s: unmounting %s", signal.Signals(number).name, mountpoint)
        notify("STOPPING=1", f"STATUS=Unmounting {mountpoint}")
        pyfuse3.terminate()
        # What follows is for readers that still wait for the storage: without any we are cancelled.
        with trio.move_on_after(LEAVE_S) as waiting:
            with trio.move_on_after(HURRY_S) as patient:
                await anext(signals)
            if patient.cancelled_caught:
                view.datastore.backend.interrupt()
                async with trio.open_nursery() as nursery:
                    # A guest that starts, a journal that is replayed: they are ended, with what
                    # they have in the usual place for temporary files.
                    nursery.start_soon(_close, view)
                    await anext(signals)
                    nursery.cancel_scope.cancel()
        log.warning("leaving %s without waiting for what is still being read", mountpoint)
        pyfuse3.close(unmount=True)
        os._exit(0 if waiting.cancelled_caught else 1)


async def _close(view: View) -> None:
    await trio.to_thread.run_sync(view.close, abandon_on_cancel=True)


@contextmanager
def _libfuse_errors(mountpoint: Path) -> Iterator[None]:
    """Turn what libfuse and fusermount3 print into the message of a BackendError."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 2)
        try:
            yield
        except RuntimeError as error:
            printed.seek(0)
            text = "; ".join(printed.read().decode(errors="replace").split("\n")).strip("; ")
            raise BackendError(f"cannot mount at {mountpoint}: {text or error}") from error
        finally:
            os.dup2(saved, 2)
            os.close(saved)

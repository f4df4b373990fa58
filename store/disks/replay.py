"""Replays the journal of ext3, ext4 and NTFS: by e2fsck or ntfsrecover, on an overlay of the part.

    part ← Overlay ← Door (NBD) ← nbdfuse (a file) ← e2fsck, ntfsrecover

The file is taken out of the tree as soon as it is open, so that nothing stays mounted whatever
becomes of us. The disk itself is never written. What takes apart what a guest wrote is confined to
that file; nbdfuse only passes bytes on, and must have /dev/fuse.
"""

import logging
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from store.disks.confined import Confinement, confined, environment
from store.disks.door import Door
from store.disks.journals import unclean
from store.disks.overlay import MEMORY, Overlay
from store.disks.parsers.sandbox import NOBODY
from store.disks.replayers import REPLAYERS, Replayer
from store.errors import IntegrityError
from store.format.buffer import ReadAt

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

START_S = 20.0
# A journal is at most 1 GiB, and its blocks may have to come from far away.
REPLAY_S = 600.0
PROGRAM_MEMORY = 1 << 30
# So often somebody looks whether it is to be broken off.
LOOK_S = 0.2
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"


class NotReplayed(IntegrityError):
    """A journal that cannot be replayed; trying again would not help."""


def why_not(kind: str) -> str:
    """What is missing here to replay a journal of this kind with; "" when nothing is."""
    replayer = REPLAYERS.get(kind)
    if replayer is None:
        return f"nothing but the micro-VM replays {kind}"
    for program, package in (
        (replayer.program, replayer.package),
        ("nbdfuse", "libnbd-bin, or nbdfuse where that is a package"),
        ("fusermount3", "fuse3"),
    ):
        if shutil.which(program, path=PATH) is None:
            return f"{program} is missing: install {package}"
    if not Path("/dev/fuse").exists():
        return "/dev/fuse is missing: load the kernel module fuse"
    return "" if os.access("/dev/fuse", os.R_OK | os.W_OK) else "/dev/fuse is closed to this user"


def replayed(
    blocks: ReadAt, kind: str, name: str, memory: int = MEMORY, ended: Event | None = None
) -> Overlay:
    """The part with its journal replayed; close it when done.

    Args:
        blocks: the part as it was copied.
        kind: of its file system, one of REPLAYERS.
        name: of the part, for messages.
        memory: what the overlay may keep of what is written.
        ended: when it is set the replay is broken off.

    Raises NotReplayed, IntegrityError (it cannot be begun here now, or is broken off), and what
    `blocks` raises.
    """
    ended = ended or Event()
    guarded = _Guarded(blocks)
    overlay = Overlay(guarded, memory)
    started = time.monotonic()
    try:
        REPLAYERS[kind].prepare(overlay)
        with _as_file(overlay) as file:
            _run(REPLAYERS[kind], file, name, ended)
        still = unclean(kind, overlay.read)
        if still:
            raise NotReplayed(f"{name}: after its journal was replayed {still}")
    except BaseException as error:
        overlay.close()
        if guarded.error is not None:
            raise guarded.error from error
        raise
    log.info("%s: journal replayed in %.1f s", name, time.monotonic() - started)
    return overlay


class _Guarded:
    """Remembers what went wrong below: programs only hear that the disk cannot be read."""

    def __init__(self, blocks: ReadAt) -> None:
        self._blocks, self.size = blocks, blocks.size
        self.error: Exception | None = None

    def read(self, offset: int, size: int) -> bytes:
        try:
            return self._blocks.read(offset, size)
        except Exception as error:
            self.error = error
            raise


@contextmanager
def _as_file(overlay: Overlay) -> "Iterator[int]":
    """The overlay as an open file, which a program can inherit."""
    folder = Path(tempfile.mkdtemp(prefix="vaultway-replay-"))
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.chown(folder, NOBODY, NOBODY)
        options = ["-o", "allow_other"] if is_root else []
        with Door(overlay) as door:
            process = _start(["nbdfuse", *options, str(folder / "disk"), door.uri])
            try:
                _wait_for(folder / "disk", process)
                with (folder / "disk").open("r+b", buffering=0) as file:
                    _detach(folder)
                    yield file.fileno()
            finally:
                _end(folder, process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(command: list[str], inherited: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={"PATH": PATH, "LANG": "C", "LC_ALL": "C", **environment()},
        start_new_session=True, pass_fds=inherited,
    )  # fmt: skip


def _wait_for(file: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the file is mounted."""
    deadline = time.monotonic() + START_S
    while not file.parent.is_mount():
        if process.poll() is not None:
            said = process.communicate()[0].decode(errors="replace").strip().splitlines()
            raise IntegrityError(f"nbdfuse does not start: {said[-1] if said else 'no reason'}")
        if time.monotonic() > deadline:
            raise IntegrityError(f"nbdfuse does not start within {START_S:.0f} s")
        time.sleep(0.01)


def _detach(folder: Path) -> None:
    with suppress(OSError, subprocess.TimeoutExpired):
        _start(["fusermount3", "-u", "-z", str(folder)]).communicate(timeout=START_S)


def _end(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """It ends by itself, for nobody has its file any more."""
    if folder.is_mount():  # it was late
        _detach(folder)
    try:
        process.communicate(timeout=START_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _run(replayer: Replayer, file: int, name: str, ended: Event) -> None:
    program = replayer.program
    path = shutil.which(program, path=PATH)
    if path is None:
        raise IntegrityError(f"{name}: {program} is gone")
    confinement = Confinement((file,), PROGRAM_MEMORY, int(REPLAY_S))
    command = [path, *replayer.arguments, f"/proc/self/fd/{file}"]
    process = _start(confined(command, confinement), (file,))
    said = _outcome(process, name, program, ended)
    log.debug("%s: %s says: %s", name, program, said)
    complaint = replayer.complaint(process.returncode, said)
    if complaint:
        raise NotReplayed(
            f"{name}: {program} cannot replay the journal ({process.returncode}): {complaint}"
        )


def _outcome(process: subprocess.Popen[bytes], name: str, program: str, ended: Event) -> str:
    """What it said when it had done its work. Raises IntegrityError: it was killed before."""
    deadline = time.monotonic() + REPLAY_S
    while not ended.is_set() and time.monotonic() < deadline:
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=LOOK_S)[0].decode(errors="replace")
    process.kill()
    process.communicate()
    if ended.is_set():
        raise IntegrityError(f"{name}: closed")
    raise NotReplayed(f"{name}: {program} takes more than {REPLAY_S:.0f} s")

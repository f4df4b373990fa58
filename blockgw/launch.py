"""Run nbdkit as our child: check everything first, start it, watch it, never leave it behind."""

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Protocol

from blockgw.address import Address, answers
from blockgw.export import Exports, Selection
from blockgw.settings import Settings
from blockgw.writing.preparing import PreparedHead
from blockgw.writing.selection import HeadSelection
from store.datastore.archives import ChunkCache, SnapshotReader
from store.datastore.datastore import Datastore
from store.errors import StoreError
from store.format.crypt import CryptConfig
from store.repositories.repository import open_datastore

log = logging.getLogger(__name__)

# Before it, a client that hangs up while several threads answer it makes nbdkit abort.
FIRST_PARALLEL_VERSION = (1, 34)
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 1.0  # nbdkit goes on for clients that stay; nothing is lost by cutting them off
REPEAT_S = 60.0  # the same line of nbdkit's log is shown once in this time
REMEMBERED_LINES = 256
HOW_TO_INSTALL = "apt install nbdkit nbdkit-plugin-python"
# "nbdkit: python.3: error: /…/blockgw/plugin.py: pread: error: MESSAGE"
NBDKIT_PREFIX = re.compile(
    r"nbdkit: (?:python[.\[]\d+\]?: )?(?:error: )?(?:\S*plugin\.py: \w+: error: )?"
)
CLIENT_LEFT = re.compile(r"error: .*(Connection reset by peer|Broken pipe|Bad file descriptor)")
# What the plugin needs of them comes through the pipe.
SECRETS = re.compile(
    r"PBS_(\w+_)?PASSWORD(_FD|_FILE|_CMD)?|VAULTWAY_(SECRET_KEY|SESSION_TOKEN)"
    r"|AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN|SECURITY_TOKEN)"
)


@dataclass(frozen=True)
class ExportRequest:
    """One run of `vaultway export`."""

    settings: Settings
    address: Address


class Prepared(Protocol):
    """What is served, checked before anything is."""

    name: str
    """The default export."""

    def end(self) -> str | None:
        """Before nbdkit is stopped. Returns the snapshot that was made of what was written.

        Raises StoreError when that failed.
        """

    def throw_away(self) -> None:
        """After nbdkit has ended."""


def serve(request: ExportRequest, say: Callable[[str], None]) -> None:
    """Serve until interrupted (by SIGINT, or SIGTERM as cli.main makes it), then clean up.

    Call it from the main thread: nbdkit dies with the thread that started it, even by kill -9.

    Args:
        request: what and where.
        say: called when the server answers, with the URI of the default image; and at the end, if
            what was written became a snapshot, with its name.
    Raises:
        StoreError: a reason not to start, before anything is served; or nbdkit ended by itself.
    """
    if check_nbdkit() < FIRST_PARALLEL_VERSION:
        request = replace(request, settings=replace(request.settings, threads=1))
    request.address.claim()
    prepared = prepare(request.settings)
    try:
        _serve(request, prepared, say)
    finally:
        prepared.throw_away()


def _serve(request: ExportRequest, prepared: Prepared, say: Callable[[str], None]) -> None:
    child = Child(request)
    sealed = None
    try:
        child.wait_until_it_answers()
        say(request.address.uri(prepared.name))
        child.wait()
    except KeyboardInterrupt:
        log.debug("interrupted: stopping nbdkit")
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # stopping takes a moment; let it finish
        try:
            sealed = prepared.end()
        finally:
            child.stop()
            request.address.release()
    if sealed is not None:
        say(f"sealed {sealed}")


def prepare(settings: Settings) -> Prepared:
    """Check what is to be served: here its errors have an exit code.

    Raises NotFound (no image), KeyRequired, WrongKey, FormatError, IntegrityError, BackendError;
    for a head see PreparedHead.
    """
    key = CryptConfig(settings.key) if settings.key else None
    with open_datastore(settings.repository) as datastore:
        if isinstance(settings.selection, HeadSelection):
            return PreparedHead(settings.selection, datastore, key)
        return PreparedSnapshots(settings.selection, datastore, key)


class PreparedSnapshots:
    """Images of snapshots; nothing is left to do at the end."""

    def __init__(self, selection: Selection, datastore: Datastore, key: CryptConfig | None) -> None:
        """Open the default image, if it is of a single snapshot.

        Of a whole datastore some may need other keys, or be damaged; the others are served.
        """
        name = Exports(datastore, selection).default()
        self.name = str(name)
        if selection.snapshot is not None:
            reader = SnapshotReader(datastore, name.namespace, name.snapshot, key, ChunkCache(0))
            reader.open_image(name.archive)

    def end(self) -> None:
        """Nothing was written."""

    def throw_away(self) -> None:
        """Nothing was made."""


def check_nbdkit() -> tuple[int, int]:
    """The version of nbdkit, major and minor.

    Raises StoreError unless it is here, and its Python plugin with the same Python as ours.
    """
    if shutil.which("nbdkit") is None:
        raise StoreError(f"nbdkit is not installed: {HOW_TO_INSTALL}")
    done = subprocess.run(
        ["nbdkit", "--dump-plugin", "python"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise StoreError(f"nbdkit has no Python plugin: {HOW_TO_INSTALL}")
    facts = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    embedded = facts.get("python_version", "").split(".")[:2]
    ours = [str(number) for number in sys.version_info[:2]]
    if embedded != ours:
        raise StoreError(
            f"nbdkit embeds Python {'.'.join(embedded)}, vaultway runs on {'.'.join(ours)}: "
            "install vaultway with /usr/bin/python3"
        )
    version = re.match(r"(\d+)\.(\d+)", facts.get("version", ""))
    return (int(version[1]), int(version[2])) if version else (0, 0)


class Child:
    """A running nbdkit."""

    def __init__(self, request: ExportRequest) -> None:
        self._address = request.address
        self._said = Said()
        reader, writer = os.pipe()
        try:
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(request.settings.encode())
            self._process = subprocess.Popen(
                command(request, reader),
                env=environment(),
                pass_fds=(reader,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            raise StoreError(f"nbdkit: {error.strerror}") from error
        finally:
            os.close(reader)
        assert self._process.stderr
        said = self._process.stderr
        self._relay = threading.Thread(target=self._said.relay, args=(said,), daemon=True)
        self._relay.start()

    def wait_until_it_answers(self) -> None:
        """Raises StoreError: it ended, or says nothing for 30 s."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(self._address):
            if self._process.poll() is not None:
                raise self._death("did not start")
            if time.monotonic() > deadline:
                raise StoreError(f"nbdkit does not answer after {START_TIMEOUT_S:.0f} s")
            time.sleep(0.01)

    def wait(self) -> None:
        """Return never; raises StoreError when nbdkit ends."""
        self._process.wait()
        raise self._death("ended")

    def _death(self, how: str) -> StoreError:
        self._relay.join(timeout=1)
        code = self._process.returncode
        status = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        return StoreError(f"nbdkit {how} ({status}): {self._said.last or 'no reason given'}")

    def stop(self) -> None:
        """End it: politely, then not."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._relay.join(timeout=1)


class Said:
    """What nbdkit and the plugin in it write to stderr, passed on without repetitions."""

    def __init__(self) -> None:
        self.last = ""
        self._shown: OrderedDict[str, float] = OrderedDict()

    def relay(self, pipe: IO[bytes]) -> None:
        """Pass on all lines until the pipe ends; for a thread."""
        with pipe:
            for raw in pipe:
                text = raw.decode(errors="replace").rstrip()
                clean = NBDKIT_PREFIX.sub("error: ", text, count=1)
                if CLIENT_LEFT.fullmatch(clean):
                    log.debug("%s", clean)
                    continue
                self.last = clean.removeprefix("error: ")
                if not self._repeated(clean):
                    with suppress(OSError, ValueError):
                        sys.stderr.write(f"{clean}\n")
                        sys.stderr.flush()

    def _repeated(self, line: str) -> bool:
        """Whether the line was shown a short time ago: a guest retries a bad block for ever."""
        now = time.monotonic()
        if now - self._shown.get(line, -REPEAT_S) < REPEAT_S:
            return True
        self._shown[line] = now
        self._shown.move_to_end(line)
        if len(self._shown) > REMEMBERED_LINES:
            self._shown.popitem(last=False)
        return False


def command(request: ExportRequest, settings_fd: int) -> list[str]:
    """The command line: in the foreground, and dying with us."""
    return [
        "nbdkit",
        "--foreground",
        "--exit-with-parent",
        *([] if isinstance(request.settings.selection, HeadSelection) else ["--readonly"]),
        f"--threads={request.settings.threads}",
        *request.address.arguments,
        "python",
        str(Path(__file__).with_name("plugin.py")),
        f"config_fd={settings_fd}",
    ]


def environment() -> dict[str, str]:
    """Ours, without passwords, with a PYTHONPATH for the embedded Python to find what we find.

    It takes the standard library of the first `python3` in PATH for its own: that must be the one
    beside nbdkit, not another build of the same version (pyenv's, say), whose modules do not load.
    """
    kept = {name: value for name, value in os.environ.items() if not SECRETS.fullmatch(name)}
    path = [str(Path(shutil.which("nbdkit") or "").parent), kept.get("PATH", os.defpath)]
    return kept | {
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": os.pathsep.join(python_path()),
    }


def python_path() -> list[str]:
    """Our own import path without the standard library, which the embedded Python has itself.

    What .pth files add (an editable install's project folder) is named, as PYTHONPATH reads none.
    """
    standard = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    standard |= {f"{path}/lib-dynload" for path in standard}
    project = str(Path(__file__).resolve().parent.parent)
    found = (Path(entry) for entry in sys.path)
    entries = [project, *(str(path.absolute()) for path in found if path.is_dir())]
    return [entry for entry in dict.fromkeys(entries) if entry not in standard]

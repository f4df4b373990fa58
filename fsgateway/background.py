"""Going into the background: the parent waits until its child is up, or says why not.

The fork comes before any thread, event loop or FUSE session; nothing of those survives one.
"""

import json
import logging
import logging.handlers
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from store.errors import BackendError, StoreError
from store.native import import_failure

log = logging.getLogger(__name__)

SYSLOG = Path("/dev/log")
READY = b"ready"
LINE = "%(asctime)s %(levelname)s %(message)s"


def log_to(place: str | None) -> None:
    """Send the log of this process to a file; without one to syslog or `state_file`.

    Raises BackendError naming the file.
    """
    handler: logging.Handler
    if place is None and SYSLOG.exists():
        handler = logging.handlers.SysLogHandler(
            str(SYSLOG), logging.handlers.SysLogHandler.LOG_DAEMON
        )
        handler.ident = f"vaultway[{os.getpid()}]: "
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    else:
        path = Path(place) if place is not None else state_file()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handler = logging.handlers.WatchedFileHandler(path)
        except OSError as error:
            raise BackendError(f"log file {path}: {error.strerror}") from error
        handler.setFormatter(logging.Formatter(LINE))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(min(root.level, logging.INFO) or logging.INFO)


def state_file() -> Path:
    """The log where there is no syslog: in $XDG_STATE_HOME, usually ~/.local/state."""
    state = os.environ.get("XDG_STATE_HOME")
    base = Path(state) if state else Path.home() / ".local" / "state"
    return base / "vaultway" / "mount.log"


def start_in_background(work: Callable[[Callable[[], None]], None]) -> None:
    """Run `work(ready)` in a child process and return when it called `ready()`.

    Raises:
        StoreError: what `work` raised before, with its message and exit code; or that the child
            just ended.
    """
    report_from, report_to = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(report_from)
        _be_the_child(work, report_to)
    os.close(report_to)
    try:
        with open(report_from, "rb") as reports:
            report = reports.read()
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        raise
    if report != READY:
        _, status = os.waitpid(child, 0)
        raise _failure(report, os.waitstatus_to_exitcode(status))


def _failure(report: bytes, status: int) -> StoreError:
    if not report:
        return BackendError(f"the mount's process ended while starting (exit code {status})")
    fields = json.loads(report)
    error = StoreError(fields["message"])
    error.exit_code = fields["exit_code"]
    return error


def _be_the_child(work: Callable[[Callable[[], None]], None], report_to: int) -> NoReturn:
    """Never returns: whatever the parent's callers have open or planned is theirs alone."""
    code = 0
    is_ready = False

    def ready() -> None:
        nonlocal is_ready
        is_ready = True
        # Not before: while systemd mounts at the first visit, whoever is not in its process group
        # is a visitor and waits for the mount, so a mounting process of another one for ever.
        os.setsid()
        _let_go_of_the_terminal()
        _report(report_to, READY)

    try:
        work(ready)
    except BaseException as error:
        code = error.exit_code if isinstance(error, StoreError) else 1
        if is_ready:
            log.critical("the mount ended: %s", error, exc_info=not isinstance(error, StoreError))
        else:
            report = {"exit_code": code, "message": _message(error)}
            _report(report_to, json.dumps(report).encode())
    finally:
        logging.shutdown()
        os._exit(code)


def _message(error: BaseException) -> str:
    if isinstance(error, StoreError):
        return str(error)
    if isinstance(error, ImportError):
        return import_failure(error)
    return f"{type(error).__name__}: {error}"


def _report(report_to: int, report: bytes) -> None:
    with suppress(OSError):  # the command was killed while it waited
        os.write(report_to, report)
        os.close(report_to)


def _let_go_of_the_terminal() -> None:
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)

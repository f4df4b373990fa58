"""The program `vaultway`: finds the command, configures logging, turns errors into exit codes."""

import argparse
import contextlib
import io
import logging
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from store.cli.options import HelpFormatter, Parser
from store.cli.output import checked_stdout, close_stream, settle_stderr
from store.errors import Cancelled, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

log = logging.getLogger("store.cli.main")  # also when run with -m

EXIT_OTHER = 1
EXIT_INTERNAL = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 130  # 128 + SIGINT; SIGTERM and SIGHUP end the same way
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
ENTRY_POINTS = "store.commands"
NOUNS = (
    "datastore", "config", "key", "backup", "restore", "snapshot", "catalog", "group", "head",
    "namespace", "microvm",
)  # fmt: skip
PACKAGES = ("store", "fsgateway", "blockgw")
WAKE_S = 0.5

DESCRIPTION = "Open any Proxmox Backup Server datastore: back up, restore, mount, boot from it."
EPILOG = """\
a first round:
  export PBS_REPOSITORY=/srv/vault PBS_ENCRYPTION_PASSWORD=...
  vaultway datastore create /srv/vault
  vaultway key create ~/vault.json
  vaultway backup etc.pxar:/etc --keyfile ~/vault.json
  vaultway snapshot list
  vaultway restore host/$(hostname) etc.pxar /tmp/etc --keyfile ~/vault.json

environment:
  PBS_REPOSITORY            the datastore, instead of --repository
  PBS_NAMESPACE             the namespace, instead of --ns
  VAULTWAY_CONFIG           the configuration file, instead of the usual (config --help)
  PBS_ENCRYPTION_PASSWORD   the key's passphrase; also _FILE, _CMD, _FD with its source
  VAULTWAY_DEBUG            set: log every step, show tracebacks

exit codes:
  0 done            2 wrong usage or name      3 done, but for unreadable files
  10 not found, or there already
  11 not allowed    12 locked by another       13 key or passphrase missing or wrong
  14 bad format     15 damaged data            16 storage failed or full
  17 source or target failed                   70 internal error       130 interrupted

`vaultway COMMAND --help` shows each command's options and an example.
"""


def main(argv: "Sequence[str] | None" = None) -> int:
    """Run one command and return its exit code; argparse itself exits with 2 on wrong usage."""
    open_standard_streams()
    arguments = sys.argv[1:] if argv is None else argv
    debug = bool(os.environ.get("VAULTWAY_DEBUG"))
    try:
        with terminating(last=argv is None):
            args = parse(arguments)
            debug = debug or args.debug
            with configured_logging(debug=debug):
                return run(args, debug=debug)
    except BrokenPipeError:
        return EXIT_BROKEN_PIPE
    except StoreError as error:
        return _fail(str(error), error.exit_code, debug=debug)
    except ImportError as error:
        return _fail_to_import(error, debug=debug)
    except KeyboardInterrupt:  # before or after the command itself
        return _fail("interrupted", EXIT_INTERRUPTED, debug=debug)
    finally:
        settle_stderr()


def open_standard_streams() -> None:
    """Open what we were started without, or the next file opened would take the error messages.

    Results are in UTF-8 wherever we run; names that are not come out as the bytes they are. With
    PYTHONUNBUFFERED, which containers like to set, Python drops what a pipe does not take at once
    (a signal comes while it waits): so stdout gets its buffer back.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - until the end
    if isinstance(getattr(sys.stdout, "buffer", None), io.RawIOBase):
        sys.stdout = os.fdopen(sys.stdout.fileno(), "w", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")


def parse(arguments: "Sequence[str]") -> argparse.Namespace:
    """Parse the command line; --help and --version print and end the program in here.

    For `mount -t fuse.vaultway` and fstab the system calls us without a command.
    """
    if is_called_by_mount(arguments):
        arguments = ("mount", *arguments)
    with checked_stdout():
        try:
            return build_parser(*arguments[:1]).parse_args(arguments)
        except SystemExit:
            sys.stdout.flush()
            raise


def is_called_by_mount(arguments: "Sequence[str]") -> bool:
    """Whether the repository comes first: a place, or a name in the form that mount.fuse has.

    That is REPOSITORY DIRECTORY -o OPTIONS; no other command looks so, whatever the name.
    """
    match arguments:
        case ["mount", *_]:
            return False
        case [_, directory, "-o", _] if directory.startswith("/"):
            return True
        case [repository, *_]:
            return repository.startswith("/") or "://" in repository
    return False


def build_parser(noun: str | None = None) -> argparse.ArgumentParser:
    """Declare the commands: those of `noun` if it is one of ours, else all there are."""
    parser = Parser(
        prog="vaultway",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="print the version and exit")
    subparsers = parser.add_subparsers(dest="noun", metavar="COMMAND", required=True)
    if noun in NOUNS:
        declarations = [own_commands(noun)]
    else:
        declarations = [*map(own_commands, NOUNS), *plugged_in_commands(noun)]
    for add_commands in declarations:
        add_commands(subparsers)
    return parser


def own_commands(noun: str) -> "Callable[[Any], None]":
    """A noun of the store, in the module of its name, which imports heavy parts when it runs."""
    declare: Callable[[Any], None] = import_module(f"store.cli.{noun}").add_commands
    return declare


def plugged_in_commands(wanted: str | None) -> "Iterator[Callable[[Any], None]]":
    """The gateways' commands. One that can't be imported is left out: the others must work.

    Unless it is the one that is wanted: that raises ImportError.

    Looking for them takes as long as all else that a start does.
    """
    from importlib.metadata import entry_points

    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        try:
            yield entry.load()
        except (ImportError, AttributeError) as error:
            if entry.name == wanted and isinstance(error, ImportError):
                raise
            log.debug("command %s is not available: %s", entry.name, error)


def run(args: argparse.Namespace, *, debug: bool) -> int:
    """Call the command's handler and translate what it raises."""
    try:
        code: int = args.handler(args) or 0
        with checked_stdout():
            sys.stdout.flush()
    except BrokenPipeError:
        close_stream(sys.stdout)
        return EXIT_BROKEN_PIPE
    except (KeyboardInterrupt, Cancelled):
        return _fail("interrupted", EXIT_INTERRUPTED, debug=debug)
    except StoreError as error:
        if isinstance(error.__cause__, BrokenPipeError):
            return EXIT_BROKEN_PIPE
        return _fail(str(error), error.exit_code, debug=debug)
    except Exception as error:  # noqa: BLE001 - the border: nobody sees a traceback unasked
        if _is_interruption(error):
            return _fail("interrupted", EXIT_INTERRUPTED, debug=debug)
        if isinstance(error, ImportError):
            return _fail_to_import(error, debug=debug)
        text = f"internal error: {type(error).__name__}: {error} (--debug shows where)"
        return _fail(text, EXIT_INTERNAL, debug=debug)
    return code


@contextlib.contextmanager
def configured_logging(*, debug: bool) -> "Iterator[None]":
    """Send log lines to stderr for a while: from WARNING up or, with `debug`, all of ours."""
    handler = LineHandler()
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
        if debug
        else LineFormatter()
    )
    loggers = [logging.getLogger(name) for name in PACKAGES]
    levels = [logger.level for logger in loggers]
    logging.getLogger().addHandler(handler)
    for logger in loggers:
        logger.setLevel(logging.DEBUG if debug else logging.WARNING)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class LineFormatter(logging.Formatter):
    """`warning: a sentence`."""

    def format(self, record: logging.LogRecord) -> str:
        """Put the level before the message."""
        return f"{record.levelname.lower()}: {super().format(record)}"


class LineHandler(logging.Handler):
    """Writes log lines to stderr without tearing the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        from store.cli.progress_bar import write_line

        write_line(self.format(record))


class ShowVersion(argparse.Action):
    """Print the version; looked up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("vaultway")
        except PackageNotFoundError:
            number = "(not installed)"
        sys.stdout.write(f"vaultway {number}\n")
        parser.exit()


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: ends the command as Ctrl-C does, so that clean-up runs."""


@contextlib.contextmanager
def terminating(*, last: bool = False) -> "Iterator[None]":
    """Turn SIGTERM and SIGHUP into Terminated, except where they are ignored (nohup).

    Afterwards they mean what they did, or, when this is the `last` the process does, nothing: what
    is done has its exit code.
    """
    previous = {}
    with contextlib.suppress(ValueError):  # not the main thread: signals are somebody else's
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, _terminate)
    if last:
        _wake_often()
    try:
        yield
    finally:
        if last:
            signal.setitimer(signal.ITIMER_REAL, 0)
            previous |= dict.fromkeys((*previous, signal.SIGINT), signal.SIG_IGN)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wake_often() -> None:
    """Let no signal wait for longer than a moment, whatever the main thread waits for.

    One that comes just before a call that blocks does not end it: its handler runs when the call
    returns, which an upload to a slow server may do in a minute. The next signal ends it. Children
    inherit no timer.
    """
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, WAKE_S, WAKE_S)


def _is_interruption(error: BaseException | None) -> bool:
    """Whether a signal is behind an error: one that came during an import is wrapped there."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error is not None


def _terminate(number: int, frame: "FrameType | None") -> None:
    for again in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(again, signal.SIG_IGN)  # clean-up has begun: let it end
    raise Terminated(signal.Signals(number).name)


def _fail_to_import(error: ImportError, *, debug: bool) -> int:
    from store.native import import_failure

    return _fail(import_failure(error), EXIT_OTHER, debug=debug)


def _fail(text: str, code: int, *, debug: bool) -> int:
    if debug:
        log.debug("failed", exc_info=True)
    with contextlib.suppress(OSError):  # nobody reads it, or the disk is full
        sys.stderr.write(f"vaultway: {' '.join(text.split())}\n")
        sys.stderr.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())

"""The commands of `catalog shell`, over one tree: an archive, or a disk."""

import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from store.cli.entries import Lines, Problems, long_line, mark, utc_time
from store.cli.output import human_size, say_bytes
from store.cli.progress_bar import make_progress, write_line
from store.cli.shell_terminal import EXIT_INTERRUPTED
from store.cli.shell_words import Word, split_words
from store.datastore.archives import SnapshotReader
from store.errors import Cancelled, InvalidName, NotFound, StoreError
from store.format.pxar.entries import Entry, EntryKind
from store.operations.browse.cat import read_entry
from store.operations.browse.find import find_below
from store.operations.restore.place import restore_tree
from store.operations.restore.request import RestoreOptions
from store.operations.restore.selection import Everything, Picked, Selection, Takes
from store.trees.base import FileTree
from store.trees.expand import expand
from store.trees.matching import Query, size_of
from store.trees.names import quote
from store.trees.paths import Spot, find_path, followed, root_of

DIRECTORY = EntryKind.DIRECTORY


class Command(NamedTuple):
    """One command: what runs it, how it is called, what it does; its flags and options."""

    run: Callable[["Arguments"], None]
    usage: str
    text: str
    flags: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass
class Arguments:
    """The words behind a command, sorted."""

    words: list[Word] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    options: dict[str, list[str]] = field(default_factory=dict)

    def some(self, least: int, most: int, usage: str) -> list[Word]:
        """The words, if there are so many. Raises InvalidName."""
        if not least <= len(self.words) <= most:
            raise InvalidName(f"usage: {usage}")
        return self.words


class Shell:
    """One session: where we are, and what is selected. Its methods print on stdout.

    Attributes:
        ended: `exit` was called.
        selected: paths from the root, without a leading slash.
    """

    def __init__(self, reader: SnapshotReader, tree: FileTree, name: str, start: Spot) -> None:
        """`name` is the archive's, for the prompt; `start` a directory."""
        self._reader, self._tree, self._name = reader, tree, name
        self._here = start if start.entry.kind is DIRECTORY else start.parent
        self.selected: set[bytes] = set()
        self.ended = False

    @property
    def prompt(self) -> str:
        """`root.pxar:/etc > `."""
        return f"{self._name}:{quote(b'/' + self._here.path)} > "

    def run(self, line: str) -> int:
        """Run one line, whatever comes of it; returns its exit code."""
        try:
            self._run(split_words(line))
        except StoreError as error:
            write_line(f"error: {error}")
            return error.exit_code
        except (KeyboardInterrupt, Cancelled) as error:
            if isinstance(error, KeyboardInterrupt) and type(error) is not KeyboardInterrupt:
                raise  # SIGTERM, SIGHUP: the program ends
            write_line("interrupted")
            return EXIT_INTERRUPTED
        return 0

    def paths_that_begin(self, typed: bytes) -> Iterator[tuple[bytes, bool]]:
        """What a path that is being typed could become, and whether that is a directory's."""
        above, slash, beginning = typed.rpartition(b"/")
        start = find_path(self._tree, above or slash, self._here) if slash else self._here
        if start.entry.kind is not DIRECTORY:
            return
        for entry in self._tree.iterate(start.entry):
            if entry.name.startswith(beginning):
                yield mark(above + slash + entry.name, entry), entry.kind is DIRECTORY

    @cached_property
    def commands(self) -> dict[str, Command]:
        """All of them, by name."""
        return {
            "cat": Command(self._cat, "cat PATH…", "print files"),
            "cd": Command(self._cd, "cd [PATH]", "go to a directory; without PATH to the top"),
            "clear-selected": Command(self._clear, "clear-selected", "select nothing"),
            "deselect": Command(self._deselect, "deselect GLOB…", "no longer select these"),
            "exit": Command(self._exit, "exit", "leave the shell; also quit, and Ctrl-D"),
            "find": Command(
                self._find,
                "find GLOB… [-l] [--select]",
                "what matches at any depth below; /GLOB from the top of the archive",
                ("-l", "--select"),
            ),
            "help": Command(self._help, "help [COMMAND]", "explain the commands"),
            "list-selected": Command(self._list_selected, "list-selected", "what is selected"),
            "ls": Command(self._ls, "ls [-l] [-d] [GLOB…]", "list directories", ("-l", "-d")),
            "pwd": Command(self._pwd, "pwd", "where we are"),
            "quit": Command(self._exit, "quit", "leave the shell"),
            "restore": Command(
                self._restore,
                "restore TARGET [--pattern PATTERN]… [--overwrite] [--ignore-ownership]",
                "restore this directory, or what the patterns take of it, into directory TARGET",
                ("--overwrite", "--ignore-ownership"),
                ("--pattern",),
            ),
            "restore-selected": Command(
                self._restore_selected,
                "restore-selected TARGET [--overwrite] [--ignore-ownership]",
                "restore what is selected, with its paths from the top, into directory TARGET",
                ("--overwrite", "--ignore-ownership"),
            ),
            "select": Command(
                self._select, "select GLOB…", "pick files, and directories with all in them"
            ),
            "stat": Command(self._stat, "stat GLOB…", "all that is known of files"),
        }

    def _run(self, words: list[Word]) -> None:
        if not words:
            return
        command = self.commands.get(str(words[0]))
        if command is None:
            raise InvalidName(f"{quote(words[0].text)}: no such command; `help` lists them")
        command.run(_sorted(command, words[1:]))
        sys.stdout.flush()

    def _spots(self, words: Sequence[Word]) -> Iterator[Spot]:
        """What words stand for: globs for what matches, others for one entry each.

        Raises NotFound: one of them for nothing.
        """
        for word in words:
            if not word.is_glob:
                yield find_path(self._tree, word.text, self._here, follow=False)
                continue
            spot = None
            for spot in expand(self._tree, self._here, word.glob):
                yield spot
            if spot is None:
                raise NotFound(f"{quote(word.text)}: nothing matches")

    def _pwd(self, arguments: Arguments) -> None:
        arguments.some(0, 0, "pwd")
        with Lines() as lines:
            lines.write(quote(b"/" + self._here.path))

    def _cd(self, arguments: Arguments) -> None:
        words = arguments.some(0, 1, "cd [PATH]")
        spot = root_of(self._tree)
        if words and words[0].text != b"/":
            spot = find_path(self._tree, words[0].text, self._here)
        if spot.entry.kind is not DIRECTORY:
            raise InvalidName(f"{quote(words[0].text)}: is no directory")
        self._here = spot

    def _ls(self, arguments: Arguments) -> None:
        is_long, whole = "-l" in arguments.flags, "-d" in arguments.flags
        spots = self._spots(arguments.words) if arguments.words else iter([self._here])
        many = len(arguments.words) > 1 or any(word.is_glob for word in arguments.words)
        with Lines() as lines:
            for spot in spots:
                shown = self._shown(spot)
                if whole or shown.entry.kind is not DIRECTORY:
                    self._print(lines, b"/" + spot.path, spot.entry, is_long=is_long)
                    continue
                if many:
                    lines.write(f"{quote(b'/' + spot.path)}:")
                for entry in self._tree.iterate(shown.entry):
                    self._print(lines, entry.name, entry, is_long=is_long)

    def _shown(self, spot: Spot) -> Spot:
        """The directory that a symbolic link leads to, else the entry itself."""
        if spot.entry.kind is not EntryKind.SYMLINK:
            return spot
        try:
            target = find_path(self._tree, spot.entry.name, spot.parent)
        except NotFound:
            return spot
        return target if target.entry.kind is DIRECTORY else spot

    def _print(self, lines: Lines, path: bytes, entry: Entry, *, is_long: bool) -> None:
        marked = mark(path, entry)
        lines.write(long_line(marked, entry, self._tree) if is_long else quote(marked))

    def _find(self, arguments: Arguments) -> None:
        words = arguments.some(1, sys.maxsize, "find GLOB… [-l] [--select]")
        globs = [word.glob.decode("utf-8", "surrogateescape") for word in words]
        problems = Problems()
        found = find_below(self._tree, self._here, Query(paths=globs), problems)
        with Lines() as lines:
            for prefix, entry in found:
                path = prefix + entry.name
                self._print(lines, b"/" + path, entry, is_long="-l" in arguments.flags)
                if "--select" in arguments.flags:
                    self.selected.add(path)

    def _select(self, arguments: Arguments) -> None:
        words = arguments.some(1, sys.maxsize, "select GLOB…")
        before = len(self.selected)
        self.selected.update([spot.path for spot in self._spots(words)])
        self._say(f"{len(self.selected) - before} more selected, {len(self.selected)} in all")

    def _deselect(self, arguments: Arguments) -> None:
        words = arguments.some(1, sys.maxsize, "deselect GLOB…")
        before = len(self.selected)
        for word in words:
            self.selected.difference_update(self._matching(word))
        self._say(f"{before - len(self.selected)} fewer selected, {len(self.selected)} in all")

    def _matching(self, word: Word) -> list[bytes]:
        """Which selected paths a word means; the tree is not asked, it may have links there."""
        glob = word.glob if word.glob.startswith(b"/") else b"%b/%b" % (self._here.path, word.glob)
        query = Query(paths=["/" + glob.strip(b"/").decode("utf-8", "surrogateescape")])
        test = query.test(lambda entry: entry)
        probe = Entry(b"", EntryKind.FILE, 0, 0, b"")
        return [path for path in self.selected if test(path, probe)]

    def _clear(self, arguments: Arguments) -> None:
        arguments.some(0, 0, "clear-selected")
        self.selected.clear()

    def _list_selected(self, arguments: Arguments) -> None:
        arguments.some(0, 0, "list-selected")
        with Lines() as lines:
            for path in sorted(self.selected):
                lines.write(quote(b"/" + path))

    def _restore(self, arguments: Arguments) -> None:
        usage = self.commands["restore"].usage
        target = _target(arguments.some(1, 1, usage)[0])
        patterns = arguments.options.get("--pattern", [])
        selection: Takes = Selection(patterns) if patterns else Everything()
        self._restore_into(target, self._here, selection, arguments)

    def _restore_selected(self, arguments: Arguments) -> None:
        target = _target(arguments.some(1, 1, self.commands["restore-selected"].usage)[0])
        if not self.selected:
            raise NotFound("nothing is selected; `select` or `find --select` picks files")
        if b"" in self.selected:
            selection: Takes = Everything()
        else:
            selection = Picked(self.selected)
        self._restore_into(target, root_of(self._tree), selection, arguments)

    def _restore_into(self, target: str, top: Spot, selection: Takes, arguments: Arguments) -> None:
        result = restore_tree(
            self._reader,
            self._tree,
            top,
            target,
            selection,
            RestoreOptions(
                overwrite="--overwrite" in arguments.flags,
                ignore_ownership="--ignore-ownership" in arguments.flags,
                progress=make_progress(quiet=not sys.stderr.isatty()),
                on_warning=lambda text: write_line(f"warning: {text}"),
            ),
            name=self._name,
        )
        warnings = f", {result.warnings} warnings" if result.warnings else ""
        size = human_size(result.bytes)
        self._say(f"restored {result.entries} entries, {size}{warnings} to {target}")

    def _cat(self, arguments: Arguments) -> None:
        for spot in self._spots(arguments.some(1, sys.maxsize, "cat PATH…")):
            target = find_path(self._tree, b"/" + spot.path)
            for piece in read_entry(self._tree, target.entry, spot.path):
                say_bytes(piece)

    def _stat(self, arguments: Arguments) -> None:
        with Lines() as lines:
            for spot in self._spots(arguments.some(1, sys.maxsize, "stat GLOB…")):
                for line in stat_lines(self._tree, spot):
                    lines.write(line)

    def _help(self, arguments: Arguments) -> None:
        words = arguments.some(0, 1, "help [COMMAND]")
        name = str(words[0]) if words else None
        if name is not None and name not in self.commands:
            raise InvalidName(f"{quote(words[0].text)}: no such command")
        with Lines() as lines:
            for command_name, command in self.commands.items():
                if name in (None, command_name):
                    lines.write(f"{command.usage}\n    {command.text}")

    def _exit(self, arguments: Arguments) -> None:
        arguments.some(0, 0, "exit")
        self.ended = True

    @staticmethod
    def _say(text: str) -> None:
        with Lines() as lines:
            lines.write(text)


def stat_lines(tree: FileTree, spot: Spot) -> Iterator[str]:
    """What is known of an entry, as `stat` prints it. Raises FormatError."""
    entry, facts = spot.entry, followed(tree, spot.entry)
    metadata = facts.metadata
    arrow = f" -> {quote(entry.target)}" if entry.kind is EntryKind.SYMLINK else ""
    kind = entry.kind.name.lower().replace("_", " ")
    yield f"  File: {quote(b'/' + spot.path)}{arrow}"
    yield f"  Size: {size_of(facts)}  Type: {kind}"
    if entry.kind in (EntryKind.CHAR_DEVICE, EntryKind.BLOCK_DEVICE):
        yield f"Device: {entry.device[0]},{entry.device[1]}"
    if entry.kind is EntryKind.HARDLINK:
        yield f" Links: the same file as {quote(b'/' + entry.target)}"
    mode = f"{metadata.mode & 0o7777:04o}/{stat.filemode(metadata.mode)}"
    yield f"Access: ({mode})  Uid: {metadata.uid}  Gid: {metadata.gid}"
    yield f"Modify: {utc_time(metadata.mtime_s)} ({metadata.mtime_s}.{metadata.mtime_ns:09d})"
    for name, value in metadata.xattrs:
        yield f" Xattr: {quote(name)} ({len(value)} bytes)"
    if metadata.acl is not None:
        yield "   ACL: yes"
    if metadata.fcaps is not None:
        yield "  Caps: yes"


def _target(word: Word) -> str:
    """Where to restore to; `~` is a home directory unless it is quoted."""
    return str(word) if word.quoted else os.path.expanduser(str(word))  # noqa: PTH111 - bytes


def _sorted(command: Command, words: list[Word]) -> Arguments:
    """Flags, options and the rest, in any order; after `--` words only. Raises InvalidName."""
    arguments, rest = Arguments(), iter(words)
    for word in rest:
        text = str(word)
        name, equals, value = text.partition("=")
        if word.quoted or not text.startswith("-") or text == "-":
            arguments.words.append(word)
        elif text == "--":
            arguments.words.extend(rest)
        elif text in command.flags:
            arguments.flags.add(text)
        elif name in command.options:
            given = value if equals else next((str(word) for word in rest), None)
            if given is None:
                raise InvalidName(f"{name} needs a value; usage: {command.usage}")
            arguments.options.setdefault(name, []).append(given)
        else:
            raise InvalidName(f"{text}: no such option; usage: {command.usage}")
    return arguments

"""Where the lines of `catalog shell` come from: a terminal, with history and Tab, or a file."""

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from store.cli.shell_words import ends_in_word, shell_word, split_words
from store.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from store.cli.catalog_shell import Shell

EXIT_INTERRUPTED = 130
MOST_CANDIDATES = 5000


def batch(shell: "Shell", lines: "Iterable[str]") -> int:
    """Run all lines; returns the exit code of the first that failed, 0 if none did.

    Ctrl-C ends all of it.
    """
    code = 0
    for line in lines:
        found = shell.run(line)
        code = code or found
        if shell.ended or found == EXIT_INTERRUPTED:
            break
    return code


def terminal(shell: "Shell") -> None:
    """Ask for lines until the shell is left. Nothing of them is kept: names are the backup's."""
    completer = Completer(shell)
    completer.install()
    while not shell.ended:
        try:
            line = input(shell.prompt)
        except EOFError:
            sys.stdout.write("\n")
            return
        except KeyboardInterrupt as error:
            if type(error) is not KeyboardInterrupt:  # SIGTERM, SIGHUP: the program ends
                raise
            sys.stdout.write("^C\n")
            continue
        shell.run(line)


class Completer:
    """What Tab offers: commands at the start of a line, then paths. Whole lines, for readline."""

    def __init__(self, shell: "Shell") -> None:
        self._shell = shell
        self._found: list[str] = []

    def install(self) -> None:
        """Have readline ask us, where there is one."""
        with suppress(ImportError):
            import readline

            readline.set_completer(self.complete)
            readline.set_completer_delims("")  # words are ours to cut: they may be quoted
            readline.set_completion_display_matches_hook(self._show)
            readline.parse_and_bind("tab: complete")
            readline.set_auto_history(True)

    def complete(self, line: str, state: int) -> str | None:
        """The candidate number `state`; readline counts them up."""
        if state == 0:
            try:
                self._found = self.candidates(line)
            except (StoreError, KeyboardInterrupt):
                self._found = []
        return self._found[state] if state < len(self._found) else None

    def candidates(self, line: str) -> list[str]:
        """All lines that `line` could become. Raises StoreError."""
        words = split_words(line, finish=False)
        if not words or (len(words) == 1 and ends_in_word(line)):
            typed = str(words[0]) if words else ""
            return [f"{name} " for name in self._shell.commands if name.startswith(typed)]
        if not ends_in_word(line):
            head, typed_path = line, b""
        else:
            head, typed_path = _without_last_word(line), words[-1].text
        ends = []
        for path, is_directory in self._shell.paths_that_begin(typed_path):
            ends.append(shell_word(path) + ("" if is_directory else " "))
            if len(ends) == MOST_CANDIDATES:
                break
        return [head + end for end in ends]

    def _show(self, _typed: str, matches: "Sequence[str]", _longest: int) -> None:
        """List what is possible, without the line that all of them share."""
        import readline

        names = [match.rstrip(" ").rpartition(" ")[2] for match in matches]
        sys.stdout.write("\n" + "  ".join(names) + "\n")
        sys.stdout.write(self._shell.prompt + readline.get_line_buffer())
        sys.stdout.flush()


def _without_last_word(line: str) -> str:
    """The line up to where its last word begins."""
    count = len(split_words(line, finish=False))
    end = len(line)
    while end and len(split_words(line[:end], finish=False)) == count:
        end -= 1
    return line[:end]

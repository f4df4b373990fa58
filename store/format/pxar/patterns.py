"""Which entries of a tree a backup leaves out: `--exclude` and `.pxarexclude`.

Several patterns form a list, and the last one that matches decides. A pattern is tried against `/`
and the path from the archive's root: an anchored one must match all of it, another one all of it or
any tail after a `/`. `!` before a pattern makes it include; slashes at its end restrict it to
directories.

Source: pathpatterns src/match_list.rs, pbs-client src/pxar/create.rs (spec 9.6).
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import groupby
from operator import attrgetter
from typing import Self

from store.errors import InvalidName
from store.format.pxar.globs import translate

LOST_AND_FOUND = b"lost+found"
_WHITE_SPACE = b" \t\n\f\r"


class Match(Enum):
    """What the last matching pattern says."""

    INCLUDE = "include"
    EXCLUDE = "exclude"


@dataclass(frozen=True, slots=True)
class Pattern:
    """One pattern: `glob` without `!` and trailing slashes, and its translation."""

    glob: bytes
    match: Match
    directories_only: bool
    anchored: bool
    expression: bytes

    @classmethod
    def parse(
        cls, text: bytes, match: Match = Match.EXCLUDE, *, anchored: bool = False
    ) -> "Pattern":
        """Read one pattern; a leading `!` turns `match` round. Raises InvalidName."""
        if text.startswith(b"!"):
            text = text[1:]
            match = Match.EXCLUDE if match is Match.INCLUDE else Match.INCLUDE
        glob = text.rstrip(b"/") or text[:1]
        return cls(glob, match, text.endswith(b"/"), anchored, translate(glob))

    def __bytes__(self) -> bytes:
        """As `.pxarexclude-cli` and the prelude have it."""
        slash = b"/" if self.directories_only and self.glob != b"/" else b""
        return (b"!" if self.match is Match.INCLUDE else b"") + self.glob + slash


def parse_exclude_file(content: bytes, directory: bytes) -> tuple[list[Pattern], list[bytes]]:
    """Read a `.pxarexclude`.

    Args:
        content: of the file. Empty lines and those that start with `#` are skipped.
        directory: the path of its directory from the archive's root, without a leading slash. It
            is put before anchored patterns as it is: glob characters in it act as such.

    Returns:
        The patterns in order, and the lines that are none.
    """
    patterns, bad = [], []
    for raw in content.split(b"\n"):
        line = raw.strip(_WHITE_SPACE)
        if not line or line.startswith(b"#"):
            continue
        try:
            patterns.append(_parse_line(line, directory))
        except InvalidName:
            bad.append(line)
    return patterns, bad


def _parse_line(line: bytes, directory: bytes) -> Pattern:
    match = Match.INCLUDE if line.startswith(b"!") else Match.EXCLUDE
    text = line[1:] if match is Match.INCLUDE else line
    if not text.startswith(b"/"):
        return Pattern.parse(text, match)
    prefix = b"/" + directory if directory else b""
    return Pattern.parse(prefix + text, match, anchored=True)


class PatternList:
    """The patterns of one walk: the command line's, and on top those of the directories it is in.

    False when empty. Not to be used by several threads at once.
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        """Start with the command line's patterns. Raises InvalidName for a bad one."""
        texts = [text.encode("utf-8", "surrogateescape") for text in patterns]
        self._patterns = [Pattern.parse(text) for text in texts]
        self._command_line = tuple(self._patterns)
        # Compiled lists by length: a list that shrinks back finds its former self again.
        self._matchers: dict[int, _Matcher] = {}

    @classmethod
    def from_command_line(
        cls, patterns: Sequence[str], skip_lost_and_found: bool = False
    ) -> tuple[Self, list[str]]:
        """The list, without those that are bad, and the bad ones."""
        good, bad = [], []
        for text in patterns:
            try:
                cls([text])
            except InvalidName:
                bad.append(text)
            else:
                good.append(text)
        return cls(good + [LOST_AND_FOUND.decode()] * skip_lost_and_found), bad

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def matches(self, path: bytes, is_directory: bool) -> Match | None:
        """What the last pattern says that matches `path`, which starts with a slash; or None."""
        if not self._patterns:
            return None
        matcher = self._matchers.get(len(self._patterns))
        if matcher is None:
            matcher = self._matchers[len(self._patterns)] = _Matcher(self._patterns)
        return matcher.matches(path, is_directory)

    def push_exclude_file(self, content: bytes, directory: bytes) -> tuple[int, list[bytes]]:
        """Add a directory's own patterns; returns how many, and the lines that are none."""
        patterns, bad = parse_exclude_file(content, directory)
        self._patterns += patterns
        return len(patterns), bad

    def pop(self, count: int) -> None:
        """Take the last `count` patterns off again, on leaving their directory."""
        if count:
            del self._patterns[len(self._patterns) - count :]
            for length in [length for length in self._matchers if length > len(self._patterns)]:
                del self._matchers[length]

    def command_line_text(self) -> bytes | None:
        """Content of `.pxarexclude-cli` (v1): one pattern per line; None when there are none."""
        lines = [bytes(pattern) + b"\n" for pattern in self._command_line]
        return b"".join(lines) if lines else None

    def prelude(self) -> bytes | None:
        """Prelude of a split archive; None when there are no patterns.

        Raises:
            InvalidName: a pattern that is not UTF-8.
        """
        text = self.command_line_text()
        if text is None:
            return None
        try:
            value = {"exclude-patterns": text.decode()}
        except UnicodeDecodeError as error:
            raise InvalidName(f"exclude patterns {text!r}: a split archive needs UTF-8") from error
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


class _Matcher:
    """Several patterns as one regular expression, for directories and for the rest.

    Later patterns stand first; a run of patterns that say the same is one group.
    """

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self._of_directories = _compile(patterns)
        self._of_others = _compile([one for one in patterns if not one.directories_only])

    def matches(self, path: bytes, is_directory: bool) -> Match | None:
        expression, answers = self._of_directories if is_directory else self._of_others
        found = expression.fullmatch(path)
        return None if found is None else answers[(found.lastindex or 1) - 1]


def _compile(patterns: Sequence[Pattern]) -> tuple[re.Pattern[bytes], list[Match]]:
    groups, answers = [], []
    for match, run in groupby(reversed(patterns), attrgetter("match")):
        groups.append(b"(%b)" % _alternatives(list(run)))
        answers.append(match)
    return re.compile(b"|".join(groups) or b"(?!)", re.DOTALL), answers


def _alternatives(patterns: list[Pattern]) -> bytes:
    anchored = [one.expression for one in patterns if one.anchored]
    tails = [one.expression for one in patterns if not one.anchored]
    if tails:
        anchored.append(rb"(?:.*/)?(?:%b)" % b"|".join(tails))
    return b"|".join(anchored)

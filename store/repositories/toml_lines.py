"""On which line of a TOML text each key is: tomllib gives values without their places.

Only for text that tomllib has accepted: what it means is not checked again.
"""

import re
import tomllib
from collections.abc import Iterator
from typing import NamedTuple

TOKEN = re.compile(
    r"""(?P<comment>\#[^\n]*)
    | (?P<text>\"{3}(?:\\.|[^\\])*?\"{3,5} | '{3}.*?'{3,5} | "(?:\\.|[^"\\])*" | '[^']*')
    | (?P<newline>\n)
    | (?P<mark>[][{},=.])
    | (?P<bare>[^][{},=.\s\#"']+)""",
    re.VERBOSE | re.DOTALL,
)

Place = tuple[str | int, ...]
"""Keys from the top of the document, and the places of items in lists."""


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


END = _Token("end", "", 0)


def find_lines(text: str) -> dict[Place, int]:
    """The line, from 1, of each table, key and list item. A table made by several has its first."""
    return _Scan(text).lines


def _tokens(text: str) -> Iterator[_Token]:
    line = 1
    for match in TOKEN.finditer(text):
        if match.lastgroup != "comment":
            yield _Token(str(match.lastgroup), match[0], line)
        line += match[0].count("\n")


class _Scan:
    """One pass over the tokens."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Place, int] = {}
        self._tokens = _tokens(text)
        self._next = next(self._tokens, END)
        self._lengths: dict[Place, int] = {}  # of lists of tables
        self._document()

    def _document(self) -> None:
        table: Place = ()
        while self._skip_newlines() is not END:
            if self._next.text == "[" and self._next.kind == "mark":
                table = self._header()
            else:
                self._assignment(table)

    def _take(self) -> _Token:
        token, self._next = self._next, next(self._tokens, END)
        return token

    def _is_at(self, marks: str) -> bool:
        return self._next.kind == "mark" and self._next.text in marks

    def _skip_newlines(self) -> _Token:
        while self._next.kind == "newline":
            self._take()
        return self._next

    def _header(self) -> Place:
        """`[a.b]`, or `[[a.b]]`, which begins another item of a list."""
        line = self._take().line
        is_item = self._is_at("[")
        if is_item:
            self._take()
        table: Place = ()
        for key in self._key("]"):
            table = (*self._newest(table), key)
        if is_item:
            self._lengths[table] = self._lengths.get(table, 0) + 1
            self._take()
        table = self._newest(table)
        self._remember(table, line)
        return table

    def _newest(self, table: Place) -> Place:
        """A list of tables stands for its last item."""
        return (*table, self._lengths[table] - 1) if table in self._lengths else table

    def _assignment(self, table: Place) -> None:
        line = self._next.line
        path = (*table, *self._key("="))
        self._remember(path, line)
        self._value(path)

    def _key(self, end: str) -> list[str]:
        """The parts of a dotted key, and the mark behind it."""
        parts = []
        while not self._is_at(end):
            token = self._take()
            if token.kind != "mark":
                parts.append(_unquoted(token))
        self._take()
        return parts

    def _value(self, path: Place) -> None:
        if self._is_at("["):
            self._take()
            self._list(path)
        elif self._is_at("{"):
            self._take()
            self._inline_table(path)
        else:
            while self._next.kind in {"text", "bare"} or self._is_at("."):
                self._take()

    def _list(self, path: Place) -> None:
        item = 0
        while self._skip_newlines() is not END and not self._is_at("]"):
            self._remember((*path, item), self._next.line)
            self._value((*path, item))
            item += 1
            self._skip_comma()
        self._take()

    def _inline_table(self, path: Place) -> None:
        while self._skip_newlines() is not END and not self._is_at("}"):
            self._assignment(path)
            self._skip_comma()
        self._take()

    def _skip_comma(self) -> None:
        self._skip_newlines()
        if self._is_at(","):
            self._take()

    def _remember(self, path: Place, line: int) -> None:
        """A dotted key makes the tables above it, too."""
        for depth in range(1, len(path) + 1):
            self.lines.setdefault(path[:depth], line)


def _unquoted(token: _Token) -> str:
    return token.text if token.kind == "bare" else next(iter(tomllib.loads(f"{token.text} = 0")))

r"""The words of a line in `catalog shell`: as a POSIX shell has them, over bytes.

`\x`, `'…'`, `"…"` and `$'a\n\xff'` quote. Quoted characters mean themselves in globs, too.
"""

import re
from dataclasses import dataclass, field

from store.errors import InvalidName
from store.format.pxar.globs import SPECIAL
from store.trees.names import quote

_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{1,2}|[0-7]{1,3}|.)", re.DOTALL)
_NAMED = {"a": 7, "b": 8, "t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "e": 27}
_SAFE = re.compile(r"[^\s\\'\"*?\[$#]+")


@dataclass
class Word:
    """One word: `text` as it is meant, and `glob`, in which what was quoted is escaped."""

    text: bytes = b""
    glob: bytes = b""
    is_glob: bool = False
    quoted: bool = field(default=False, compare=False)

    def add(self, raw: bytes, *, quoted: bool) -> None:
        self.text += raw
        if quoted:
            self.quoted = True
            self.glob += SPECIAL.sub(lambda found: b"\\" + found[0], raw)
        else:
            self.glob += raw
            self.is_glob = self.is_glob or SPECIAL.search(raw) is not None

    def __str__(self) -> str:
        return self.text.decode("utf-8", "surrogateescape")


def split_words(line: str, *, finish: bool = True) -> list[Word]:
    """Cut a line into words; a word that begins with `#` starts a comment.

    finish: a quote that is not closed is InvalidName, else it goes on to the end.
    """
    words: list[Word] = []
    word: Word | None = None
    position = 0
    while position < len(line):
        character = line[position]
        if character.isspace():
            word, position = None, position + 1
            continue
        if word is None:
            if character == "#":
                break
            word = Word()
            words.append(word)
        position = _piece(line, position, word, finish=finish)
    return words


def ends_in_word(line: str) -> bool:
    """Whether more typed at the end of `line` belongs to its last word."""
    return len(split_words(line + "x", finish=False)) == len(split_words(line, finish=False))


def _piece(line: str, position: int, word: Word, *, finish: bool) -> int:
    """Add what stands at `position` to a word; returns the position behind it."""
    character = line[position]
    if line.startswith("$'", position):
        found = re.compile(r"\$'((?:[^'\\]|\\.)*)('|\\?\Z)", re.DOTALL).match(line, position)
        assert found
        _check_closed(found[2] == "'", finish=finish)
        word.add(_unescape(found[1]), quoted=True)
        return found.end()
    if character in "'\"":
        pattern = r"'([^']*)('|\Z)" if character == "'" else r'"((?:[^"\\]|\\.)*)("|\\?\Z)'
        found = re.compile(pattern, re.DOTALL).match(line, position)
        assert found
        _check_closed(found[2] == character, finish=finish)
        text = found[1] if character == "'" else re.sub(r'\\(["\\$])', r"\1", found[1])
        word.add(_raw(text), quoted=True)
        return found.end()
    if character == "\\":
        _check_closed(position + 1 < len(line), finish=finish)
        word.add(_raw(line[position + 1 : position + 2]), quoted=True)
        return position + 2
    word.add(_raw(character), quoted=False)
    return position + 1


def _check_closed(closed: bool, *, finish: bool) -> None:
    if finish and not closed:
        raise InvalidName("a quote is not closed")


def _unescape(text: str) -> bytes:
    out, position = b"", 0
    for found in _ESCAPE.finditer(text):
        out += _raw(text[position : found.start()]) + _escaped(found[1])
        position = found.end()
    return out + _raw(text[position:])


def _escaped(text: str) -> bytes:
    if text[0] == "x" and len(text) > 1:
        return bytes([int(text[1:], 16)])
    if text[0] in "01234567":
        return bytes([int(text, 8) & 0xFF])
    return bytes([_NAMED[text]]) if text in _NAMED else _raw(text)


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def shell_word(raw: bytes) -> str:
    """The word that `split_words` reads as these bytes: the shortest way to type them."""
    text = quote(raw)
    if text.startswith("$'") or _SAFE.fullmatch(text):
        return text
    return re.sub(r"([\s\\'\"*?\[$#])", r"\\\1", text)

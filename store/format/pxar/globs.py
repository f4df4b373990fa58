r"""Glob patterns over paths, translated to regular expressions over bytes.

`*` and `?` do not match `/`. `**` does if it stands for whole components (`a/**/b` also matches
`a/b`), else it is a `*`. `[a-z]`, `[^a-z]`, `[[:digit:]]`; `\` takes the next byte as it is.

A star takes as little as it can, and what follows it up to the next one is never tried again
further on (`(?>…)`): that decides nothing else, and keeps hostile patterns from taking for ever.

Source: pathpatterns src/pattern.rs, which follows git's wildmatch.c (spec 9.6).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from store.errors import InvalidName

_ANY_DEPTH = rb"(?:.*?/)??"
_CLASSES = {
    b"alnum": rb"[0-9A-Za-z]",
    b"alpha": rb"[A-Za-z]",
    b"blank": rb"[ \t]",
    b"cntrl": rb"[\x00-\x1f\x7f]",
    b"digit": rb"[0-9]",
    b"graph": rb"[!-~]",
    b"lower": rb"[a-z]",
    b"print": rb"[ -\x7f]",
    b"punct": rb"[!-/:-@\[-`{-~]",
    b"space": rb"[ \t\n\f\r]",
    b"upper": rb"[A-Z]",
    b"xdigit": rb"[0-9A-Fa-f]",
}
SPECIAL = re.compile(rb"[*?\[\\]")
_NAMED_CLASS = re.compile(rb"\[:([a-z]+):\]")


def literal_beginning(glob: bytes) -> list[bytes]:
    """The components of an anchored glob before the first with a glob character in it."""
    beginning = []
    for part in glob.strip(b"/").split(b"/"):
        if SPECIAL.search(part):
            break
        beginning.append(part)
    return beginning


def reaches(beginnings: "list[list[bytes]]", directory: bytes) -> bool:
    """Whether a path with one of these beginnings may lie in (or above) a directory."""
    parts = directory.split(b"/")
    return any(
        all(ours == theirs for ours, theirs in zip(beginning, parts, strict=False))
        for beginning in beginnings
    )


@dataclass(slots=True)
class _Section:
    """What lies between two `**`: expressions between its stars."""

    parts: list[bytes]

    def expression(self, end: bytes) -> bytes:
        first, *rest = self.parts
        rest = [rb"(?>[^/]*?%b)" % part for part in rest[:-1]] + [
            rb"(?>[^/]*?%b%b)" % (part, end) for part in rest[-1:]
        ]
        return b"".join([first, *rest, b"" if rest else end])


def _shown(glob: bytes) -> str:
    return repr(glob.decode(errors="backslashreplace"))


def translate(glob: bytes) -> bytes:
    """The regular expression, for fullmatch() with re.DOTALL, of one glob.

    Raises:
        InvalidName: empty, a NUL, a backslash at the end, or a malformed bracket.
    """
    if not glob or b"\0" in glob:
        raise InvalidName(f"pattern {_shown(glob)}: empty, or with a NUL")
    sections = [_Section([b""])]
    for token in _tokens(glob):
        if token == b"**":
            sections.append(_Section([b""]))
        elif token == b"*":
            sections[-1].parts.append(b"")
        else:
            sections[-1].parts[-1] += token
    return _join(sections)


def _join(sections: list[_Section]) -> bytes:
    """Each section after a `**` is looked for at every depth; the last must reach the end."""
    first, *rest = sections
    if not rest:
        return first.expression(rb"\Z")
    out = [first.expression(b"")]
    out += [rb"(?>%b)" % _anywhere(section.expression(b"")) for section in rest[:-1]]
    return b"".join([*out, _anywhere(rest[-1].expression(rb"\Z"))])


def _anywhere(expression: bytes) -> bytes:
    """`expression` after a `**`: it begins with the slash behind that, or is the end alone."""
    return _ANY_DEPTH + expression[1:] if expression.startswith(b"/") else b".*?" + expression


def _tokens(glob: bytes) -> Iterator[bytes]:
    """`*`, `**`, or the expression of something that matches one byte."""
    position = 0
    while position < len(glob):
        byte = glob[position : position + 1]
        if byte == b"*":
            end = position + len(glob[position:]) - len(glob[position:].lstrip(b"*"))
            yield b"**" if _stands_alone(glob, position, end) else b"*"
            position = end
        elif byte == b"[":
            expression, position = _bracket(glob, position + 1)
            yield expression
        else:
            if byte == b"\\":
                position += 1
                byte = glob[position : position + 1]
                if not byte:
                    raise InvalidName(f"pattern {_shown(glob)}: ends in a backslash")
                yield re.escape(byte)
            else:
                yield b"[^/]" if byte == b"?" else re.escape(byte)
            position += 1


def _stands_alone(glob: bytes, start: int, end: int) -> bool:
    """Whether the stars there are at least two and fill whole components."""
    return (
        end - start > 1
        and (start == 0 or glob[start - 1 : start] == b"/")
        and (end == len(glob) or glob[end : end + 1] == b"/")
    )


def _bracket(glob: bytes, position: int) -> tuple[bytes, int]:
    """The expression of a bracket from after its `[` on, and the position after its `]`."""
    negated = glob[position : position + 1] == b"^"
    position += negated
    members: set[int] = set()
    previous: int | None = None
    while (byte := glob[position : position + 1]) != b"]":
        if glob.startswith(b"[:", position):
            named, position = _named_class(glob, position)
            members |= named
            previous = None
        elif byte == b"-" and previous is not None:
            value, position = _member(glob, position + 1)
            members.update(range(min(previous, value), max(previous, value) + 1))
            previous = None
        else:
            previous, position = _member(glob, position)
            members.add(previous)
    if negated:
        members = set(range(256)) - members
    return _one_of(members), position + 1


def _member(glob: bytes, position: int) -> tuple[int, int]:
    """One byte in a bracket, taken as it is or after a backslash, and the position after it."""
    position += glob[position : position + 1] == b"\\"
    if position >= len(glob):
        raise InvalidName(f"pattern {_shown(glob)}: a bracket is not closed")
    return glob[position], position + 1


def _named_class(glob: bytes, position: int) -> tuple[set[int], int]:
    found = _NAMED_CLASS.match(glob, position)
    expression = _CLASSES.get(found[1]) if found else None
    if not found or expression is None:
        raise InvalidName(f"pattern {_shown(glob)}: no such character class at {position}")
    members = {byte for byte in range(256) if re.match(expression, bytes([byte]))}
    return members, found.end()


def _one_of(members: set[int]) -> bytes:
    """An expression for one byte out of a set; of the empty set none."""
    return b"[%b]" % b"".join(rb"\x%02x" % byte for byte in sorted(members)) if members else b"(?!)"

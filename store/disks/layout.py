"""The parts of a disk as the child told of them: checked, named, with links."""

import json
import re
from typing import Any, NamedTuple

from store.disks.base import Part, Segment, State
from store.errors import IntegrityError

MAX_PARTS = 1024
MAX_SEGMENTS = 100_000
MAX_LINK = 200
# With nothing in it for anybody.
NO_FILES = ("swap", "lvm2-pv", "md-raid")
_RESERVED = re.compile(r"part[0-9]+(\..*)?")
_KIND = re.compile(r"[a-z0-9-]{1,16}")


class Described(NamedTuple):
    """One part as the child says it, checked."""

    number: int
    segments: tuple[Segment, ...]
    kind: str | None
    label: str
    volume: str
    unclean: str
    problem: str


def described(answer: bytes, size: int) -> list[Described]:
    """The parts of a disk of `size` bytes. Raises IntegrityError when that cannot be."""
    try:
        found = json.loads(answer)
        if not isinstance(found, list) or len(found) > MAX_PARTS:
            raise IntegrityError("a disk of too many parts")
        parts = [_described(one, size) for one in found]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"what the parser says of the disk makes no sense: {error}") from error
    if len({part.number for part in parts}) != len(parts):
        raise IntegrityError("a disk with two partitions of one number")
    return parts


def _described(one: Any, size: int) -> Described:  # noqa: ANN401 - JSON
    number, kind = one["number"], one["kind"]
    if type(number) is not int or not 0 < number < 1 << 20:
        raise ValueError(f"part number {number!r}")
    if kind is not None and (not isinstance(kind, str) or not _KIND.fullmatch(kind)):
        raise ValueError(f"kind {kind!r}")
    texts = [one[key] for key in ("label", "volume", "unclean", "problem")]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("text that is none")
    segments = tuple(_segment(segment, size) for segment in one["segments"][:MAX_SEGMENTS])
    return Described(number, segments, kind, *(_printable(text) for text in texts))


def _segment(segment: Any, size: int) -> Segment:  # noqa: ANN401 - JSON
    start, length = segment
    if type(start) is not int or type(length) is not int:
        raise TypeError(f"segment {segment!r}")
    if not 0 <= start < start + length <= size:
        raise ValueError(f"segment {segment!r} of a disk of {size} bytes")
    return Segment(start, length)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "_" for letter in text)[:MAX_LINK]


def part_of(one: Described) -> Part:
    """The part, without links, which are given when all names are known."""
    if one.problem or one.kind is None or one.kind in NO_FILES or not one.segments:
        state, detail = State.UNREADABLE, one.problem or f"no file system ({one.kind or 'unknown'})"
    elif one.unclean:
        state, detail = State.UNCLEAN, one.unclean
    else:
        state, detail = State.CLEAN, ""
    return Part(f"part{one.number}", one.kind, one.segments, (), state, detail)


def links_of(parts: list[Described]) -> dict[int, tuple[str, ...]]:
    """Labels and volume names by part number: safe as names, and each of one part only."""
    wanted: dict[str, list[int]] = {}
    for one in parts:
        for text in dict.fromkeys((one.volume, one.label)):
            name = text.strip().replace("/", "_")
            if name and name not in (".", "..") and not _RESERVED.fullmatch(name):
                wanted.setdefault(name, []).append(one.number)
    links: dict[int, tuple[str, ...]] = {}
    for name, numbers in wanted.items():
        if len(numbers) == 1:
            links[numbers[0]] = (*links.get(numbers[0], ()), name)
    return links

"""LVM2: from the label on a physical volume to the logical volumes, as pieces of physical ones.

    label     "LABELONE" in one of the first four sectors: the volume's id and its areas
    area      " LVM2 x[5A%r0N*>": where in this ring the newest metadata text is
    text      nested `name { key = value … }`; extents in sectors of 512 bytes

Linear and striped volumes; others (thin, RAID, cache…) are listed as not readable.

Source: lvm2 lib/format_text/{layout.h,import_vsn1.c}, libdm/libdm-config.c.
"""

import re
import struct
from typing import NamedTuple, TypeAlias

from store.disks.parsers.files import BadFile, Blocks

SECTOR = 512
MAX_TEXT = 4 << 20
MAX_TOKENS = 400_000
MAX_DEPTH = 16
MAX_PIECES = 100_000
_LABEL = struct.Struct("<8sQII8s")
_AREA = struct.Struct("<QQ")
_MDA_MAGIC = b" LVM2 x[5A%r0N*>"
_RAW_LOCATION = struct.Struct("<QQII")
_TOKEN = re.compile(r'\s+|#[^\n]*|"((?:[^"\\]|\\.)*)"|([A-Za-z0-9_.+/-]+)|([{}\[\]=,])')

Value: TypeAlias = "str | int | list[Value] | dict[str, Value]"
Section: TypeAlias = dict[str, Value]


class Physical(NamedTuple):
    """A physical volume: which disk part it is, its id, and the metadata on it."""

    part: int
    ident: str
    text: str


class Piece(NamedTuple):
    """Bytes of a logical volume: `size` from `start` of the part with this index."""

    part: int
    start: int
    size: int


class Logical(NamedTuple):
    """A logical volume; `pieces` are empty and `problem` says why when it cannot be read."""

    group: str
    name: str
    pieces: list[Piece]
    problem: str


def is_physical(blocks: Blocks) -> bool:
    """Whether a part is a physical volume."""
    return _label(blocks) is not None


def _label(blocks: Blocks) -> bytes | None:
    for index in range(4):
        sector = blocks.pread(index * SECTOR, SECTOR)
        if sector[:8] == b"LABELONE" and sector[24:32] == b"LVM2 001":
            return sector
    return None


def physical(blocks: Blocks, part: int) -> Physical | None:
    """What is on a physical volume; None when it is none. Raises BadFile."""
    sector = _label(blocks)
    if sector is None:
        return None
    offset = _LABEL.unpack_from(sector)[3]
    if offset < 32 or offset + 40 > SECTOR:
        raise BadFile("LVM label without a header")
    ident = sector[offset : offset + 32].decode("ascii", "replace")
    position = offset + 40
    _, position = _areas(sector, position)
    metadata, _ = _areas(sector, position)
    for start, size in metadata:
        text = _text(blocks, start, size)
        if text:
            return Physical(part, ident, text)
    return Physical(part, ident, "")


def _areas(sector: bytes, position: int) -> tuple[list[tuple[int, int]], int]:
    found = []
    while position + _AREA.size <= len(sector):
        start, size = _AREA.unpack_from(sector, position)
        position += _AREA.size
        if not start:
            break
        found.append((start, size))
    return found, position


def _text(blocks: Blocks, start: int, size: int) -> str:
    """The newest metadata text in an area, which is a ring behind its first sector."""
    header = blocks.pread(start, SECTOR)
    if len(header) < SECTOR or header[4:20] != _MDA_MAGIC:
        return ""
    offset, length, _, _ = _RAW_LOCATION.unpack_from(header, 40)
    if not length or length > min(MAX_TEXT, size) or not SECTOR <= offset < size:
        return ""
    first = min(length, size - offset)
    raw = blocks.pread(start + offset, first)
    if length > first:
        raw += blocks.pread(start + SECTOR, length - first)
    return raw.rstrip(b"\0").decode("utf-8", "replace")


def logical_volumes(found: list[Physical]) -> list[Logical]:
    """The volumes of all groups that are on these parts, by group and name.

    Of a group's texts the one with the highest sequence number counts.
    """
    groups: dict[str, tuple[int, Section]] = {}
    problems = []
    for volume in found:
        try:
            name, group = _group(volume.text)
        except BadFile as error:
            problems.append(Logical("", "", [], str(error)))
            continue
        seqno = _number(group, "seqno")
        if name and seqno > groups.get(name, (-1, {}))[0]:
            groups[name] = seqno, group
    parts = {volume.ident: volume.part for volume in found}
    return [
        logical for name in sorted(groups) for logical in _of_group(name, groups[name][1], parts)
    ] + problems


def _group(text: str) -> tuple[str, Section]:
    for name, value in parse(text).items():
        if isinstance(value, dict):
            return name, value
    return "", {}


def _of_group(name: str, group: Section, parts: dict[str, int]) -> list[Logical]:
    extent = _number(group, "extent_size") * SECTOR
    places: dict[str, tuple[int, int]] = {}
    for volume, section in _sections(group, "physical_volumes"):
        part = parts.get(str(section.get("id", "")).replace("-", ""))
        if part is not None:
            places[volume] = part, _number(section, "pe_start") * SECTOR
    volumes = []
    for volume, section in sorted(_sections(group, "logical_volumes")):
        status = section.get("status")
        if not isinstance(status, list) or "VISIBLE" not in status:
            continue
        try:
            volumes.append(Logical(name, volume, _pieces(section, extent, places), ""))
        except BadFile as error:
            volumes.append(Logical(name, volume, [], str(error)))
    return volumes


def _pieces(volume: Section, extent: int, places: dict[str, tuple[int, int]]) -> list[Piece]:
    segments = [value for _, value in volume.items() if isinstance(value, dict)]
    segments.sort(key=lambda segment: _number(segment, "start_extent"))
    pieces: list[Piece] = []
    position = 0
    for segment in segments:
        if _number(segment, "start_extent") != position:
            raise BadFile("LVM volume with a gap")
        position += _number(segment, "extent_count")
        kind = segment.get("type")
        if kind not in ("striped", "linear"):
            raise BadFile(f"LVM volume of type {kind}, which only its own kernel module reads")
        pieces += _stripes(segment, extent, places)
        if len(pieces) > MAX_PIECES:
            raise BadFile(f"LVM volume in more than {MAX_PIECES} pieces")
    return pieces


def _stripes(segment: Section, extent: int, places: dict[str, tuple[int, int]]) -> list[Piece]:
    """Where a segment's bytes are: in turns on each of its stripes, `stripe_size` at a time."""
    stripes = segment.get("stripes")
    if not isinstance(stripes, list) or not stripes or len(stripes) % 2:
        raise BadFile("LVM segment without stripes")
    count, size = len(stripes) // 2, _number(segment, "extent_count") * extent
    starts = []
    for volume, first in zip(stripes[::2], stripes[1::2], strict=True):
        if str(volume) not in places:
            raise BadFile(f"LVM volume: a part of it is on {volume}, which is not in this image")
        if not isinstance(first, int):
            raise BadFile("LVM segment without an extent")
        part, base = places[str(volume)]
        starts.append((part, base + first * extent))
    if count == 1:
        return [Piece(*starts[0], size)]
    step = _number(segment, "stripe_size") * SECTOR
    if not step or size % (step * count) or size // step > MAX_PIECES:
        raise BadFile("LVM stripes that do not fit their segment")
    return [
        Piece(part, start + row * step, step)
        for row in range(size // (step * count))
        for part, start in starts
    ]


def _sections(group: Section, name: str) -> list[tuple[str, Section]]:
    section = group.get(name)
    if not isinstance(section, dict):
        return []
    return [(key, value) for key, value in section.items() if isinstance(value, dict)]


def _number(section: Section, key: str) -> int:
    value = section.get(key, 0)
    if not isinstance(value, int) or not 0 <= value < 1 << 53:
        raise BadFile(f"LVM metadata: {key} is {value!r}")
    return value


def parse(text: str) -> Section:
    """The whole metadata text. Raises BadFile."""
    tokens = _tokens(text)
    section, end = _section(tokens, 0, 0)
    if end != len(tokens):
        raise BadFile("LVM metadata: more closing than opening braces")
    return section


Token: TypeAlias = tuple[str, "str | int"]


def _tokens(text: str) -> list[Token]:
    found: list[Token] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or len(found) > MAX_TOKENS:
            raise BadFile(f"LVM metadata: unexpected text at {position}")
        position = match.end()
        quoted, word, sign = match.groups()
        if quoted is not None:
            found.append(("value", re.sub(r"\\(.)", r"\1", quoted)))
        elif word is not None:
            is_number = len(word) < 20 and re.fullmatch(r"-?[0-9]+", word)
            found.append(("value", int(word)) if is_number else ("word", word))
        elif sign is not None:
            found.append((sign, sign))
    return found


def _section(tokens: list[Token], position: int, depth: int) -> tuple[Section, int]:
    section: Section = {}
    while position < len(tokens) and tokens[position][0] != "}":
        key = str(tokens[position][1])
        sign = tokens[position + 1][0] if position + 1 < len(tokens) else ""
        if sign == "{" and depth < MAX_DEPTH:
            section[key], position = _section(tokens, position + 2, depth + 1)
            if position >= len(tokens):
                raise BadFile("LVM metadata: cut short")
            position += 1
        elif sign == "=":
            section[key], position = _value(tokens, position + 2)
        else:
            raise BadFile(f"LVM metadata: {key[:40]!r} has no value")
    return section, position


def _value(tokens: list[Token], position: int) -> tuple[Value, int]:
    if position >= len(tokens):
        raise BadFile("LVM metadata: cut short")
    kind, value = tokens[position]
    if kind != "[":
        return value, position + 1
    items: list[Value] = []
    position += 1
    while position < len(tokens) and tokens[position][0] != "]":
        if tokens[position][0] != ",":
            items.append(tokens[position][1])
        position += 1
    return items, position + 1

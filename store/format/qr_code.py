"""QR codes as libqrencode draws them, so that our paper keys look like PBS's to the last module.

The standard leaves two choices: how to cut the text into segments, and which mask to take. Any
choice scans; this file makes those of `qrencode`, the program PBS calls, and leaves the rest to the
qrcodegen package.

Source: qrencode 4.1.1, behaviour of `qrencode -lm`; checked against tests/golden/keys/paperkey.txt
"""

import struct
import zlib
from collections.abc import Sequence
from itertools import groupby, pairwise

from qrcodegen import QrCode, QrSegment  # type: ignore[import-untyped]

NUMERIC, ALPHANUMERIC, BYTE = "numeric", "alphanumeric", "byte"
ALPHABET = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:")
# Cost of a new segment in bits: 4 for the mode, then its length field. qrencode always counts with
# that of a small code, whatever the size of the code in the end.
HEADER_BITS = {NUMERIC: 4 + 10, ALPHANUMERIC: 4 + 9, BYTE: 4 + 8}

QUIET_ZONE = 4  # light modules around a code, by the standard
PIXELS_PER_MODULE = 8

Matrix = tuple[bytes, ...]


def encode_qr_code(data: bytes) -> Matrix:
    """Return the code of `data` (1 to 2,331 bytes) at error level M, without a quiet zone.

    Rows of modules: 0 light, 1 dark.
    """
    segments = [_MAKE[mode](part) for part, mode in split_segments(data)]
    codes = (
        QrCode.encode_segments(segments, QrCode.Ecc.MEDIUM, mask=mask, boostecl=False)
        for mask in range(8)
    )
    return min(map(_matrix, codes), key=_penalty)


def render_text(matrix: Matrix) -> str:
    """Two rows a line in half blocks, dark as ink: `qrencode -t utf8i -m0 -s1`."""
    rows = [*matrix, bytes(len(matrix))]
    return "".join(
        "".join(" ▀▄█"[top + 2 * bottom] for top, bottom in zip(rows[y], rows[y + 1], strict=True))
        + "\n"
        for y in range(0, len(matrix), 2)
    )


def join_codes(codes: Sequence[Matrix]) -> Matrix:
    """One picture of all, one below the other, each with its quiet zone."""
    width = max(len(code) for code in codes) + 2 * QUIET_ZONE
    rows = [bytes(width)] * QUIET_ZONE
    for code in codes:
        rows += [(bytes(QUIET_ZONE) + row).ljust(width, b"\0") for row in code]
        rows += [bytes(width)] * QUIET_ZONE
    return tuple(rows)


def render_svg(matrix: Matrix) -> str:
    """An SVG picture, one unit a module, without a quiet zone of its own."""
    width, height = len(matrix[0]), len(matrix)
    dark = "".join(
        f"M{x},{y}h1v1h-1z"
        for y, row in enumerate(matrix)
        for x, module in enumerate(row)
        if module
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        ' shape-rendering="crispEdges">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>'
        f'<path d="{dark}" fill="#000"/></svg>'
    )


def render_png(matrix: Matrix) -> bytes:
    """The same as a PNG picture of black and white pixels, 8 x 8 a module."""
    width = len(matrix[0]) * PIXELS_PER_MODULE
    lines = []
    for row in matrix:  # a module is a byte of eight pixels; 0 is black
        line = b"\0" + bytes(0 if module else 0xFF for module in row)
        lines += [line] * PIXELS_PER_MODULE
    header = struct.pack(">IIBBBBB", width, len(lines), 1, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(lines), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def split_segments(data: bytes) -> list[tuple[bytes, str]]:
    """Cut `data` where a change of mode saves bits, greedily from the front."""
    segments, at = [], 0
    while at < len(data):
        mode, end = _EAT[_mode(data, at)](data, at)
        segments.append((data[at:end], mode))
        at = end
    return segments


def _bits(mode: str, count: int) -> int:
    if mode == NUMERIC:
        return count // 3 * 10 + (0, 4, 7)[count % 3]
    return count // 2 * 11 + count % 2 * 6 if mode == ALPHANUMERIC else count * 8


def _mode(data: bytes, at: int) -> str:
    if at >= len(data):
        return ""
    if 48 <= data[at] <= 57:
        return NUMERIC
    return ALPHANUMERIC if data[at] in ALPHABET else BYTE


def _run(data: bytes, at: int, mode: str) -> int:
    """End of the run of characters that `mode` can hold."""
    modes = (NUMERIC,) if mode == NUMERIC else (NUMERIC, ALPHANUMERIC)
    while _mode(data, at) in modes:
        at += 1
    return at


def _eat_numeric(data: bytes, start: int) -> tuple[str, int]:
    end = _run(data, start, NUMERIC)
    own = _bits(NUMERIC, end - start) + HEADER_BITS[NUMERIC]
    following = _mode(data, end)
    if following and own + _bits(following, 1) > _bits(following, end - start + 1):
        return _EAT_AS[following](data, start)
    return NUMERIC, end


def _eat_alphanumeric(data: bytes, start: int) -> tuple[str, int]:
    end = start
    while following := _mode(data, end):
        if following == BYTE:
            break
        if following == ALPHANUMERIC:
            end += 1
            continue
        run = _run(data, end, NUMERIC)
        apart = _bits(ALPHANUMERIC, end - start) + _bits(NUMERIC, run - end) + HEADER_BITS[NUMERIC]
        if apart < _bits(ALPHANUMERIC, run - start):
            break
        end = run
    length = end - start
    if _mode(data, end) == BYTE:
        apart = _bits(ALPHANUMERIC, length) + HEADER_BITS[ALPHANUMERIC] + _bits(BYTE, 1)
        if apart > _bits(BYTE, length + 1):
            return _eat_bytes(data, start)
    return ALPHANUMERIC, end


def _eat_bytes(data: bytes, start: int) -> tuple[str, int]:
    end = start + 1
    while following := _mode(data, end):
        if following == BYTE:
            end += 1
            continue
        run = _run(data, end, following)
        back = HEADER_BITS[BYTE] if _mode(data, run) == BYTE else 0
        apart = (
            _bits(BYTE, end - start) + _bits(following, run - end) + HEADER_BITS[following] + back
        )
        if apart < _bits(BYTE, run - start):
            break
        end = run
    return BYTE, end


_EAT = {NUMERIC: _eat_numeric, ALPHANUMERIC: _eat_alphanumeric, BYTE: _eat_bytes}
_EAT_AS = {ALPHANUMERIC: _eat_alphanumeric, BYTE: _eat_bytes}
_MAKE = {
    NUMERIC: lambda part: QrSegment.make_numeric(part.decode()),
    ALPHANUMERIC: lambda part: QrSegment.make_alphanumeric(part.decode()),
    BYTE: QrSegment.make_bytes,
}


def _matrix(code: QrCode) -> Matrix:
    size = range(code.get_size())
    return tuple(bytes(code.get_module(x, y) for x in size) for y in size)


def _penalty(matrix: Matrix) -> int:
    """The standard's four penalties as qrencode reads them."""
    columns: Matrix = tuple(bytes(column) for column in zip(*matrix, strict=True))
    modules = len(matrix) ** 2
    dark_percent = (200 * sum(map(sum, matrix)) + modules) // modules // 2
    lines = sum(_line_penalty(line) for line in (*matrix, *columns))
    squares = sum(
        sum(
            a == b == c == d
            for (a, b), (c, d) in zip(pairwise(upper), pairwise(lower), strict=True)
        )
        for upper, lower in pairwise(matrix)
    )
    return lines + 3 * squares + 10 * (abs(dark_percent - 50) // 5)


def _line_penalty(line: bytes) -> int:
    """Long runs, and runs 1:1:3:1:1 beside four light ones; odd places of `runs` are dark."""
    runs = [sum(1 for _ in run) for _, run in groupby(line)]
    if line[0]:
        runs.insert(0, -1)
    penalty = sum(length - 2 for length in runs if length >= 5)
    for i in range(3, len(runs) - 2, 2):
        unit, odd = divmod(runs[i], 3)
        if odd or not runs[i - 2] == runs[i - 1] == runs[i + 1] == runs[i + 2] == unit:
            continue
        before = i == 3 or runs[i - 3] >= 4 * unit
        if before or i + 4 >= len(runs) or runs[i + 3] >= 4 * unit:
            penalty += 40
    return penalty

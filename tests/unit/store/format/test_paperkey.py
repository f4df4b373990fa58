"""Paper keys, the QR codes included, against what a real PBS printed."""

import base64
import re
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.errors import FormatError
from store.format.keys import KeyFile
from store.format.paperkey import (
    paper_key_html,
    paper_key_png,
    paper_key_svg,
    paper_key_text,
    read_paper_key,
)
from store.format.qr_code import (
    encode_qr_code,
    join_codes,
    render_png,
    render_svg,
    render_text,
    split_segments,
)

KEYS = Path(__file__).parents[3] / "golden/keys"


def test_text_is_the_original() -> None:
    page = paper_key_text((KEYS / "scrypt.json").read_text())
    assert page == (KEYS / "paperkey.txt").read_text()


def test_subject() -> None:
    key = (KEYS / "scrypt.json").read_text()
    assert paper_key_text(key, "web01") == f"Subject: web01\n\n{paper_key_text(key)}"
    assert "<p>Subject: &lt;web01&gt;</p>" in paper_key_html(key, "<web01>")


def test_html_has_the_same_code() -> None:
    key = (KEYS / "scrypt.json").read_text()
    original = (KEYS / "paperkey.html").read_text()
    ours, theirs = (_dark_modules(page) for page in (paper_key_html(key, "golden"), original))
    assert ours == theirs


def _dark_modules(page: str) -> set[tuple[int, int]]:
    picture = re.search(r'base64,([^"]*)"', page)[1]
    svg = base64.b64decode(picture + "=" * (-len(picture) % 4)).decode()
    rects = re.findall(r'<rect x="(\d+)" y="(\d+)" width="1" height="1" fill="#000000"', svg)
    return {(int(x), int(y)) for x, y in rects or re.findall(r"M(\d+),(\d+)h1", svg)}


def test_read_back() -> None:
    key = (KEYS / "scrypt.json").read_text()
    page = paper_key_text(key)
    assert read_paper_key(page) == KeyFile.decode(key)
    assert read_paper_key(page.split("KEY-----\n")[1].partition("-----END")[0]) == KeyFile.decode(
        key
    )


def test_master_key() -> None:
    pem = (KEYS / "master-private.pem").read_text()
    lines = pem.splitlines()
    page = paper_key_text(pem)
    blocks = page.split("\f\n")
    assert len(blocks) == -(-len(lines) // 5) + 1
    assert blocks[-1] == ""
    numbered = [line for line in page.splitlines() if re.match(r"[ \d]\d: ", line)]
    assert numbered == [f"{number:2}: {line}" for number, line in enumerate(lines)]
    assert render_text(encode_qr_code("\n".join(lines[:5]).encode())) in blocks[0]
    assert paper_key_html(pem).count("<img") == -(-len(lines) // 20)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIJ\n", "-----BEGIN PUBLIC KEY-----\n"],
)
def test_neither_key_nor_master_key(text: str) -> None:
    with pytest.raises(FormatError):
        paper_key_text(text)


@given(st.binary(min_size=1, max_size=300))
def test_segments_are_the_text(data: bytes) -> None:
    assert b"".join(part for part, _ in split_segments(data)) == data


@settings(max_examples=10)
@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_have_a_code(data: bytes) -> None:
    matrix = encode_qr_code(data)
    assert (len(matrix) - 17) % 4 == 0
    assert render_svg(matrix).count("h1v1h-1z") == sum(map(sum, matrix))


@pytest.mark.parametrize("name", ["scrypt", "pbkdf2", "none"])
def test_as_qrencode_draws_it(name: str) -> None:
    data = (KEYS / f"{name}.json").read_bytes()
    command = ["qrencode", "-t", "utf8i", "-m0", "-s1", "-lm"]
    theirs = subprocess.run(command, input=data, capture_output=True, check=True).stdout.decode()
    assert render_text(encode_qr_code(data)) == theirs


def _pixels(png: bytes) -> list[str]:
    """The rows of a black and white PNG, as text of 0 (black) and 1."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, colour = struct.unpack(">IIBB", png[16:26])
    assert (depth, colour) == (1, 0)
    at, packed = 8, b""
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        data = png[at + 8 : at + 8 + size]
        assert png[at + 8 + size : at + 12 + size] == struct.pack(">I", zlib.crc32(kind + data))
        packed += data if kind == b"IDAT" else b""
        at += 12 + size
    plain, stride = zlib.decompress(packed), 1 + width // 8
    assert len(plain) == stride * height
    rows = [plain[start : start + stride] for start in range(0, len(plain), stride)]
    assert {row[0] for row in rows} == {0}
    return ["".join(f"{byte:08b}" for byte in row[1:]) for row in rows]


def _light_and_dark(png: bytes) -> tuple[bytes, ...]:
    """The modules of a picture: 1 is dark, as in a Matrix."""
    rows = _pixels(png)
    assert all(row == rows[y - y % 8] for y, row in enumerate(rows))
    return tuple(bytes(1 - int(bit) for bit in row[::8]) for row in rows[::8])


def test_pictures_hold_every_code_with_a_quiet_zone() -> None:
    """Checked with zxing, too: all codes of a key file's and a master key's picture scan."""
    codes = [encode_qr_code(b"a short text"), encode_qr_code(b"one that is longer, " * 4)]
    joined = join_codes(codes)
    assert _light_and_dark(render_png(joined)) == joined
    top = 4
    for code in codes:
        rows = joined[top : top + len(code)]
        assert tuple(row[4 : 4 + len(code)] for row in rows) == code
        assert not any(any(row[:4]) or any(row[4 + len(code) :]) for row in rows)
        assert not any(map(any, joined[top - 4 : top]))
        top += len(code) + 4
    assert (len(joined), {len(row) for row in joined}) == (top, {len(codes[1]) + 8})


def test_pictures_are_the_pages_code() -> None:
    text = (KEYS / "scrypt.json").read_text()
    page = {(x + 4, y + 4) for x, y in _dark_modules(paper_key_html(text))}
    picture = _light_and_dark(paper_key_png(text))
    assert {(x, y) for y, row in enumerate(picture) for x, dark in enumerate(row) if dark} == page
    svg = re.findall(r"M(\d+),(\d+)h1", paper_key_svg(text))
    assert {(int(x), int(y)) for x, y in svg} == page

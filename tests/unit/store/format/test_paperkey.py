"""Paper keys, the QR codes included, against what a real PBS printed."""

import base64
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.errors import FormatError
from store.format.keys import KeyFile
from store.format.paperkey import paper_key_html, paper_key_text, read_paper_key
from store.format.qr_code import encode_qr_code, render_svg, render_text, split_segments

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

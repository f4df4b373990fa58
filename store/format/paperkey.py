"""Paper keys: a key as a page to print, readable by people and by any phone's camera.

Source: proxmox-backup pbs-datastore/src/paperkey.rs; spec section 8.5; text form checked against
tests/golden/keys/paperkey.txt. The HTML page is our own, with the same data in it.
"""

import base64
import html
import json

from store.errors import FormatError
from store.format.keys import KeyFile
from store.format.qr_code import (
    Matrix,
    encode_qr_code,
    join_codes,
    render_png,
    render_svg,
    render_text,
)

BEGIN, END = "-----BEGIN PROXMOX BACKUP KEY-----", "-----END PROXMOX BACKUP KEY-----"
MASTER_KEY_BEGINNINGS = (
    "-----BEGIN ENCRYPTED PRIVATE KEY-----\n",
    "-----BEGIN RSA PRIVATE KEY-----\n",
)
MASTER_KEY_ENDINGS = ("\n-----END ENCRYPTED PRIVATE KEY-----", "\n-----END RSA PRIVATE KEY-----")
MASTER_KEY_MINIMUM_LINES = 20
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Paper key</title>
<style>
  p { font: 12pt monospace; white-space: pre-wrap; line-break: anywhere; }
  img { display: block; margin: auto; width: 500pt; height: 500pt; }
  div { break-inside: avoid; }
  div + div { break-before: page; }
</style>
</head>
<body>
%s</body>
</html>
"""


def paper_key_text(key: str, subject: str | None = None) -> str:
    """Return a page in UTF-8 text with QR codes; a master key's blocks end in form feeds.

    Args:
        key: the text of a key file, or a master private key in PEM.
        subject: a first line, for example the host's name.

    Raises:
        FormatError: neither of the two.
    """
    title = f"Subject: {subject}\n\n" if subject is not None else ""
    lines = _master_key_lines(key)
    if lines is None:
        lines = _key_file_lines(key)
        return f"{title}{_framed(lines)}\n{_text_code(lines)}\n"
    blocks = _numbered(lines, 5, "%2d: %s")
    return title + "".join(f"{text}\n{_text_code(block)}\n\f\n" for text, block in blocks)


def paper_key_html(key: str, subject: str | None = None) -> str:
    """Return the same as one HTML page without outside references; see `paper_key_text`."""
    blocks = _large_blocks(key)
    title = f"<p>Subject: {html.escape(subject)}</p>\n" if subject is not None else ""
    return PAGE % (title + "".join(_html_block(text, block) for text, block in blocks))


def paper_key_svg(key: str) -> str:
    """Return the QR codes alone as one picture, below one another; see `paper_key_text`."""
    return render_svg(_picture(key))


def paper_key_png(key: str) -> bytes:
    """Return the same as a PNG file."""
    return render_png(_picture(key))


def read_paper_key(text: str) -> KeyFile:
    """Read back what was typed or scanned, with or without its frame. Raises FormatError."""
    _, begin, rest = text.partition(BEGIN)
    return KeyFile.decode(rest.partition(END)[0] if begin else text)


def _key_file_lines(key: str) -> list[str]:
    return json.dumps(KeyFile.decode(key).to_json(), indent=2, ensure_ascii=False).splitlines()


def _master_key_lines(key: str) -> list[str] | None:
    """The lines of a PEM private key; None when `key` is something else."""
    if not key.startswith(MASTER_KEY_BEGINNINGS):
        return None
    lines = [line.rstrip() for line in key.splitlines() if line.strip()]
    if not key.rstrip().endswith(MASTER_KEY_ENDINGS) or len(lines) < MASTER_KEY_MINIMUM_LINES:
        raise FormatError("master private key: cut short")
    return lines


def _large_blocks(key: str) -> list[tuple[str, list[str]]]:
    """What fits one code each: as text for people, and as the code's raw lines."""
    lines = _master_key_lines(key)
    if lines is None:
        lines = _key_file_lines(key)
        return [(_framed(lines), lines)]
    return _numbered(lines, 20, "%02d: %s")


def _picture(key: str) -> Matrix:
    return join_codes([_code(lines) for _, lines in _large_blocks(key)])


def _framed(lines: list[str]) -> str:
    return "\n".join((BEGIN, *lines, END))


def _numbered(lines: list[str], size: int, form: str) -> list[tuple[str, list[str]]]:
    """Blocks of `size` lines, each as numbered text and as the raw lines for its code."""
    numbered = [form % pair for pair in enumerate(lines)]
    return [
        ("\n".join(numbered[at : at + size]), lines[at : at + size])
        for at in range(0, len(lines), size)
    ]


def _code(lines: list[str]) -> Matrix:
    return encode_qr_code("\n".join(lines).encode())


def _text_code(lines: list[str]) -> str:
    return render_text(_code(lines))


def _html_block(text: str, lines: list[str]) -> str:
    picture = base64.b64encode(render_svg(_code(lines)).encode()).decode()
    image = f'<img alt="" src="data:image/svg+xml;base64,{picture}">'
    return f"<div>\n<p>{html.escape(text)}</p>\n{image}\n</div>\n"

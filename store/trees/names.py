"""Names of files as text for a terminal: one line, no control characters, never two for one."""

_ESCAPES = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r", 27: "\\e"}


def quote(name: bytes) -> str:
    r"""A name or path as it is where it is printable UTF-8, else as `$'a\nb\xff'`.

    The second form is what bash, zsh and `catalog shell` read back as the same bytes.
    """
    text = name.decode("utf-8", "surrogateescape")
    if text.isprintable() and not text.startswith("$'"):
        return text
    return f"$'{''.join(map(_escaped, text))}'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return "\\" + character
    if character.isprintable():
        return character
    raw = character.encode("utf-8", "surrogateescape")
    return "".join(_ESCAPES.get(byte) or f"\\x{byte:02x}" for byte in raw)

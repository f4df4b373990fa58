"""How the value of an option is written: as text everywhere, and as TOML's own types in a file.

`parse` and `format` are inverse: what one makes the other reads back.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from store.errors import InvalidName
from store.names import Fingerprint, Namespace

# Patterns, compiled when they are used: most starts need none.
_SIZE = r"(?ai)(\d{1,15})([kmgt]?)(?:i?b)?"
SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DURATION = r"(?a)(\d{1,9}(?:\.\d{1,9})?) ?([smhd]?)"
DURATION_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
MAX_DURATION_S = 30 * 86400
_COUNT = r"(?a)\d{1,6}"
BOOLEANS = {"1": True, "on": True, "yes": True, "true": True}
BOOLEANS |= {"0": False, "off": False, "no": False, "false": False}
_CONTROL = r"[\x00-\x1f\x7f]"
_ENDPOINT = r"https?://[^/?#@\s]+/?"


class Kind(NamedTuple):
    """One way to write values.

    Attributes:
        metavar: what help calls the value.
        example: how to write it in TOML, for messages.
        parse: a value of its text. Raises ValueError: the message says how to write it.
        format: the text of a value.
        toml_types: what TOML may give; strings are read as text.
        is_empty_allowed: whether the empty text is a value.
    """

    metavar: str
    example: str
    parse: Callable[[str], Any]
    format: Callable[[Any], str] = str
    toml_types: tuple[type, ...] = (str,)
    is_empty_allowed: bool = False

    def read(self, text: str) -> Any:  # noqa: ANN401 - what the kind has
        """The value of `text`. Raises ValueError."""
        if not text and not self.is_empty_allowed:
            raise ValueError("is empty")
        if re.search(_CONTROL, text):
            raise ValueError("has control characters")
        return self.parse(text)

    def read_toml(self, value: object) -> Any:  # noqa: ANN401
        """The value of what tomllib gives. Raises ValueError."""
        if type(value) not in self.toml_types:
            raise ValueError(f"write it as {self.example}")
        if isinstance(value, list):
            return tuple(_list_item(item, self.example) for item in value)
        text = str(value)
        if self.format is _format_path and not text.startswith(("/", "~")):
            raise ValueError("write an absolute path")
        return self.read(text)


def parse_size(text: str) -> int:
    """Bytes of `256M`, `1GiB`, `4096` (units of 1024). Raises ValueError."""
    match = re.fullmatch(_SIZE, text)
    if not match:
        raise ValueError("write it as 256M or 2G")
    return int(match[1]) * SIZE_UNITS[match[2].upper()]


def format_size(size: int) -> str:
    """`256M`: exact, in the largest unit that is."""
    units = (unit for unit in reversed(SIZE_UNITS) if size and size % SIZE_UNITS[unit] == 0)
    unit = next(units, "")
    return f"{size // SIZE_UNITS[unit]}{unit}"


def parse_duration(text: str) -> float:
    """Seconds of `300`, `5m`, `0.5s`, to the millisecond. Raises ValueError."""
    match = re.fullmatch(_DURATION, text)
    seconds = float(match[1]) * DURATION_UNITS[match[2]] if match else MAX_DURATION_S + 1
    if seconds > MAX_DURATION_S:
        raise ValueError("write it as 300 (seconds), 5m or 1h, at most 30d")
    return round(seconds, 3)


def format_duration(seconds: float) -> str:
    """`300s`."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def parse_boolean(text: str) -> bool:
    """PBS's spellings of true and false. Raises ValueError."""
    try:
        return BOOLEANS[text.lower()]
    except KeyError:
        raise ValueError("use true or false") from None


def _parse_timeout(text: str) -> float:
    seconds = parse_duration(text)
    if not seconds:
        raise ValueError("must be longer than 0")
    return seconds


def _parse_memory(text: str) -> int:
    size = parse_size(text)
    if size < SIZE_UNITS["M"]:
        raise ValueError("must be at least 1M")
    return size


def _parse_count(text: str) -> int:
    if not re.fullmatch(_COUNT, text):
        raise ValueError("write a whole number")
    return int(text)


def _parse_positive(text: str) -> int:
    count = _parse_count(text)
    if not count:
        raise ValueError("must be at least 1")
    return count


def _parse_path(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def _format_path(path: Path) -> str:
    return str(path)


def _parse_list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _list_item(item: object, example: str) -> str:
    if not isinstance(item, str) or not item.strip() or re.search(_CONTROL, item):
        raise ValueError(f"write it as {example}")
    if "," in item:
        raise ValueError(f"{item!r} has a comma; give it a name with [repository.NAME]")
    return item.strip()


def _parse_endpoint(text: str) -> str:
    if not re.fullmatch(_ENDPOINT, text):
        raise ValueError("write it as https://host or https://host:port")
    return text.removesuffix("/")


def _parse_fingerprint(text: str) -> str:
    try:
        return str(Fingerprint.parse(text))
    except InvalidName:
        raise ValueError("write the certificate's SHA-256 as aa:bb:…, 32 bytes") from None


def _parse_namespace(text: str) -> str:
    try:
        return str(Namespace.parse(text))
    except InvalidName as error:
        raise ValueError(str(error)) from error


TEXT = Kind("TEXT", '"text"', str)
COMMAND = Kind("COMMAND", '"pass show s3/vault"', str)
FILE = Kind("FILE", '"/path"', _parse_path, _format_path)
DIRECTORY = Kind("DIRECTORY", '"/path"', _parse_path, _format_path)
SIZE = Kind("BYTES", '"64M"', parse_size, format_size, (int, str))
MEMORY = Kind("BYTES", '"256M"', _parse_memory, format_size, (int, str))
DURATION = Kind("TIME", '300 (seconds) or "5m"', parse_duration, format_duration, (int, float, str))
TIMEOUT = Kind("TIME", '10 (seconds) or "10s"', _parse_timeout, format_duration, (int, float, str))
NUMBER = Kind("N", "100", _parse_count, str, (int,))
POSITIVE = Kind("N", "16", _parse_positive, str, (int,))
BOOLEAN = Kind("true|false", "true or false", parse_boolean, lambda v: str(v).lower(), (bool,))
LIST = Kind("NAME,...", '["name", "s3://bucket/name"]', _parse_list, ",".join, (list,), True)
ENDPOINT = Kind("URL", '"https://host:port"', _parse_endpoint)
FINGERPRINT = Kind("SHA256", '"aa:bb:…"', _parse_fingerprint)
NAMESPACE = Kind("NAMESPACE", '"prod/web"', _parse_namespace, is_empty_allowed=True)

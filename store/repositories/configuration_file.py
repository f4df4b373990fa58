"""One configuration file: read, and checked key by key, with the line of whatever is wrong."""

import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from store.backends.base import storage_error
from store.backends.s3_settings import S3_SCHEME
from store.errors import InvalidName, PermissionDenied, StoreError
from store.repositories.option_kinds import LIST
from store.repositories.options import BY_NAME, Given, Layer, Option, Repository
from store.repositories.repository_url import is_name, parse_url

MAX_SIZE = 1 << 20
TABLES = ("repository", "defaults")
RESERVED_NAMES = frozenset(("mount",))
"""`vaultway mount DIR -o …` is a command: fstab could not tell such a repository from it."""
TOML_ERROR = re.compile(
    r"(?P<message>.*) \(at (?:line (?P<line>\d+), column \d+|end of document)\)"
)
OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass
class ConfigurationFile:
    """What one file says, and what is wrong with it."""

    path: Path
    repositories: dict[str, Repository] = field(default_factory=dict)
    defaults: Layer = field(default_factory=dict)
    problems: list[StoreError] = field(default_factory=list)


def read_configuration_file(path: Path) -> ConfigurationFile:
    """Read the file at `path`; what is wrong inside becomes a problem, not an exception.

    Raises NotFound, PermissionDenied, BackendError, and InvalidName for what is not text at all.
    """
    raw, mode = _read(path)
    found = ConfigurationFile(path)
    if raw.strip():  # the null device is a file without a setting
        _Reading(found, _decode(path, raw), mode)
    return found


def _read(path: Path) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            raw, mode = file.read(MAX_SIZE + 1), os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise storage_error(error, f"configuration {path}") from error
    if len(raw) > MAX_SIZE:
        raise InvalidName(f"configuration {path}: larger than {MAX_SIZE} bytes")
    return raw, mode


def _decode(path: Path, raw: bytes) -> str:
    try:
        return raw.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InvalidName(f"{path} line {line}: not UTF-8") from error


class _Reading:
    """Takes a file's text apart, and notes what it finds."""

    def __init__(self, found: ConfigurationFile, text: str, mode: int) -> None:
        self._found = found
        self._mode = mode
        self._lines: Mapping[tuple[str | int, ...], int] = {}
        for key, value in self._parse(text).items():
            with self._noting(key):
                self._table(key, value)

    def _parse(self, text: str) -> dict[str, Any]:
        import tomllib

        from store.repositories.toml_lines import find_lines

        try:
            document = tomllib.loads(text)
            self._lines = find_lines(text)
        except tomllib.TOMLDecodeError as error:
            match = TOML_ERROR.fullmatch(str(error))
            line = (match and match["line"]) or text.count("\n") + 1
            message = match["message"] if match else error
            self._found.problems.append(InvalidName(f"{self._found.path} line {line}: {message}"))
        except RecursionError:
            self._found.problems.append(InvalidName(f"{self._found.path}: nested too deeply"))
        else:
            return document
        return {}

    def _table(self, key: str, value: object) -> None:
        if key not in TABLES:
            close = did_you_mean(key, TABLES)
            raise InvalidName(f"unknown key {key!r}{close}; use [repository.NAME], [defaults]")
        if not isinstance(value, dict):
            raise InvalidName(f"{key!r} is a table: write [repository.NAME] or [defaults]")
        if key == "defaults":
            self._found.defaults = self._options((key,), value)
            return
        for name, table in value.items():
            with self._noting(key, name):
                self._repository(name, table)

    def _repository(self, name: str, table: object) -> None:
        if not isinstance(table, dict):
            raise InvalidName(f"{name!r} stands outside a table: write [repository.NAME] above it")
        if not is_name(name):
            raise InvalidName(f"repository name {name!r}: use letters, digits, '_', '.' and '-'")
        if name in RESERVED_NAMES:
            raise InvalidName(f"repository name {name!r}: take another, that is a command")
        place = ("repository", name)
        options = self._options(place, table)
        if "url" not in table:
            raise InvalidName(f"repository {name!r} has no url")
        with self._noting(*place, "url"):
            url = _parse_configured_url(table["url"])
            self._found.repositories[name] = Repository(
                name, Given(url, self._origin(*place, "url")), options
            )

    def _options(self, place: tuple[str, ...], table: Mapping[str, object]) -> Layer:
        options: dict[str, Given] = {}
        for key, value in table.items():
            with self._noting(*place, key):
                if key != "url" or place == ("defaults",):
                    options[key] = self._option(place, key, value)
                    self._check_secrecy(key)
        return options

    def _option(self, place: tuple[str, ...], key: str, value: object) -> Given:
        where = f"repository {place[1]!r}" if len(place) > 1 else "[defaults]"
        if key not in BY_NAME:
            close = did_you_mean(key, ("url", *BY_NAME))
            raise InvalidName(f"unknown key {key!r} in {where}{close}")
        is_general = len(place) == 1
        if is_general and BY_NAME[key].kind is LIST:
            raise InvalidName(f"{key} belong to one repository, not into {where}")
        return Given(self._read(BY_NAME[key], value), self._origin(*place, key), is_general)

    def _check_secrecy(self, key: str) -> None:
        if BY_NAME[key].is_secret and stat.S_ISREG(self._mode) and self._mode & OTHERS:
            path = shlex.quote(str(self._found.path))
            raise PermissionDenied(f"{key} in a file that others can read; run chmod 600 {path}")

    def _read(self, option: Option, value: object) -> object:
        try:
            return option.kind.read_toml(value)
        except ValueError as error:
            shown = "" if option.is_secret else f" {value!r:.80}"
            raise InvalidName(f"{option.name}{shown}: {error}") from error

    def _origin(self, *place: str) -> str:
        return f"{self._found.path} line {self._lines.get(place, 1)}"

    @contextmanager
    def _noting(self, *place: str) -> Iterator[None]:
        """Make a problem at that line of what is raised."""
        try:
            yield
        except StoreError as error:
            self._found.problems.append(type(error)(f"{self._origin(*place)}: {error}"))


def _parse_configured_url(value: object) -> str:
    """In a file no path is relative: to what?"""
    if not isinstance(value, str) or not value.startswith(("/", "file:///", S3_SCHEME)):
        raise InvalidName(f'url {value!r:.80}: write it as "/path" or "s3://bucket/datastore"')
    return parse_url(value)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'endpoint'?`, or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(word.lower().replace("_", "-"), known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""

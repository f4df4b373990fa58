"""The configuration: which repositories have names, and what holds for each.

`/etc/vaultway/config.toml`, then the user's own, whose repositories and defaults come before those
of the same name there; or one file that was named, alone.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from store.datastore.configuration_file import ConfigurationFile, Entry, read_configuration_file
from store.datastore.options import Given, Layer, merge
from store.datastore.repository_url import is_name, parse_url
from store.datastore.settings import RepositorySettings, check_files, config_home, make_settings
from store.errors import InvalidName, NotFound, PermissionDenied, StoreError

FILE_NAME = "config.toml"
SYSTEM_FILE = Path("/etc/vaultway", FILE_NAME)


@dataclass(frozen=True, slots=True)
class Chosen:
    """One repository, and all that is said of it. `name` is None for one without."""

    name: str | None
    url: Given
    options: Layer


@dataclass
class Configuration:
    """What the files say.

    Attributes:
        places: where files were looked for.
        unreadable: those that this user may not read. They are left out: a system's file may have
            secrets.
        problems: what is wrong with them, in their order.
    """

    places: Sequence[Path] = ()
    entries: dict[str, Entry] = field(default_factory=dict)
    defaults: Layer = field(default_factory=dict)
    unreadable: list[Path] = field(default_factory=list)
    problems: list[StoreError] = field(default_factory=list)

    def add(self, file: ConfigurationFile) -> None:
        """Take a file's entries; they replace those of the same name."""
        self.entries |= file.entries
        self.defaults = merge(file.defaults, self.defaults)
        self.problems += file.problems

    def choose(self, repository: str, *layers: Layer) -> Chosen:
        """What holds for `repository`, a configured name or a place (`parse_url`).

        `layers` come before the configuration's own options, the strongest first.

        Raises NotFound: no such name. InvalidName: not a repository.
        """
        entry = self.entries.get(repository)
        if entry is not None:
            return Chosen(entry.name, entry.url, merge(*layers, entry.options, self.defaults))
        if is_name(repository):
            raise NotFound(f"repository {repository!r} is not configured{self._advice()}")
        url = Given(parse_url(repository), "")
        return Chosen(None, url, merge(*layers, self.defaults))

    def settings(self, chosen: Chosen) -> RepositorySettings:
        """The settings that were chosen, mirrors and all.

        Raises InvalidName: they don't go together. NotFound: a mirror is not configured.
        """
        mirrors = chosen.options.get("mirrors")
        sites = self._mirrors(chosen, mirrors) if mirrors else ()
        return make_settings(chosen.url.value, chosen.name, chosen.options, sites)

    def _mirrors(self, chosen: Chosen, mirrors: Given) -> tuple[RepositorySettings, ...]:
        sites = []
        for repository in mirrors.value:
            try:
                mirror = self.choose(repository)
                self._refuse_chain(chosen, mirror)
                sites.append(self.settings(mirror))
            except StoreError as error:
                raise type(error)(f"{mirrors.origin}: mirror {repository}: {error}") from error
        return tuple(sites)

    def _refuse_chain(self, chosen: Chosen, mirror: Chosen) -> None:
        """Mirrors of mirrors would be asked twice, or for ever."""
        if mirror.url.value == chosen.url.value:
            raise InvalidName("is the repository itself")
        if "mirrors" in mirror.options:
            raise InvalidName("has mirrors itself, a loop or a chain; name all sites in one place")

    def check(self) -> None:
        """Add what is wrong with each repository as a whole to the problems."""
        for name in self.entries:
            try:
                self.settings(self.choose(name))
            except StoreError as error:
                self.problems.append(error)

    def check_files(self, chosen: Chosen, *names: str) -> None:
        """See whether the files exist that the options `names` (all) of it and its mirrors name.

        Raises NotFound, PermissionDenied, BackendError.
        """
        check_files(chosen.url.value, chosen.options, *names)
        for mirror in chosen.options["mirrors"].value if "mirrors" in chosen.options else ():
            self.check_files(self.choose(mirror), *names)

    def _advice(self) -> str:
        if self.entries:
            text = f"; configured: {', '.join(sorted(self.entries))}"
        else:
            text = f"; name it in {self.places[-1]}, or write /path or s3://bucket/datastore"
        if self.unreadable:
            text += f" (not readable for you: {', '.join(map(str, self.unreadable))})"
        return text


def load_configuration(file: str | None = None) -> Configuration:
    """Read and check the configuration: `file`, or the usual places.

    Raises NotFound: there is no `file`. PermissionDenied, BackendError: it can't be read.
    InvalidName, PermissionDenied: it is wrong; the first problem.
    """
    configuration = read_configuration(file)
    if configuration.problems:
        raise configuration.problems[0]
    return configuration


def read_configuration(file: str | None = None) -> Configuration:
    """As `load_configuration`, with all problems of the contents in `problems`."""
    file = file or os.environ.get("VAULTWAY_CONFIG")
    places = (Path(file),) if file else (SYSTEM_FILE, *_user_file())
    configuration = Configuration(places)
    for place in places:
        try:
            configuration.add(read_configuration_file(place))
        except NotFound:
            if file:
                raise
        except PermissionDenied:
            if place != SYSTEM_FILE:
                raise
            configuration.unreadable.append(place)
    configuration.check()
    return configuration


def _user_file() -> Iterator[Path]:
    with suppress(InvalidName):  # a user without a home has none
        yield config_home() / FILE_NAME

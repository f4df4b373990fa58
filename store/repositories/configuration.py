"""The configuration: which repositories have names, and what holds for each.

`/etc/vaultway/config.toml`, then the user's own, whose repositories and defaults come before those
of the same name there; or one file that was named, alone.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from store.datastore.xdg import config_home
from store.errors import InvalidName, NotFound, PermissionDenied, StoreError
from store.repositories.options import Given, Layer, Repository, merge
from store.repositories.repository_url import is_name, parse_url
from store.repositories.settings import RepositorySettings, check_files, make_settings

if TYPE_CHECKING:
    from store.repositories.configuration_file import ConfigurationFile

FILE_NAME = "config.toml"
SYSTEM_FILE = Path("/etc/vaultway", FILE_NAME)


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
    repositories: dict[str, Repository] = field(default_factory=dict)
    defaults: Layer = field(default_factory=dict)
    unreadable: list[Path] = field(default_factory=list)
    problems: list[StoreError] = field(default_factory=list)

    def add(self, file: "ConfigurationFile") -> None:
        """Take a file's repositories; they replace those of the same name."""
        self.repositories |= file.repositories
        self.defaults = merge(file.defaults, self.defaults)
        self.problems += file.problems

    def choose(self, text: str, *layers: Layer) -> Repository:
        """The repository that `text` names or is the place of (`parse_url`), and what holds for it.

        `layers` come before the configuration's own options, the strongest first.

        Raises NotFound: no such name. InvalidName: not a repository.
        """
        if (named := self.repositories.get(text)) is not None:
            options = merge(*layers, named.options, self.defaults)
            return Repository(named.name, named.url, options)
        if is_name(text):
            raise NotFound(f"repository {text!r} is not configured{self._advice()}")
        return Repository(None, Given(parse_url(text), ""), merge(*layers, self.defaults))

    def settings(self, repository: Repository) -> RepositorySettings:
        """The settings of what was chosen, mirrors and all.

        Raises InvalidName: they don't go together. NotFound: a mirror is not configured.
        """
        mirrors = tuple(map(self.settings, self._mirrors(repository)))
        return make_settings(repository, mirrors)

    def _mirrors(self, repository: Repository) -> list[Repository]:
        """Mirrors of mirrors would be asked twice, or for ever, and are refused."""
        given = repository.options.get("mirrors")
        mirrors = []
        for text in given.value if given else ():
            try:
                mirror = self.choose(text)
                if mirror.url.value == repository.url.value:
                    raise InvalidName("is the repository itself")
                if "mirrors" in mirror.options:
                    raise InvalidName(
                        "has mirrors itself, a loop or a chain; name all in one place"
                    )
            except StoreError as error:
                origin = given.origin if given else ""
                raise type(error)(f"{origin}: mirror {text}: {error}") from error
            mirrors.append(mirror)
        return mirrors

    def check(self) -> None:
        """Add what is wrong with each repository as a whole to the problems."""
        for name in self.repositories:
            try:
                self.settings(self.choose(name))
            except StoreError as error:
                self.problems.append(error)

    def check_files(self, repository: Repository, *names: str) -> None:
        """See whether the files can be read that the options `names` (all) name, its mirrors' too.

        Raises NotFound, PermissionDenied, BackendError.
        """
        for site in (repository, *self._mirrors(repository)):
            check_files(site, *names)

    def _advice(self) -> str:
        if self.repositories:
            text = f"; configured: {', '.join(sorted(self.repositories))}"
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
        if not file and _is_absent(place):
            continue
        from store.repositories.configuration_file import read_configuration_file

        try:
            configuration.add(read_configuration_file(place))
        except PermissionDenied:
            if place != SYSTEM_FILE:
                raise
            configuration.unreadable.append(place)
    configuration.check()
    return configuration


def _user_file() -> Iterator[Path]:
    with suppress(InvalidName):  # a user without a home has none
        yield config_home() / FILE_NAME


def _is_absent(place: Path) -> bool:
    try:
        place.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # reading it says so
        pass
    return False

"""The flags of a repository's options: one for each in the table."""

import argparse
from typing import Any

from store.cli.repository import PLAIN_ARGUMENTS
from store.errors import InvalidName
from store.repositories.option_kinds import BOOLEAN
from store.repositories.options import OPTIONS, Given, Option, read

TITLE = "repository options, also for the configuration file and mount -o"


def add_option_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and them, in a group of their own."""
    group = parser.add_argument_group(TITLE)
    group.add_argument(
        "--config", metavar="FILE", help="this configuration file only (default: $VAULTWAY_CONFIG)"
    )
    for option in OPTIONS:
        if option.name in PLAIN_ARGUMENTS:
            continue
        flags, nargs = [f"--{option.name}"], None
        if option.kind is BOOLEAN:
            flags, nargs = [f"--{option.name}", f"--no-{option.name}"], 0
        group.add_argument(
            *flags,
            action=StoreOption,
            option=option,
            nargs=nargs,
            dest="repository_options",
            metavar=option.kind.metavar,
            help=option.summary,
        )


class StoreOption(argparse.Action):
    """Keeps an option of the repository, with the flag that gave it."""

    def __init__(self, *, option: Option, **settings: Any) -> None:  # noqa: ANN401 - argparse's
        super().__init__(**settings)
        self.option = option

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,  # noqa: ANN401 - argparse's
        option_string: str | None = None,
    ) -> None:
        """Read the value of the flag; one without is true, or false with `--no-`."""
        text = values if self.nargs is None else str(not str(option_string).startswith("--no-"))
        try:
            value = read(self.option, text, str(option_string))
        except InvalidName as error:
            raise argparse.ArgumentError(None, str(error)) from error
        given = getattr(namespace, self.dest) or {}
        setattr(namespace, self.dest, given | {self.option.name: Given(value, str(option_string))})

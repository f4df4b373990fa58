"""`vaultway config`: see whether the configuration is right, and what it comes to."""

import os
from typing import TYPE_CHECKING, Any

from store.cli.options import (
    add_command,
    add_noun,
    add_output_option,
    add_repository_options,
    layers,
)
from store.cli.output import Column, Row, render, say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from store.errors import StoreError
    from store.repositories.configuration import Configuration
    from store.repositories.options import Option, Repository

HIDDEN = "(hidden)"
PREFIX = "VAULTWAY_"
OTHER_VARIABLES = frozenset((f"{PREFIX}CONFIG", f"{PREFIX}DEBUG"))
NOTES = """\
the configuration is /etc/vaultway/config.toml and ~/.config/vaultway/config.toml, whose
repositories replace those of the same name; or the one file of --config or $VAULTWAY_CONFIG:

  [defaults]                                # for every repository, named or not
  connections = 32

  [repository.prod]                         # vaultway mount prod /mnt/vault
  url = "s3://backups/vault"                # or a directory: "/srv/vault"
  endpoint = "https://s3.example.com"
  region = "eu-south-2"
  access-key = "AK..."
  secret-key-file = "/etc/vaultway/prod.secret"      # or secret-key, secret-key-cmd
  cache-size = "64G"                        # chunks on a fast disk; cache = "/nvme/vaultway"
  rate-in = "50M"                           # bytes a second
  mirrors = ["amsterdam"]
  keyfile = "/etc/vaultway/vault.json"

  [repository.amsterdam]
  url = "s3://copies/vault"
  profile = "amsterdam"                     # of ~/.aws/config

Each key is a flag, too (--cache-size 64G), a mount option (-o cache-size=64G) and a variable
(VAULTWAY_CACHE_SIZE=64G). Flags and mount options come first, then variables, then the file.
Without keys there, S3 takes those of AWS_ACCESS_KEY_ID, ~/.aws and so on, as the AWS tools do.
`vaultway config show --help` lists all of them.
"""


def add_commands(subparsers: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    """Declare the commands."""
    noun = add_noun(subparsers, "config", "See the configuration of repositories, check it.", NOTES)
    command = add_command(
        noun,
        "check",
        check,
        "Check the configuration; say all that is wrong with it.",
        "vaultway config check ~/.config/vaultway/config.toml --connect",
    )
    command.add_argument("file", metavar="FILE", nargs="?", help="this one (default: the usual)")
    command.add_argument("--connect", action="store_true", help="open every repository, and report")
    add_output_option(command)
    command = add_command(
        noun,
        "show",
        show,
        "Show what holds for a repository, and where it was said; secrets are hidden.",
        "vaultway config show prod --output-format json-pretty",
    )
    command.add_argument(
        "name", metavar="NAME", nargs="?", help="a repository (default: all that have names)"
    )
    command.add_argument("--keyfile", metavar="PATH", help="encryption key of the repository")
    add_repository_options(command, repository=False)
    add_output_option(command)


def check(args: "argparse.Namespace") -> int:
    """Print a line for each repository, and each problem on stderr; the first's exit code."""
    from store.cli.progress_bar import write_line
    from store.repositories.configuration import read_configuration

    configuration = read_configuration(args.file)
    problems = list(configuration.problems)
    for problem in problems:
        write_line(f"error: {problem}")
    for place in configuration.unreadable:
        write_line(f"{place}: not readable for you, left out")
    for advice in _unknown_variables():
        write_line(f"warning: {advice}")
    if not problems:
        _say_if_empty(configuration, args.output_format)
    rows: list[Row] = []
    for name in sorted(configuration.repositories) if not problems else ():
        chosen = configuration.choose(name)
        found = _problem_of(configuration, chosen, connect=args.connect)
        state = "opened" if args.connect else "ok"
        rows.append({"repository": name, "url": chosen.url.value, "state": str(found or state)})
        problems += [found] if found else []
    columns = (Column("repository"), Column("url"), Column("state"))
    render(rows, args.output_format, columns)
    return problems[0].exit_code if problems else 0


def _unknown_variables() -> "Iterator[str]":
    """A line for each variable that looks like one of ours and is none."""
    from store.repositories.configuration_file import did_you_mean
    from store.repositories.options import OPTIONS

    known = {option.variable: option.name for option in OPTIONS}
    for variable in sorted(os.environ.keys() - known.keys() - OTHER_VARIABLES):
        if variable.startswith(PREFIX):
            close = did_you_mean(variable.removeprefix(PREFIX), known.values())
            yield f"${variable} means nothing{close}"


def _say_if_empty(configuration: "Configuration", output_format: str) -> None:
    """Say where repositories were looked for, when there are none."""
    if not configuration.repositories and output_format == "text":
        say(f"no repository has a name; looked for {', '.join(map(str, configuration.places))}")


def _problem_of(
    configuration: "Configuration", chosen: "Repository", *, connect: bool
) -> "StoreError | None":
    """What is wrong with one repository: files that it names, or when it is opened."""
    from store.errors import StoreError
    from store.repositories.repository import open_datastore

    try:
        configuration.check_files(chosen)
        if connect:
            open_datastore(configuration.settings(chosen)).close()
    except StoreError as error:
        return error
    return None


def show(args: "argparse.Namespace") -> None:
    """Print one line for each option that has a value."""
    from store.repositories.configuration import load_configuration

    configuration = load_configuration(args.config)
    names = [args.name] if args.name else sorted(configuration.repositories)
    if not names:
        _say_if_empty(configuration, args.output_format)
    rows: list[Row] = []
    for name in names:
        chosen = configuration.choose(name, *layers(args))
        configuration.settings(chosen)  # whether they go together
        rows += _rows(name, chosen)
    for row in rows:
        text = row.pop("text")
        row["value"] = text if args.output_format == "text" else row["value"]
    columns = (Column("repository"), Column("option"), Column("value"), Column("from"))
    render(rows, args.output_format, columns)


def _rows(name: str, chosen: "Repository") -> "Iterator[Row]":
    """The url, then what holds, in the order of the table of options."""
    from store.repositories.options import OPTIONS, default_of
    from store.repositories.settings import applicable

    url = chosen.url
    yield _row(name, "url", url.value, url.value, url.origin or "command line")
    given = applicable(chosen)
    for option in OPTIONS:
        if option.name in given:
            value, origin = given[option.name].value, given[option.name].origin
        elif (value := default_of(option, url.value, given)) is not None:
            origin = "default"
        else:
            continue
        yield _row(name, option.name, *_shown(option, value), origin)


def _shown(option: "Option", value: Any) -> tuple[Any, str]:  # noqa: ANN401 - any option's
    """A value for JSON, and for people."""
    if option.is_secret:
        return HIDDEN, HIDDEN
    text = option.kind.format(value)
    return (value if isinstance(value, bool | int | float | tuple) else text), text


def _row(name: str, option: str, value: object, text: str, origin: str) -> "Row":
    return {"repository": name, "option": option, "value": value, "text": text, "from": origin}

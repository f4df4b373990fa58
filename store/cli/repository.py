"""Which repository a command is for, and all that its user says of it. Cheap to import."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from store.errors import InvalidName
from store.names import Namespace

if TYPE_CHECKING:
    import argparse

    from store.datastore.datastore import Datastore
    from store.repositories.options import Layer
    from store.repositories.repository import Beside
    from store.repositories.settings import RepositorySettings

PLAIN_ARGUMENTS = ("ns", "keyfile")
"""Options that have arguments of their own: PBS's, on some commands only."""


def open_repository(
    args: "argparse.Namespace", beside: "Beside" = contextlib.nullcontext
) -> "Datastore":
    """Open the datastore of the command. As `open_datastore`, and raises as `get_settings`."""
    from store.repositories.repository import open_datastore

    return open_datastore(get_settings(args), beside)


def open_without_cache(args: "argparse.Namespace") -> "Datastore":
    """The same for who asks what is really there, and not what this machine has kept."""
    from dataclasses import replace

    from store.repositories.repository import open_datastore

    return open_datastore(replace(get_settings(args), cache=None, cache_bytes=0))


def get_settings(args: "argparse.Namespace") -> "RepositorySettings":
    """What holds for the command's repository, worked out once.

    The command line comes before `-o`, that before the environment, and that before the
    configuration file.

    Raises:
        InvalidName: no repository, or options that are wrong or don't go together.
        NotFound: a name that is not configured, or a file that options name.
    """
    if getattr(args, "settings", None) is None:
        from store.repositories.configuration import load_configuration

        configuration = load_configuration(args.config)
        args.chosen = configuration.choose(repository_name(args), *layers(args))
        configuration.check_files(args.chosen, "ca-file", "secret-key-file")
        args.settings = configuration.settings(args.chosen)
    settings: RepositorySettings = args.settings
    return settings


def repository_name(args: "argparse.Namespace") -> str:
    """The repository as the user wrote it. Raises InvalidName: nobody did."""
    repository: str | None = args.repository or os.environ.get("PBS_REPOSITORY")
    if not repository:
        raise InvalidName("no repository: name one, for example /srv/vault, or set PBS_REPOSITORY")
    return repository


def layers(args: "argparse.Namespace") -> "tuple[Layer, ...]":
    """What the command line and the environment give, the strongest first. Raises InvalidName."""
    from store.repositories.options import BY_NAME, Given, environment_layer, read

    flags = dict(getattr(args, "repository_options", None) or {})
    for name in PLAIN_ARGUMENTS:
        if (text := getattr(args, name, None)) is not None:
            flags[name] = Given(read(BY_NAME[name], text, f"--{name}"), f"--{name}")
    return flags, getattr(args, "mount_options", {}), environment_layer(os.environ)


def get_namespace(args: "argparse.Namespace") -> Namespace:
    """The namespace of `--ns`, PBS_NAMESPACE or the configuration, else the root.

    Raises what `get_settings` does.
    """
    text = get_settings(args).namespace if args.ns is None else args.ns
    return Namespace.parse(text or "")


def configured_keyfile(args: "argparse.Namespace") -> Path | None:
    """The key file of the repository, if the command has one.

    Raises what `get_settings` does, and NotFound, PermissionDenied: it is named and can't be read.
    """
    if not hasattr(args, "repository"):
        return None
    from store.repositories.settings import check_files

    settings = get_settings(args)
    check_files(args.chosen, "keyfile")
    return settings.keyfile

"""A repository's secrets, fetched from where its settings say they are."""

import os
from collections.abc import Mapping
from dataclasses import replace

from store.backends.base import storage_error
from store.backends.s3_settings import S3_SCHEME
from store.errors import InvalidName, PermissionDenied
from store.repositories.secret_sources import (
    check_private,
    first_line,
    read_secret_file,
    run_secret_command,
)
from store.repositories.settings import RepositorySettings

S3_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
S3_TOKEN_VARIABLES = ("AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")


def with_secrets(
    settings: RepositorySettings, environment: Mapping[str, str] = os.environ
) -> RepositorySettings:
    """The settings with secrets instead of where to get them; for its mirrors, too.

    Keys in the environment become settings where boto3 would take them from there: the process
    that opens the datastore may not have it.

    Raises InvalidName, NotFound, PermissionDenied, BackendError.
    """
    mirrors = tuple(with_secrets(mirror, environment) for mirror in settings.mirrors)
    found = replace(settings, mirrors=mirrors, secret_key_file=None, secret_key_cmd=None)
    if settings.secret_key_file or settings.secret_key_cmd:
        return replace(found, secret_key=_secret_key(settings))
    has_keys = settings.access_key or settings.profile
    if has_keys or not settings.url.startswith(S3_SCHEME):
        return found
    keys = [environment.get(name) for name in S3_VARIABLES]
    if not all(keys):
        return found
    token = next(filter(None, map(environment.get, S3_TOKEN_VARIABLES)), None)
    return replace(found, access_key=keys[0], secret_key=keys[1], session_token=token)


def _secret_key(settings: RepositorySettings) -> str:
    what = f"repository {settings.name or settings.url}: secret-key"
    try:
        if settings.secret_key_file:
            what = f"{what}-file {settings.secret_key_file}"
            check_private(settings.secret_key_file.stat(), what)
            raw = read_secret_file(settings.secret_key_file)
        else:
            command, option = settings.secret_key_cmd or "", f"{what}-cmd"
            what = f"{option} {command}"
            raw = run_secret_command(command, PermissionDenied, option)
        secret = first_line(raw).decode()
    except OSError as error:
        raise storage_error(error, what) from error
    except UnicodeDecodeError as error:
        raise InvalidName(f"{what}: not UTF-8") from error
    if not secret:
        raise InvalidName(f"{what}: gave nothing")
    return secret

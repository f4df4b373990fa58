"""Who we are and where the bucket is, as boto3 finds it: arguments, environment, profile, role."""

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from store.backends.s3.config import S3Config
from store.backends.s3.http.signing import Credentials
from store.backends.s3_settings import S3_SCHEME
from store.errors import InvalidName, PermissionDenied

DEFAULT_REGION = "us-east-1"
KEY_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
ADDRESSING = {None: "auto", True: "path", False: "virtual"}


class Endpoint(NamedTuple):
    """Where a bucket answers: `path` comes before every key, "" or `/bucket`, escaped."""

    is_secure: bool
    host: str
    port: int | None
    path: str
    region: str
    ca_file: str | None

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.is_secure else 'http'}://{self.host_header}"


class Access:
    """The credentials of one configuration, refreshed as they expire, and its endpoint.

    Thread-safe.
    """

    def __init__(self, config: S3Config) -> None:
        """Raises InvalidName (no such profile, no URL), PermissionDenied (no credentials)."""
        self._config = config
        self._lock = threading.Lock()
        self._given = given_credentials(config)
        endpoint = given_endpoint(config) if self._given else None
        if endpoint is not None:
            self.endpoint = endpoint
            return
        self._given = None
        self._session = self._new_session()
        self._source = self._find_credentials()
        self.endpoint = self._find_endpoint()

    def _new_session(self) -> Any:  # noqa: ANN401 - boto3 has no types
        import boto3
        from botocore.exceptions import BotoCoreError

        config = self._config
        try:
            return boto3.Session(
                aws_access_key_id=config.access_key,
                aws_secret_access_key=config.secret_key,
                aws_session_token=config.session_token,
                region_name=config.region,
                profile_name=config.profile,
            )
        except BotoCoreError as error:
            raise InvalidName(f"{S3_SCHEME}{config.bucket}: {error}") from error

    def _find_credentials(self) -> Any:  # noqa: ANN401
        from botocore.exceptions import BotoCoreError

        try:
            found = self._session.get_credentials()
        except BotoCoreError as error:
            raise PermissionDenied(f"{S3_SCHEME}{self._config.bucket}: {error}") from error
        if found is None:
            raise PermissionDenied(
                f"{S3_SCHEME}{self._config.bucket}: no credentials; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or name a profile"
            )
        return found

    def _find_endpoint(self) -> Endpoint:
        """Let boto3 make up the address of the bucket, and take it apart."""
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        config, region = self._config, self._session.region_name or DEFAULT_REGION
        style = Config(s3={"addressing_style": ADDRESSING[config.path_style]})
        try:
            client = self._session.client(
                "s3", region_name=region, endpoint_url=config.endpoint, config=style
            )
            url = urlsplit(_bucket_url(client, config.bucket))
            ca_file = config.ca_file or self._session._session.get_config_variable("ca_bundle")
            return Endpoint(
                url.scheme == "https", url.hostname or "", url.port, url.path.rstrip("/"),
                client.meta.region_name, str(ca_file) if ca_file else None,
            )  # fmt: skip
        except (BotoCoreError, ValueError) as error:
            raise InvalidName(f"{S3_SCHEME}{config.bucket}: {error}") from error

    def credentials(self) -> Credentials:
        """Those of now. Raises PermissionDenied when they can't be had any more."""
        if self._given is not None:
            return self._given
        from botocore.exceptions import BotoCoreError

        try:
            return Credentials(*self._source.get_frozen_credentials()[:3])
        except BotoCoreError as error:
            raise PermissionDenied(f"{S3_SCHEME}{self._config.bucket}: {error}") from error

    def renew(self, expired: Credentials) -> None:
        """Look for credentials anew: those used are `expired`, says the server."""
        with self._lock:
            if self.credentials() != expired:
                return  # another was here
            if self._given is not None:
                self._given = given_credentials(self._config) or expired
                return
            self._session = self._new_session()
            self._source = self._find_credentials()


def given_credentials(config: S3Config) -> Credentials | None:
    """Those that boto3 would find first, where that is certain without it."""
    keys = config.access_key, config.secret_key, config.session_token
    if config.access_key is None and config.profile is None and "AWS_PROFILE" not in os.environ:
        keys = tuple(map(os.environ.get, KEY_VARIABLES))  # type: ignore[assignment]
    access, secret, token = keys
    return Credentials(access, secret, token or None) if access and secret else None


def given_endpoint(config: S3Config) -> Endpoint | None:
    """The same of the endpoint: where it is named in full, and no AWS configuration has a say.

    To load boto3 takes a third of a second, longer than many a command.
    """
    region = config.region or os.environ.get("AWS_DEFAULT_REGION")
    others = "AWS_CONFIG_FILE" in os.environ or Path("~/.aws/config").expanduser().exists()
    if config.endpoint is None or config.path_style is None or others:
        return None
    try:
        url = urlsplit(config.endpoint)
        host, port = url.hostname, url.port
    except ValueError:
        return None
    if url.scheme not in ("http", "https") or not host or url.query or url.path.strip("/"):
        return None
    path = f"/{config.bucket}" if config.path_style else ""
    host = host if config.path_style else f"{config.bucket}.{host}"
    ca_file = config.ca_file or os.environ.get("AWS_CA_BUNDLE")
    return Endpoint(
        url.scheme == "https", host, port, path, region or DEFAULT_REGION,
        str(ca_file) if ca_file else None,
    )  # fmt: skip


def _bucket_url(client: Any, bucket: str) -> str:  # noqa: ANN401 - boto3 has no types
    """Where boto3 would send a request about the bucket; nothing is sent."""
    urls: list[str] = []

    def answer(params: dict[str, Any], **_: object) -> tuple[SimpleNamespace, dict[str, Any]]:
        urls.append(params["url"])
        return SimpleNamespace(status_code=200), {}

    client.meta.events.register("before-call.s3.HeadBucket", answer)
    client.head_bucket(Bucket=bucket)
    return urls[0]

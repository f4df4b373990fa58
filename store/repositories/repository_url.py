"""What a user writes as a repository: a place, or a configured name (design: section 2)."""

import re
from pathlib import Path

from store.backends.s3_settings import S3_SCHEME
from store.errors import InvalidName
from store.names import SAFE_ID

FILE_SCHEME = "file://"
SCHEME = re.compile(r"([a-z][a-z0-9+.\-]*)://")
SUPPORTED = "use /path, s3://bucket/datastore or a configured name"


def is_name(text: str) -> bool:
    """Whether `text` can only be a configured name."""
    return SAFE_ID.fullmatch(text) is not None


def parse_url(text: str) -> str:
    """An absolute path, or `s3://bucket/datastore`, of what a user wrote.

    Args:
        text: `/path`, `file:///path`, `s3://bucket/datastore`; also a relative path with a `/` or a
            leading `.`.
    Raises:
        InvalidName: it is none of these.
    """
    if text.startswith(S3_SCHEME):
        from store.backends.s3.config import S3Config

        config = S3Config(*S3Config.parse_url(text))
        return f"{S3_SCHEME}{config.bucket}/{config.datastore}"
    return str(_local_path(text))


def _local_path(text: str) -> Path:
    if text.startswith(FILE_SCHEME):
        path = Path(text.removeprefix(FILE_SCHEME))
        if not path.is_absolute():
            raise InvalidName(f"repository {text!r}: write it as file:///path")
        return path
    if scheme := SCHEME.match(text):
        raise InvalidName(f"repository {text!r}: {scheme[1]} is not supported; {SUPPORTED}")
    if text.startswith((".", "/")) or ("/" in text and ":" not in text):
        return Path(text).absolute()
    if not text:
        raise InvalidName("no repository given; set --repository or PBS_REPOSITORY")
    if is_name(text):
        raise InvalidName(f"repository {text!r}: not a configured name; use /path")
    raise InvalidName(f"repository {text!r}: servers are not supported yet; {SUPPORTED}")

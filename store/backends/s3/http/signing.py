"""AWS Signature Version 4, header form.

Our own: botocore's signer makes the same, at several times the cost (note 0010).
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote

from store.format.buffer import Buffer

ALGORITHM = "AWS4-HMAC-SHA256"
UNRESERVED = "-_.~"


class Credentials(NamedTuple):
    """What a request is signed with."""

    access_key: str
    secret_key: str
    session_token: str | None = None


def encode_query(parameters: Iterable[tuple[str, str]]) -> str:
    """A query as the signature wants it, sorted and escaped, which is how it is sent, too."""
    escaped = ((quote(name, UNRESERVED), quote(text, UNRESERVED)) for name, text in parameters)
    return "&".join(f"{name}={text}" for name, text in sorted(escaped))


def quote_path(path: str) -> str:
    """A path as the signature wants it, which is how it is sent, too."""
    return quote(path, f"/{UNRESERVED}")


def hash_parts(parts: Iterable[Buffer]) -> str:
    """SHA-256 of a body in several buffers."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def signed_headers(
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    *,
    payload_hash: str,
    credentials: Credentials,
    region: str,
    now: datetime,
) -> dict[str, str]:
    """All headers of a request: `headers`, those the signature adds, and the signature.

    Args:
        method: of the request.
        path, query: as `quote_path` and `encode_query` made them.
        headers: lower-case names, `host` among them; all are signed.
        payload_hash: SHA-256 of the body, so that the server finds what the way there did to it.
        credentials, region: the signer's.
        now: in UTC. Servers refuse what is more than 15 minutes away from their clock.
    """
    time = now.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{time[:8]}/{region}/s3/aws4_request"
    result = {**headers, "x-amz-content-sha256": payload_hash, "x-amz-date": time}
    if credentials.session_token:
        result["x-amz-security-token"] = credentials.session_token
    names = sorted(result)
    canonical = _lines(
        method, path, query, *(f"{name}:{result[name].strip()}" for name in names),
        "", ";".join(names), payload_hash,
    )  # fmt: skip
    to_sign = _lines(ALGORITHM, time, scope, hashlib.sha256(canonical).hexdigest())
    key = _signing_key(credentials.secret_key, tuple(scope.split("/")))
    result["authorization"] = (
        f"{ALGORITHM} Credential={credentials.access_key}/{scope}, "
        f"SignedHeaders={';'.join(names)}, Signature={hmac.digest(key, to_sign, 'sha256').hex()}"
    )
    return result


def _lines(*lines: str) -> bytes:
    return "\n".join(lines).encode()


@lru_cache(maxsize=8)
def _signing_key(secret_key: str, scope: tuple[str, ...]) -> bytes:
    """The key of one day, region and service."""
    key = f"AWS4{secret_key}".encode()
    for part in scope:
        key = hmac.digest(key, part.encode(), "sha256")
    return key

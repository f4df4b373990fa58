"""Where a bucket is and how to talk to it."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from store.backends.s3.tls import parse_fingerprint
from store.errors import InvalidName
from store.names import check_safe_id

S3_SCHEME = "s3://"
BUCKET = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")
DEFAULT_CONNECTIONS = 16
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class S3Config:
    """One datastore in one bucket.

    Attributes:
        bucket, datastore: every key starts with `<datastore>/`.
        endpoint: `https://host[:port]` (or http://); None is AWS's own for the region.
        region: None is what the environment or profile says, then us-east-1.
        path_style: the bucket is in the path, not in the host name; None lets boto3 decide.
        ca_file: certificates to trust instead of the system's.
        fingerprint: SHA-256 of the server's certificate, 32 bytes as `aa:bb:…`; trusted whoever
            signed it.
        access_key, secret_key, session_token: None is what boto3 finds (environment, profile).
        profile: of ~/.aws/config.
        conditional_put: whether the provider honours `If-None-Match: *`. Without it, what must be
            new is looked for first, and the locks alone keep two writers apart.
        take_over: write although the in-use marker names a PBS.
        connections: how many requests at once.
        timeouts: in seconds, to connect and for each piece of an answer; also until all of it is
            there, plus its size at 16 KiB/s.
    """

    bucket: str
    datastore: str
    endpoint: str | None = None
    region: str | None = None
    path_style: bool | None = None
    ca_file: Path | None = None
    fingerprint: str | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    profile: str | None = None
    conditional_put: bool = True
    take_over: bool = False
    connections: int = DEFAULT_CONNECTIONS
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    read_timeout_s: float = READ_TIMEOUT_S

    def __post_init__(self) -> None:
        if not BUCKET.fullmatch(self.bucket):
            raise InvalidName(f"bucket {self.bucket!r}: not a bucket name")
        check_safe_id(self.datastore, "datastore name")
        if self.fingerprint is not None:
            parse_fingerprint(self.fingerprint)

    @staticmethod
    def parse_url(url: str) -> tuple[str, str]:
        """Bucket and datastore of `s3://bucket/datastore`. Raises InvalidName."""
        bucket, _, datastore = url.removeprefix(S3_SCHEME).strip("/").partition("/")
        if not (url.startswith(S3_SCHEME) and bucket and datastore) or "/" in datastore:
            raise InvalidName(f"repository {url!r}: write it as s3://bucket/datastore")
        return bucket, check_safe_id(datastore, "datastore name")

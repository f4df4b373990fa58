"""How to talk to a bucket. Cheap to import: every command does."""

from dataclasses import dataclass, field
from pathlib import Path

S3_SCHEME = "s3://"


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """What the user may say of a bucket, and what holds where he does not.

    Attributes:
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
    connections: int = 16
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0

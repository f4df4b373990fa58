"""One datastore in one bucket, and how to talk to it."""

import re
from dataclasses import dataclass

from store.backends.s3.tls import parse_fingerprint
from store.backends.s3_settings import S3_SCHEME, S3Settings
from store.errors import InvalidName
from store.names import check_safe_id

BUCKET = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True)
class S3Config(S3Settings):
    """One datastore in one bucket: every key starts with `<datastore>/`."""

    bucket: str
    datastore: str

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

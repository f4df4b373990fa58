"""The XML of S3: listings, and the deletion of many objects."""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple
from urllib.parse import unquote_plus
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from store.format.buffer import Buffer


class Listed(NamedTuple):
    """One object of a listing: bytes, and seconds since the epoch on the server's clock."""

    key: str
    size: int
    modified_s: float


class Page(NamedTuple):
    """One answer of a listing; `server_time_s` is its Date header."""

    objects: list[Listed]
    prefixes: list[str]
    server_time_s: float


class Listing(NamedTuple):
    """The body of an answer to ListObjectsV2; `next_token` is "" on the last page."""

    objects: list[Listed]
    prefixes: list[str]
    next_token: str


def parse_listing(body: Buffer) -> Listing:
    """Read the body of an answer to ListObjectsV2. Raises ValueError: it is none."""
    root = _parse(body, "ListBucketResult")
    is_escaped = root.findtext("{*}EncodingType") == "url"

    def key(text: str | None) -> str:
        return unquote_plus(text or "") if is_escaped else text or ""

    objects = []
    for element in root.iterfind("{*}Contents"):
        # One pass: a walk over all chunks does this a million times.
        found = {child.tag.rpartition("}")[2]: child.text or "" for child in element}
        time = datetime.fromisoformat(found.get("LastModified", "")).timestamp()
        objects.append(Listed(key(found.get("Key")), int(found.get("Size", "")), time))
    prefixes = [key(found.text) for found in root.iterfind("{*}CommonPrefixes/{*}Prefix")]
    is_truncated = _boolean(root.findtext("{*}IsTruncated"))
    token = root.findtext("{*}NextContinuationToken") or ""
    if is_truncated and not token:
        raise ValueError("a listing that goes on without saying where")
    return Listing(objects, prefixes, token if is_truncated else "")


def _boolean(text: str | None) -> bool:
    """What is neither has been damaged on the way: a list must not end where it does not."""
    if text not in (None, "true", "false"):
        raise ValueError(f"neither true nor false: {text!r}")
    return text == "true"


def make_delete(keys: Iterable[str]) -> bytes:
    """The body of a DeleteObjects request; its answer tells of failures only."""
    objects = "".join(f"<Object><Key>{escape(key)}</Key></Object>" for key in keys)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f'<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{objects}<Quiet>true</Quiet>'
        "</Delete>"
    ).encode()


def delete_failures(body: Buffer) -> list[tuple[str, bytes]]:
    """Key and error document of each object that was not deleted. Raises ValueError."""
    root = _parse(body, "DeleteResult")
    return [
        (failed.findtext("{*}Key") or "", ElementTree.tostring(failed))
        for failed in root.iterfind("{*}Error")
        if failed.findtext("{*}Code") != "NoSuchKey"
    ]


def check_copied(body: Buffer) -> None:
    """Raise ValueError if a copy failed after its status was sent: 200 is no promise."""
    _parse(body, "CopyObjectResult")


def _parse(body: Buffer, expected: str) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(bytes(body))  # noqa: S314 - a limited size, and expat limits entities
    except ElementTree.ParseError as error:
        raise ValueError(f"not XML: {error}") from error
    found = root.tag.rpartition("}")[2]
    if found != expected:
        raise ValueError(f"{found} instead of {expected}")
    return root

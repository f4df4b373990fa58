"""The S3 operations a datastore is made of, one request each."""

import base64
import hashlib
import math
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from store.backends.base import MAX_READ
from store.backends.s3.config import S3Config
from store.backends.s3.http import messages
from store.backends.s3.http.access import Access
from store.backends.s3.http.checksums import Checksums
from store.backends.s3.http.connection import Answer, Request
from store.backends.s3.http.errors import EXPIRED, answer_error, parse_date, read_refusal
from store.backends.s3.http.messages import Listed, Page
from store.backends.s3.http.pool import Counters, Pool
from store.backends.s3.http.signing import (
    Credentials,
    encode_query,
    hash_parts,
    quote_path,
    signed_headers,
)
from store.backends.s3_settings import S3_SCHEME
from store.backends.turns import TURNS
from store.errors import BackendError, IntegrityError, NotFound
from store.format.buffer import Buffer

__all__ = ["Counters", "Head", "Listed", "Page", "S3Client"]

PAGE_SIZE = 1000
MAX_LISTING = 16 << 20
"""Bytes of an answer with a thousand keys of at most 1024 bytes, escaped."""

OK = (200,)
MD5_ETAG = re.compile(r'"?([0-9a-f]{32})"?')
NO_BULK_DELETE = frozenset((405, 501))
SAME_AGAIN = 2
"""How often a damaged body has to come the same again to be the storage's and not the way's."""
OBJECT = {"content-type": "application/octet-stream"}
T = TypeVar("T")


class Head(NamedTuple):
    """What HEAD says of an object; times as in Listed and Page, `etag` without its quotes."""

    size: int
    modified_s: float
    etag: str
    server_time_s: float


class S3Client:
    """One bucket. Thread-safe. Keys are whole keys: `<datastore>/...`.

    Nothing is retried, except over a connection that the server had closed while it was idle.
    Every method raises BackendError, PermissionDenied or OutOfSpace, with one line that names
    bucket and key, and NotFound when there is no such bucket.
    """

    def __init__(self, config: S3Config) -> None:
        """Connects with the first request.

        Raises InvalidName (profile, endpoint, CA file), PermissionDenied (no credentials).
        """
        self.config = config
        self._access = Access(config)
        self._pool = Pool(self._access.endpoint, config)
        self._checksums = Checksums(TURNS)
        self._has_bulk_delete = True
        self._heard = threading.local()

    @property
    def counters(self) -> Counters:
        """What went over the wire so far."""
        return self._pool.counters

    @property
    def server_time_s(self) -> float:
        """When the server gave the last answer that this thread had; -inf before the first."""
        time_s: float = getattr(self._heard, "server_time_s", -math.inf)
        return time_s

    def get(self, key: str, limit: int = MAX_READ) -> bytes:
        """The whole object, checked.

        Raises NotFound, FormatError (over `limit` bytes), IntegrityError (damaged in the storage).
        """
        return bytes(self._get(replace(self._request("GET", key), limit=limit)))

    def get_into(self, key: str, room: memoryview, limit: int = MAX_READ) -> Buffer:
        """The same; in `room`, if it fits there."""
        return self._get(replace(self._request("GET", key), limit=limit, room=room))

    def get_mapped(self, key: str) -> Buffer:
        """The same; a large one in an unlinked file."""
        return self._get(replace(self._request("GET", key), to_file=True))

    def _get(self, request: Request) -> Buffer:
        """The body, asked for again if it is not what its ETag says.

        What comes the same every time was not damaged on the way: the storage has it so.
        """
        first = self._ask(request)
        if self._is_sound(first):
            return first.body
        for _ in range(SAME_AGAIN):
            again = self._ask(replace(request, room=None))  # the first is compared
            if self._is_sound(again):
                return again.body
            if memoryview(first.body) != memoryview(again.body):
                what = f"{request.what}: what came is not what its ETag says"
                raise BackendError(what, retryable=True)
        raise IntegrityError(f"{request.what}: damaged in the storage: not what its ETag says")

    def _is_sound(self, answer: Answer) -> bool:
        """Whether a body is what its ETag says, or that says nothing."""
        expected = _body_md5(answer)
        return not expected or self._checksums.md5(answer.body).hex() == expected

    def get_range(self, key: str, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`, fewer at the end of the object. Raises NotFound."""
        headers = {"range": f"bytes={offset}-{offset + max(size, 1) - 1}"}
        request = self._request("GET", key, headers=headers)
        answer = self._ask(request, (200, 206, 416))
        if answer.status == 416:  # the object ends before
            return b""
        if answer.status == 200:  # a server that does not do ranges
            return bytes(answer.body[offset : offset + size])
        if answer.header("content-range").partition("-")[0] != f"bytes {offset}":
            raise BackendError(f"{request.what}: another range than was asked for")
        return bytes(answer.body[:size])

    def head(self, key: str) -> Head | None:
        """What is known of the object; None when there is none."""
        request = self._request("HEAD", key)
        answer = self._ask(request, (200, 404))
        return None if answer.status == 404 else self._understand(request, lambda: _head(answer))

    def head_bucket(self) -> None:
        """Raise NotFound if there is no such bucket."""
        if self._ask(self._request("HEAD", ""), (200, 404)).status == 404:
            raise NotFound(f"{self._bucket} does not exist: make it first, by the provider's means")

    def put(self, key: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        """Store one object from `parts`. `if_absent`: raises AlreadyExists when it is there.

        After a BackendError that is `retryable` it may have been stored all the same.
        """
        headers = {**OBJECT, "content-length": str(sum(len(part) for part in parts))}
        if if_absent:
            headers["if-none-match"] = "*"
        request = self._request("PUT", key, headers=headers, parts=parts)
        self._ask(replace(request, is_repeatable=not if_absent))

    def delete(self, key: str) -> None:
        """Remove one object; nothing happens when there is none."""
        self._ask(self._request("DELETE", key), (200, 204, 404))

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove objects, a thousand a request where the provider can.

        Raises the first failure, when the others of its thousand are gone.
        """
        for start in range(0, len(keys), PAGE_SIZE):
            some = keys[start : start + PAGE_SIZE]
            self._has_bulk_delete = self._has_bulk_delete and self._delete_at_once(some)
            if not self._has_bulk_delete:
                for key in some:
                    self.delete(key)

    def _delete_at_once(self, keys: Sequence[str]) -> bool:
        """Whether the provider can."""
        body = messages.make_delete(keys)
        headers = {
            "content-type": "application/xml",
            "content-length": str(len(body)),
            "content-md5": base64.b64encode(
                hashlib.md5(body, usedforsecurity=False).digest()
            ).decode(),
        }
        request = self._request("POST", "", [("delete", "")], headers, (body,))
        answer = self._ask(request, (200, *NO_BULK_DELETE))
        if answer.status in NO_BULK_DELETE:
            return False
        for key, error in self._understand(request, lambda: messages.delete_failures(answer.body)):
            raise answer_error(Answer(400, answer.headers, error), self._what(key), self._bucket)
        return True

    def list(
        self, prefix: str, *, after: str = "", delimiter: str = "", page_size: int = PAGE_SIZE
    ) -> Iterator[Page]:
        """The objects whose keys start with `prefix`, in order of key, from behind the key `after`.

        Lazy: a request for each page. With `delimiter`, keys that hold it behind the prefix come
        as one entry of `prefixes`.
        """
        query = [("list-type", "2"), ("encoding-type", "url"), ("prefix", prefix)]
        query += [("max-keys", str(page_size))]
        query += [("delimiter", delimiter)] if delimiter else []
        start = [("start-after", after)] if after else []
        while True:
            page, token = self._list_page(prefix, [*query, *start])
            yield page
            if not token:
                return
            start = [("continuation-token", token)]

    def _list_page(self, prefix: str, query: Sequence[tuple[str, str]]) -> tuple[Page, str]:
        """A page, and where to go on."""
        bucket = self._request("GET", "", query)
        request = replace(bucket, limit=MAX_LISTING, what=self._what(prefix))
        answer = self._ask(request)
        found = self._understand(request, lambda: messages.parse_listing(answer.body))
        time_s = self._understand(request, lambda: _time(answer, "date"))
        return Page(found.objects, found.prefixes, time_s), found.next_token

    def copy(self, old: str, new: str) -> None:
        """Copy an object within the bucket. Raises NotFound."""
        source = quote_path(f"/{self.config.bucket}/{old}")
        headers = {**OBJECT, "x-amz-copy-source": source, "x-amz-metadata-directive": "REPLACE"}
        target = self._request("PUT", new, headers={**headers, "content-length": "0"})
        request = replace(target, what=self._what(old))
        answer = self._ask(request)
        self._understand(request, lambda: messages.check_copied(answer.body))

    def interrupt(self) -> None:
        """Make the requests of other threads end soon, with BackendError; later ones work."""
        self._pool.interrupt()

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _request(
        self,
        method: str,
        key: str,
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        parts: Sequence[Buffer] = (),
    ) -> Request:
        """An unsigned request; `key` "" is the bucket."""
        base = self._access.endpoint.path
        path = base + quote_path(f"/{key}") if key or not base else base
        return Request(method, self._what(key), path, encode_query(query), headers or {}, parts)

    def _ask(self, request: Request, ok: Collection[int] = OK) -> Answer:
        """The answer to a request, if it is one of those that are `ok`; else raises its meaning.

        Credentials that the server finds expired are renewed, once.
        """
        payload_hash = hash_parts(request.parts)
        credentials = self._access.credentials()
        answer = self._exchange(request, credentials, payload_hash)
        if answer.status not in ok and _is_expired(request, answer):
            self._access.renew(credentials)
            answer = self._exchange(request, self._access.credentials(), payload_hash)
        if answer.status not in ok:
            raise answer_error(answer, request.what, self._bucket)
        return answer

    def _exchange(self, request: Request, credentials: Credentials, payload_hash: str) -> Answer:
        endpoint = self._access.endpoint
        headers = signed_headers(
            request.method,
            request.path,
            request.query,
            {"host": endpoint.host_header, **request.headers},
            payload_hash=payload_hash,
            credentials=credentials,
            region=endpoint.region,
            now=datetime.now(UTC),
        )
        answer = self._pool.exchange(replace(request, headers=headers))
        time_s = parse_date(answer.header("date"))
        if time_s is not None:
            self._heard.server_time_s = time_s
        return answer

    def _what(self, key: str) -> str:
        return f"{S3_SCHEME}{self.config.bucket}/{key}" if key else self._bucket

    @property
    def _bucket(self) -> str:
        return f"bucket {self.config.bucket} at {self._access.endpoint}"

    def _understand(self, request: Request, read: Callable[[], T]) -> T:
        """What `read` makes of an answer. Raises BackendError where it can't."""
        try:
            return read()
        except ValueError as error:
            raise BackendError(
                f"{request.what}: the answer is not what S3 says ({error})", retryable=True
            ) from error


def _head(answer: Answer) -> Head:
    return Head(
        int(answer.header("content-length")),
        _time(answer, "last-modified"),
        answer.header("etag").strip('"'),
        _time(answer, "date"),
    )


def _time(answer: Answer, header: str) -> float:
    """Seconds since the epoch. Raises ValueError."""
    time_s = parse_date(answer.header(header))
    if time_s is None:
        raise ValueError(f"no {header}")
    return time_s


def _is_expired(request: Request, answer: Answer) -> bool:
    """Whether new credentials may help. The answer to HEAD has no body that could say so."""
    if request.method == "HEAD":
        return answer.status == 400
    return read_refusal(bytes(answer.body)).code in EXPIRED


def _body_md5(answer: Answer) -> str:
    """What the body's MD5 must be, in hex; "" where the ETag is something else.

    It is of objects that were uploaded in parts, and of those under a customer's key.
    """
    encryption = answer.header("x-amz-server-side-encryption")
    customer = answer.header("x-amz-server-side-encryption-customer-algorithm")
    found = MD5_ETAG.fullmatch(answer.header("etag"))
    return found[1] if found and not encryption.startswith("aws:kms") and not customer else ""

"""What a server's refusals, and the troubles on the way to it, mean: one line each."""

import re
import socket
import ssl
import time
from email.utils import formatdate, parsedate_to_datetime
from http.client import HTTPException, IncompleteRead
from typing import NamedTuple
from xml.etree import ElementTree

from store.backends.s3.http.connection import Answer
from store.errors import (
    AlreadyExists,
    BackendError,
    NotFound,
    OutOfSpace,
    PermissionDenied,
    StoreError,
)

MAX_MESSAGE = 200
FULL = re.compile(r"Quota|StorageFull|InsufficientStorage|OutOfSpace", re.IGNORECASE)
EXPIRED = frozenset(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"))
DENIED = {
    "AccessDenied": "the access key may not do this: check its rights in the bucket's policy",
    "InvalidAccessKeyId": "the server does not know the access key: check it, and the endpoint",
    "SignatureDoesNotMatch": "wrong signature: check the secret key, and the region",
    "InvalidToken": "the session token is not valid: check it, and the access key",
}
BUSY_STATUS = frozenset((408, 425, 429, 500, 502, 503, 504))
BUSY = frozenset(
    (
        "SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "OperationAborted",
        "ConditionalRequestConflict",
        "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch",  # damaged on the way there
    )
)  # fmt: skip


class Refusal(NamedTuple):
    """What the body of an error says; empty where it says nothing."""

    code: str = ""
    message: str = ""


def read_refusal(body: bytes) -> Refusal:
    """Code and message of an error's body, if it is what S3 says it is."""
    try:
        root = ElementTree.fromstring(body)  # noqa: S314 - 64 KiB at most, and expat limits entities
    except (ElementTree.ParseError, ValueError):
        return Refusal()
    return Refusal(_one_line(root.findtext("{*}Code")), _one_line(root.findtext("{*}Message")))


def _one_line(text: str | None) -> str:
    return "".join(char if char.isprintable() else " " for char in (text or "").strip())[
        :MAX_MESSAGE
    ]


def answer_error(answer: Answer, what: str, bucket: str) -> StoreError:
    """The StoreError for an answer that is none of those asked for.

    Args:
        answer: status, headers and body are those of the error.
        what: the object.
        bucket: with where it is.
    """
    refusal = read_refusal(bytes(answer.body))
    code, status = refusal.code, answer.status
    if code == "NoSuchBucket":
        return NotFound(f"{bucket} does not exist")
    if code == "RequestTimeTooSkewed":
        ours = formatdate(time.time(), usegmt=True)
        theirs = answer.header("date") or "unknown"
        return BackendError(f"{what}: the clocks differ: here {ours}, at the server {theirs}")
    if code in EXPIRED:
        return PermissionDenied(f"{what}: the session token has expired: get a new one")
    if status == 507 or FULL.search(code):
        return OutOfSpace(f"{what}: the bucket is full ({code or status})")
    if status in BUSY_STATUS or code in BUSY:
        wait = retry_after(answer.header("retry-after"), time.time())
        message = _describe(answer, refusal)
        return BackendError(f"{what}: {message}", retryable=True, retry_after_s=wait)
    return _final_error(answer, refusal, what)


def _final_error(answer: Answer, refusal: Refusal, what: str) -> StoreError:
    """The same where trying again is of no use."""
    if refusal.code in DENIED:
        return PermissionDenied(f"{what}: {DENIED[refusal.code]}")
    match answer.status:
        case 404:
            return NotFound(f"{what}: no such object")
        case 412:
            return AlreadyExists(f"{what}: exists")
        case 401 | 403:
            return PermissionDenied(f"{what}: {_describe(answer, refusal)}")
        case 301 | 307 | 308 if region := answer.header("x-amz-bucket-region"):
            return BackendError(f"{what}: the bucket is in region {region}: set that")
    return BackendError(f"{what}: {_describe(answer, refusal)}")


def _describe(answer: Answer, refusal: Refusal) -> str:
    said = ": ".join(part for part in refusal if part)
    return f"the server answers {answer.status}{f' ({said})' if said else ''}"


def retry_after(text: str, now: float) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or a date. None when it does not."""
    if text.strip().isdecimal():
        return float(text)
    time_s = parse_date(text)
    return None if time_s is None else max(0.0, time_s - now)


def parse_date(text: str) -> float | None:
    """Seconds since the epoch of a Date header; None when it is none."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError):
        return None


def transport_error(error: OSError | HTTPException, what: str, server: str) -> BackendError:
    """The BackendError for a request that got no whole answer.

    Args:
        error: what came instead.
        what: the object.
        server: its host, and the port if it was given.
    """
    reason, retryable = _explain(error)
    return BackendError(f"{what}: {reason} ({server})", retryable=retryable)


def _explain(error: OSError | HTTPException) -> tuple[str, bool]:
    """What it means, and whether to try again."""
    match error:
        case ssl.SSLCertVerificationError():
            reason = f"the server's certificate is not trusted, {error.verify_message}"
            return f"{reason}: give its CA file, or its fingerprint", False
        case ssl.SSLError() if error.reason == "WRONG_VERSION_NUMBER":
            return "the server does not speak TLS: write http://", False
        case socket.gaierror():
            again = error.errno == socket.EAI_AGAIN
            return f"{error.strerror}: check the endpoint", again
        case TimeoutError():
            return "the server does not answer in time", True
        case IncompleteRead():
            return "the answer is not whole", True
        case OSError():
            return _one_line(error.strerror or str(error)), True
    return f"no HTTP answer, {type(error).__name__}", True

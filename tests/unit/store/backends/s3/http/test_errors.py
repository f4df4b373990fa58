"""What a server's refusals mean."""

import socket
from email.message import Message
from http.client import BadStatusLine, IncompleteRead

import pytest

from store.backends.s3.http.connection import Answer
from store.backends.s3.http.errors import answer_error, retry_after, transport_error
from store.errors import (
    AlreadyExists,
    BackendError,
    NotFound,
    OutOfSpace,
    PermissionDenied,
    StoreError,
)

WHAT = "s3://bucket/store/.cnt/vm/100/owner"
BUCKET = "bucket bucket at https://s3.example.com"
NOW = 1_700_000_000.0


def refused(status: int, code: str = "", message: str = "Why.", **headers: str) -> StoreError:
    found = Message()
    for name, text in headers.items():
        found[name.replace("_", "-")] = text
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>" if code else ""
    error = answer_error(Answer(status, found, body.encode()), WHAT, BUCKET)
    assert "\n" not in str(error)
    return error


@pytest.mark.parametrize(
    ("status", "code", "kind", "says"),
    [
        (404, "NoSuchKey", NotFound, WHAT),
        (404, "", NotFound, WHAT),
        (404, "NoSuchBucket", NotFound, f"{BUCKET} does not exist"),
        (412, "PreconditionFailed", AlreadyExists, WHAT),
        (403, "AccessDenied", PermissionDenied, "policy"),
        (403, "InvalidAccessKeyId", PermissionDenied, "does not know the access key"),
        (403, "SignatureDoesNotMatch", PermissionDenied, "secret key"),
        (403, "", PermissionDenied, "403"),
        (400, "ExpiredToken", PermissionDenied, "expired"),
        (403, "QuotaExceeded", OutOfSpace, "full"),
        (507, "", OutOfSpace, "full"),
        (507, "XMinioStorageFull", OutOfSpace, "full"),
        (501, "NotImplemented", BackendError, "501 (NotImplemented: Why.)"),
        (400, "InvalidRequest", BackendError, "InvalidRequest"),
    ],
)
def test_final(status: int, code: str, kind: type[StoreError], says: str) -> None:
    error = refused(status, code)
    assert type(error) is kind
    assert says in str(error)
    assert not isinstance(error, BackendError) or not error.retryable


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (500, "InternalError"),
        (502, ""),
        (503, "SlowDown"),
        (504, ""),
        (429, "TooManyRequests"),
        (409, "ConditionalRequestConflict"),
        (409, "OperationAborted"),
        (400, "RequestTimeout"),
        (400, "BadDigest"),
        (400, "XAmzContentSHA256Mismatch"),
        (403, "SlowDown"),
    ],
)
def test_try_again(status: int, code: str) -> None:
    error = refused(status, code, retry_after="7")
    assert isinstance(error, BackendError)
    assert (error.retryable, error.retry_after_s) == (True, 7)
    assert WHAT in str(error)


def test_clocks_that_differ_are_both_named() -> None:
    error = refused(403, "RequestTimeTooSkewed", date="Tue, 14 Nov 2023 22:13:20 GMT")
    assert isinstance(error, BackendError)
    assert not error.retryable
    assert "here " in str(error)
    assert "at the server Tue, 14 Nov 2023 22:13:20 GMT" in str(error)


def test_another_region_is_named() -> None:
    assert "eu-west-1" in str(refused(301, "PermanentRedirect", x_amz_bucket_region="eu-west-1"))


def test_a_hostile_message_stays_one_short_line() -> None:
    error = refused(400, "Bad&#10;Code", "x\x1b[31m&#13;&#10;" + "y" * 5000)
    assert len(str(error)) < 400
    assert str(error).isprintable()


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe", b"<Error/>", b"{}"])
def test_a_body_that_says_nothing(body: bytes) -> None:
    error = answer_error(Answer(503, Message(), body), WHAT, BUCKET)
    assert isinstance(error, BackendError)
    assert error.retryable


def test_retry_after() -> None:
    assert retry_after("3", NOW) == 3
    assert retry_after("Tue, 14 Nov 2023 22:13:30 GMT", NOW) == 10
    assert retry_after("Tue, 14 Nov 2023 22:13:10 GMT", NOW) == 0
    for text in ("", "soon", "-1", "1.5", "²"):
        assert retry_after(text, NOW) is None


@pytest.mark.parametrize(
    ("error", "retryable", "says"),
    [
        (TimeoutError("timed out"), True, "in time"),
        (ConnectionResetError(104, "Connection reset by peer"), True, "reset by peer"),
        (ConnectionRefusedError(111, "Connection refused"), True, "refused"),
        (IncompleteRead(b"half"), True, "not whole"),
        (BadStatusLine("\x16\x03"), True, "no HTTP answer"),
        (socket.gaierror(socket.EAI_AGAIN, "Try again"), True, "endpoint"),
        (socket.gaierror(socket.EAI_NONAME, "Name not known"), False, "endpoint"),
    ],
)
def test_on_the_way(error: OSError, retryable: bool, says: str) -> None:
    found = transport_error(error, WHAT, "127.0.0.1:1")
    assert found.retryable == retryable
    assert says in str(found)
    assert str(found).startswith(WHAT)
    assert str(found).endswith(" (127.0.0.1:1)")

"""The client against servers that do as a test says."""

import hashlib
import logging
import math
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from mmap import mmap
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from store.backends.base import MAX_READ
from store.backends.patience import patience
from store.backends.s3.config import S3Config
from store.backends.s3.http.client import Head, S3Client
from store.backends.s3.http.errors import parse_date
from store.backends.s3.http.messages import Listed
from store.errors import (
    AlreadyExists,
    BackendError,
    FormatError,
    IntegrityError,
    InvalidName,
    NotFound,
    PermissionDenied,
)
from tests.fakes.scripted_server import DATE, ScriptedServer, Step, answer

KEY = "store/.chunks/0123/01"
BODY = b"encoded chunk" * 1000
CLOSE = Step(close=True)
HOLD = Step(hold=True)
NO_SUCH_KEY = b"<Error><Code>NoSuchKey</Code></Error>"
EXPIRED = answer(400, b"<Error><Code>ExpiredToken</Code></Error>")


def etag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


def good(body: bytes = BODY) -> Step:
    return answer(200, body, ETag=etag(body))


def spoilt(body: bytes) -> Step:
    return answer(200, body, ETag=etag(BODY))


def config(server: ScriptedServer, **options: object) -> S3Config:
    settings = {"access_key": "access", "secret_key": "secret", "region": "us-east-1"}
    return S3Config(
        "bucket", "store", endpoint=server.endpoint, path_style=True,
        **{**settings, **options},  # type: ignore[arg-type]
    )  # fmt: skip


@contextmanager
def serving(*steps: Step, **options: object) -> Iterator[tuple[S3Client, ScriptedServer]]:
    with ScriptedServer(steps) as server:
        client = S3Client(config(server, **options))
        try:
            yield client, server
        finally:
            client.close()


@contextmanager
def failing(*, retryable: bool) -> Iterator[None]:
    with pytest.raises(BackendError) as caught:
        yield
    assert caught.value.retryable == retryable
    assert "\n" not in str(caught.value)


# Bodies


def test_what_comes_is_compared_with_its_etag() -> None:
    with serving(good(), spoilt(b"a"), good(), spoilt(b"a"), spoilt(b"b")) as (client, server):
        assert client.get(KEY) == BODY
        assert client.get(KEY) == BODY
        with failing(retryable=True):
            client.get(KEY)
    assert server.requests[0].line == "GET /bucket/store/.chunks/0123/01 HTTP/1.1"
    assert client.counters.requests == {"GET": 5}


def test_the_same_damage_twice_may_be_the_way() -> None:
    with serving(spoilt(b"a"), spoilt(b"a"), good()) as (client, _):
        assert client.get(KEY) == BODY


def test_what_comes_spoilt_in_the_same_way_again_is_damage() -> None:
    """Another attempt is of no use, and a mirror may repair it."""
    large = os.urandom(3 << 20)
    with serving(*[spoilt(b"a")] * 3, *[spoilt(large)] * 3) as (client, _):
        for get in (client.get, client.get_mapped):
            with pytest.raises(IntegrityError, match=f"s3://bucket/{KEY}: damaged in the storage"):
                get(KEY)


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": f'"{hashlib.md5(b"parts").hexdigest()}-3"'},
        {"ETag": etag(b"other"), "x_amz_server_side_encryption": "aws:kms"},
        {"ETag": etag(b"other"), "x_amz_server_side_encryption_customer_algorithm": "AES256"},
        {"ETag": 'W/"something"'},
        {},
    ],
)
def test_etags_that_are_no_md5_are_let_be(headers: dict[str, str]) -> None:
    with serving(answer(200, BODY, **headers)) as (client, _):
        assert client.get(KEY) == BODY


def test_a_body_that_ends_early_is_not_taken() -> None:
    with serving(answer(200, BODY, size=len(BODY) + 1, close=True), good()) as (client, _):
        with failing(retryable=True):
            client.get(KEY)
        assert client.get(KEY) == BODY


def test_a_body_of_unknown_length_is_not_taken() -> None:
    step = Step(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf of it", close=True)
    with serving(step) as (client, _), failing(retryable=True):
        client.get(KEY)


def test_a_chunked_body() -> None:
    whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    with serving(Step(whole), Step(whole[:-9], close=True)) as (client, _):
        assert client.get(KEY) == b"abc"
        with failing(retryable=True):
            client.get(KEY)


def test_an_object_that_is_too_large_is_not_read() -> None:
    with serving(answer(200, size=MAX_READ + 1)) as (client, _), pytest.raises(FormatError):
        client.get(KEY)


def test_a_large_object_is_mapped() -> None:
    body = os.urandom(3 << 20)
    with serving(good(body), good(), spoilt(body), good(body)) as (client, server):
        found = client.get_mapped(KEY)
        assert isinstance(found, mmap)
        assert bytes(found) == body
        assert client.get_mapped(KEY) == BODY
        assert bytes(client.get_mapped(KEY)) == body
    assert {request.connection for request in server.requests} == {1}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (answer(206, b"cde", Content_Range="bytes 2-4/6"), b"cde"),
        (answer(200, b"abcdefgh"), b"cde"),
        (answer(416, b"<Error><Code>InvalidRange</Code></Error>"), b""),
    ],
)
def test_ranges(step: Step, expected: bytes) -> None:
    with serving(step) as (client, server):
        assert client.get_range(KEY, 2, 3) == expected
    assert server.requests[0].headers["range"] == "bytes=2-4"


def test_another_range_than_was_asked_for() -> None:
    step = answer(206, b"abc", Content_Range="bytes 0-2/6")
    with serving(step) as (client, _), failing(retryable=False):
        client.get_range(KEY, 2, 3)


def test_head() -> None:
    known = answer(200, size=17, ETag='"abc"', Last_Modified=DATE)
    with serving(known, answer(404), answer(200, size=17)) as (client, _):
        assert client.head(KEY) == Head(17, 1_700_000_000, "abc", 1_700_000_000)
        assert client.head(KEY) is None
        with failing(retryable=True):
            client.head(KEY)


# Storing


def test_a_body_in_several_buffers() -> None:
    with serving(answer()) as (client, server):
        client.put(KEY, (b"ab", bytearray(b"cd"), memoryview(b"ef"), b""))
    request = server.requests[0]
    assert request.body == b"abcdef"
    assert request.headers["x-amz-content-sha256"] == hashlib.sha256(b"abcdef").hexdigest()
    assert "if-none-match" not in request.headers
    assert not [name for name in request.headers if "checksum" in name]


def test_only_if_absent() -> None:
    with serving(answer(), answer(412)) as (client, server):
        client.put(KEY, (BODY,), if_absent=True)
        with pytest.raises(AlreadyExists, match=KEY):
            client.put(KEY, (BODY,), if_absent=True)
    assert server.requests[0].headers["if-none-match"] == "*"


def test_a_refusal_before_the_body_is_read() -> None:
    """The rest of the body can't be sent then; why is known all the same."""
    refusal = answer(412, unread=True, close=True)
    with serving(refusal) as (client, _), pytest.raises((AlreadyExists, BackendError)) as caught:
        client.put(KEY, (bytes(30 << 20),), if_absent=True)
    assert isinstance(caught.value, AlreadyExists) or caught.value.retryable


# Connections


def test_connections_are_kept() -> None:
    with serving(good(), answer(404, NO_SUCH_KEY), answer(204), good()) as (client, server):
        client.get(KEY)
        with pytest.raises(NotFound):
            client.get(KEY)
        client.delete(KEY)
        client.get(KEY)
    assert [request.connection for request in server.requests] == [1, 1, 1, 1]


def wait_until_closed(client: S3Client) -> None:
    """The server closes its end some time after its answer: what is sent before may be lost."""
    deadline = time.monotonic() + 10
    while not client._pool._idle[-1].is_stale and time.monotonic() < deadline:
        time.sleep(0.001)


def test_one_that_was_closed_while_idle_is_replaced() -> None:
    first = answer(200, BODY, close=True)
    with serving(first, answer(), first, answer()) as (client, server):
        client.get(KEY)
        wait_until_closed(client)
        client.put(KEY, (BODY,), if_absent=True)
        client.get(KEY)
        wait_until_closed(client)
        client.put(KEY, (BODY,))
    assert len(server.requests) == 4
    assert client.counters.requests == {"GET": 2, "PUT": 2}


ASK: dict[str, Callable[[S3Client], object]] = {
    "get": lambda client: client.get(KEY),
    "put": lambda client: client.put(KEY, (BODY,)),
    "delete": lambda client: client.delete(KEY),
}


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
def test_a_request_that_may_be_repeated_is_sent_again_once(ask: Callable[[S3Client], None]) -> None:
    with serving(good(), CLOSE, good(), CLOSE, CLOSE) as (client, server):
        client.get(KEY)
        ask(client)
        assert [request.connection for request in server.requests] == [1, 1, 2]
        with failing(retryable=True):
            ask(client)
    assert len(server.requests) == 5


def test_a_conditional_put_is_not_sent_again() -> None:
    """It may have been stored: the second would say that somebody else has."""
    with serving(good(), CLOSE, answer()) as (client, server):
        client.get(KEY)
        with failing(retryable=True):
            client.put(KEY, (BODY,), if_absent=True)
    assert len(server.requests) == 2


def test_a_new_connection_is_not_stale() -> None:
    with serving(CLOSE, good()) as (client, server), failing(retryable=True):
        client.get(KEY)
    assert len(server.requests) == 1


def test_a_server_that_does_not_answer() -> None:
    with serving(HOLD, read_timeout_s=0.05) as (client, _), failing(retryable=True):
        client.get(KEY)


def test_a_caller_without_patience_is_not_kept_for_the_whole_time_out() -> None:
    with serving(HOLD, read_timeout_s=600) as (client, _), failing(retryable=True), patience(0.05):
        client.get(KEY)


def test_a_server_that_sends_a_byte_now_and_then() -> None:
    """Each comes within the time-out, but at that rate the answer never does."""
    drips = Step(answer(body=bytes(10_000)).answer, drip=True)
    with serving(drips, read_timeout_s=0.2) as (client, _):
        began = time.monotonic()
        with failing(retryable=True):
            client.get(KEY)
        assert time.monotonic() - began < 5


def test_nobody_listens() -> None:
    with ScriptedServer(()) as server:
        gone = S3Client(config(server))
    with failing(retryable=True):
        gone.get(KEY)


def test_interrupt_ends_the_requests_of_other_threads() -> None:
    with serving(HOLD, HOLD, good()) as (client, server):
        errors: list[BackendError] = []

        def ask() -> None:
            try:
                client.get(KEY)
            except BackendError as error:
                errors.append(error)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in threads:
            server.asked.acquire()
        client.interrupt()
        for thread in threads:
            thread.join()
        assert [str(error).endswith("interrupted") for error in errors] == [True, True]
        assert not any(error.retryable for error in errors)
        assert client.get(KEY) == BODY


# Who we are


def test_expired_credentials_are_looked_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "old")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with serving(EXPIRED, good(), EXPIRED, EXPIRED, access_key=None, secret_key=None) as (
        client,
        server,
    ):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "new")
        assert client.get(KEY) == BODY
        with pytest.raises(PermissionDenied, match="expired"):
            client.get(KEY)
    used = [request.headers["authorization"].split("=")[1] for request in server.requests]
    assert [text.split("/")[0] for text in used] == ["old", "new", "new", "new"]


def test_credentials_of_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "credentials").write_text(
        "[vault]\naws_access_key_id=mine\naws_secret_access_key=x\naws_session_token=token\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with serving(good(), profile="vault", access_key=None, secret_key=None) as (client, server):
        client.get(KEY)
        with pytest.raises(InvalidName, match="none-such"):
            S3Client(config(server, profile="none-such", access_key=None, secret_key=None))
    assert "Credential=mine/" in server.requests[0].headers["authorization"]
    assert server.requests[0].headers["x-amz-security-token"] == "token"


def test_without_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(PermissionDenied, match="AWS_ACCESS_KEY_ID"):
        S3Client(S3Config("bucket", "store"))


def test_addresses_are_those_of_boto3() -> None:
    keys = {"access_key": "a", "secret_key": "b"}
    aws = S3Client(S3Config("bucket", "store", region="eu-west-1", **keys))
    assert str(aws._access.endpoint) == "https://bucket.s3.eu-west-1.amazonaws.com"
    assert aws._access.endpoint.path == ""
    ours = S3Client(
        S3Config("bucket", "store", endpoint="https://s3.lan:9000", path_style=True, **keys)
    )
    assert (str(ours._access.endpoint), ours._access.endpoint.path) == (
        "https://s3.lan:9000", "/bucket",
    )  # fmt: skip
    with pytest.raises(InvalidName):
        S3Client(S3Config("bucket", "store", endpoint="no url", **keys))


# TLS


def self_signed(folder: Path) -> tuple[Path, str]:
    """A certificate for 127.0.0.1 with its key in one file, and its fingerprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path, certificate.fingerprint(hashes.SHA256()).hex(":")


def test_tls(tmp_path: Path) -> None:
    path, fingerprint = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    with ScriptedServer([good(), good(), good()], context) as server:
        with failing(retryable=False):
            S3Client(config(server)).get(KEY)
        with failing(retryable=False):
            S3Client(config(server, fingerprint="00" * 32)).get(KEY)
        for trusted in ({"ca_file": path}, {"fingerprint": fingerprint.upper()}):
            client = S3Client(config(server, **trusted))
            assert client.get(KEY) == BODY
            client.close()
        with pytest.raises(InvalidName, match="none"):
            S3Client(config(server, ca_file=tmp_path / "none"))
        with pytest.raises(InvalidName, match="fingerprint"):
            config(server, fingerprint="aa:bb")


def test_a_server_without_tls() -> None:
    """Asked in TLS, it hears no request: nobody need try again."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as threads:

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        refused = threads.submit(refuse)
        endpoint = f"https://127.0.0.1:{listener.getsockname()[1]}"
        keys = {"access_key": "a", "secret_key": "s"}
        https = S3Config("bucket", "store", endpoint=endpoint, path_style=True, **keys)
        with pytest.raises(BackendError, match=r"does not speak TLS: write http://") as caught:
            S3Client(https).get(KEY)
        refused.result()
    assert not caught.value.retryable


def test_requests_are_logged_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "store")
    with ScriptedServer([good(), CLOSE]) as server:
        client = S3Client(config(server, secret_key="canary", session_token="canary"))
        client.get(KEY)
        with failing(retryable=True):
            client.put(KEY, (BODY,), if_absent=True)
        client.close()
        endpoint = server.endpoint
    got, put, closed = (record.getMessage() for record in caplog.records)
    assert re.fullmatch(rf"GET s3://bucket/{KEY}: 200, \d+\.\d ms", got)
    assert re.fullmatch(rf"PUT s3://bucket/{KEY}: no answer, \d+\.\d ms", put)
    assert closed == f"{endpoint}: 1 requests (GET 1), 0 bytes sent, {len(BODY)} received"
    assert "canary" not in caplog.text
    assert "Signature" not in caplog.text


# What XML says


def listing(keys: list[str], token: str = "", extra: str = "") -> Step:
    objects = "".join(
        f"<Contents><Key>{key}</Key><Size>3</Size>"
        "<LastModified>2023-11-14T22:13:20.000Z</LastModified></Contents>"
        for key in keys
    )
    more = f"<IsTruncated>{str(bool(token)).lower()}</IsTruncated>"
    more += f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    text = f'<ListBucketResult xmlns="http://s3/">{objects}{more}{extra}</ListBucketResult>'
    return answer(200, text.encode())


def test_a_listing_is_lazy_and_goes_on() -> None:
    encoded = "<EncodingType>url</EncodingType>"
    prefixes = "<CommonPrefixes><Prefix>a%2F</Prefix></CommonPrefixes>"
    steps = (listing(["a", "b"], "to/ken+"), listing(["c%20d+e%2Bf"], "", encoded + prefixes))
    with serving(*steps) as (client, server):
        pages = client.list("store/", after="store/0", delimiter="/", page_size=2)
        assert server.requests == []
        first = next(pages)
        assert first.objects == [Listed("a", 3, 1_700_000_000), Listed("b", 3, 1_700_000_000)]
        assert first.server_time_s == 1_700_000_000
        assert len(server.requests) == 1
        [second] = pages
    assert second.objects[0].key == "c d e+f"
    assert second.prefixes == ["a/"]
    first_line, second_line = (request.line for request in server.requests)
    assert "&start-after=store%2F0" in first_line
    assert "max-keys=2" in first_line
    assert "continuation-token=to%2Fken%2B" in second_line


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"<Other/>",
        b"<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>",
        b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
        b"<ListBucketResult><IsTruncated>trud</IsTruncated></ListBucketResult>",
    ],
)
def test_what_is_no_listing(body: bytes) -> None:
    with serving(answer(200, body)) as (client, _), failing(retryable=True):
        next(client.list("store/"))


def test_many_are_deleted_a_thousand_at_a_time() -> None:
    done = answer(200, b"<DeleteResult/>")
    with serving(done, done) as (client, server):
        client.delete_many([f"key&{number}" for number in range(1500)])
    bodies = [request.body for request in server.requests]
    assert [body.count(b"<Key>") for body in bodies] == [1000, 500]
    assert b"<Key>key&amp;0</Key>" in bodies[0]
    assert server.requests[0].line == "POST /bucket?delete= HTTP/1.1"
    assert "content-md5" in server.requests[0].headers


def test_a_deletion_that_failed_is_told() -> None:
    failed = b"<DeleteResult><Error><Key>b</Key><Code>AccessDenied</Code></Error></DeleteResult>"
    missing = failed.replace(b"AccessDenied", b"NoSuchKey")
    with serving(answer(200, missing), answer(200, failed)) as (client, _):
        client.delete_many(["a", "b"])
        with pytest.raises(PermissionDenied, match="bucket/b"):
            client.delete_many(["a", "b"])


def test_a_provider_without_bulk_deletion() -> None:
    with serving(answer(501), *[answer(204)] * 4) as (client, server):
        client.delete_many(["a", "b"])
        client.delete_many(["c", "d"])
    assert [request.line.split()[0] for request in server.requests] == ["POST", *["DELETE"] * 4]


def test_a_copy_may_fail_after_it_began() -> None:
    failed = answer(200, b"<Error><Code>InternalError</Code></Error>")
    steps = (answer(200, b"<CopyObjectResult/>"), failed, answer(404, NO_SUCH_KEY))
    with serving(*steps) as (client, server):
        client.copy("old name", "new")
        assert server.requests[0].headers["x-amz-copy-source"] == "/bucket/old%20name"
        with failing(retryable=True):
            client.copy("old", "new")
        with pytest.raises(NotFound, match="old"):
            client.copy("old", "new")


def test_the_servers_time_is_that_of_this_threads_last_answer() -> None:
    with serving(good(), good()) as (client, _):
        assert client.server_time_s == -math.inf
        thread = threading.Thread(target=client.get, args=(KEY,))
        thread.start()
        thread.join()
        assert client.server_time_s == -math.inf
        client.get(KEY)
        assert client.server_time_s == parse_date(DATE)

"""Our signature is botocore's."""

from datetime import UTC, datetime
from unittest.mock import patch
from urllib.parse import urlencode

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials
from hypothesis import given
from hypothesis import strategies as st

from store.backends.s3.http.signing import (
    Credentials,
    encode_query,
    hash_parts,
    quote_path,
    signed_headers,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOST = "s3.example.com:8333"
TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\x85"), min_size=1
)
HEADERS = st.dictionaries(
    st.sampled_from(["range", "if-none-match", "content-md5", "x-amz-copy-source"]),
    st.from_regex(r"[!-~]([ -~]*[!-~])?", fullmatch=True).filter(lambda text: "  " not in text),
)


def original(
    method: str,
    path: str,
    query: list[tuple[str, str]],
    headers: dict[str, str],
    payload_hash: str,
    token: str | None,
) -> str:
    """The Authorization header that botocore makes."""
    url = f"https://{HOST}{quote_path(path)}"
    request = AWSRequest(method, url, {**headers, "X-Amz-Content-SHA256": payload_hash})
    request.params = dict(query)
    credentials = BotocoreCredentials("access", "secret/+", token)
    signer = S3SigV4Auth(credentials, "s3", "eu-central-1")
    with (
        patch("botocore.auth.get_current_datetime", return_value=NOW.replace(tzinfo=None)),
        patch.object(signer, "payload", return_value=payload_hash),
    ):
        signer.add_auth(request)
    return str(request.headers["Authorization"])


@given(
    method=st.sampled_from(["GET", "PUT", "HEAD", "DELETE", "POST"]),
    key=TEXT,
    query=st.lists(st.tuples(TEXT, TEXT), unique_by=lambda pair: pair[0]),
    headers=HEADERS,
    parts=st.lists(st.binary()),
    token=st.none() | st.just("session+token=="),
)
def test_like_botocore(
    method: str,
    key: str,
    query: list[tuple[str, str]],
    headers: dict[str, str],
    parts: list[bytes],
    token: str | None,
) -> None:
    payload_hash = hash_parts(parts)
    ours = signed_headers(
        method,
        quote_path(f"/bucket/{key}"),
        encode_query(query),
        {"host": HOST, **headers},
        payload_hash=payload_hash,
        credentials=Credentials("access", "secret/+", token),
        region="eu-central-1",
        now=NOW,
    )
    path = f"/bucket/{key}"
    assert ours["authorization"] == original(method, path, query, headers, payload_hash, token)


def test_a_body_in_several_buffers_has_one_hash() -> None:
    assert hash_parts((b"ab", bytearray(b"c"), memoryview(b"d"))) == hash_parts((b"abcd",))
    assert hash_parts(()) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_queries_and_paths_are_escaped_as_servers_read_them() -> None:
    pairs = [("prefix", "a b/ü+"), ("delete", "")]
    assert encode_query(pairs) == "delete=&prefix=a%20b%2F%C3%BC%2B"
    assert encode_query(pairs) != urlencode(pairs)
    assert quote_path("/b/2025-07-14T14:20:02Z/~x y") == "/b/2025-07-14T14%3A20%3A02Z/~x%20y"

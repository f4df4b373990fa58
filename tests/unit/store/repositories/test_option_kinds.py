"""Every way to write a value: what `format` writes `read` reads, and the rest is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.repositories import option_kinds as kinds
from store.repositories.option_kinds import Kind

TEXTS = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1)
VALUES = {
    kinds.SIZE: st.integers(0, 10**15 - 1),
    kinds.DURATION: st.integers(0, kinds.MAX_DURATION_S * 1000).map(lambda ms: round(ms / 1000, 3)),
    kinds.NUMBER: st.integers(0, 999_999),
    kinds.POSITIVE: st.integers(1, 999_999),
    kinds.BOOLEAN: st.booleans(),
    kinds.TEXT: TEXTS,
    kinds.FILE: TEXTS.map(lambda text: Path("/", text)),
    kinds.LIST: st.lists(st.from_regex(r"[a-z:/]+", fullmatch=True)).map(tuple),
    kinds.FINGERPRINT: st.binary(min_size=32, max_size=32).map(lambda raw: raw.hex(":")),
    kinds.NAMESPACE: st.lists(st.from_regex(r"[a-z]{1,9}", fullmatch=True), max_size=7).map(
        "/".join
    ),
    kinds.ENDPOINT: st.from_regex(r"https?://[a-z]{1,9}(:[0-9]{1,5})?", fullmatch=True),
}


@given(st.data())
def test_round_trip(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(VALUES)))
    value = data.draw(VALUES[kind])
    assert kind.read(kind.format(value)) == value


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (kinds.SIZE, "4k", 4096),
        (kinds.SIZE, "2GiB", 2 << 30),
        (kinds.SIZE, "1Tb", 1 << 40),
        (kinds.DURATION, "5m", 300.0),
        (kinds.DURATION, "0.5s", 0.5),
        (kinds.DURATION, "1h", 3600.0),
        (kinds.BOOLEAN, "ON", True),
        (kinds.LIST, "a, s3://b/c,", ("a", "s3://b/c")),
        (kinds.FILE, "~root/k", Path("~root/k").expanduser()),
        (kinds.FILE, "k", Path.cwd() / "k"),
        (kinds.ENDPOINT, "https://s3.example.com:8333/", "https://s3.example.com:8333"),
        (kinds.NAMESPACE, "", ""),
    ],
)
def test_texts(kind: Kind, text: str, value: object) -> None:
    assert kind.read(text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (kinds.SIZE, "lots"),
        (kinds.SIZE, "-1"),
        (kinds.SIZE, "1.5G"),
        (kinds.MEMORY, "64K"),
        (kinds.DURATION, "inf"),
        (kinds.DURATION, "31d"),
        (kinds.DURATION, "5 minutes"),
        (kinds.TIMEOUT, "0"),
        (kinds.POSITIVE, "0"),
        (kinds.NUMBER, "²"),
        (kinds.BOOLEAN, "maybe"),
        (kinds.TEXT, ""),
        (kinds.TEXT, "a\nb"),
        (kinds.FILE, "~nobody-of-that-name/k"),
        (kinds.FINGERPRINT, "aa:bb"),
        (kinds.ENDPOINT, "s3.example.com"),
        (kinds.ENDPOINT, "https://user@host"),
        (kinds.ENDPOINT, "https://host/path"),
        (kinds.NAMESPACE, "a/../b"),
    ],
)
def test_refused(kind: Kind, text: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        kind.read(text)
    assert type(caught.value) is ValueError


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (kinds.BOOLEAN, "true"),
        (kinds.BOOLEAN, 1),
        (kinds.SIZE, True),
        (kinds.SIZE, 1.5),
        (kinds.SIZE, -1),
        (kinds.DURATION, float("nan")),
        (kinds.POSITIVE, "16"),
        (kinds.TEXT, ["a"]),
        (kinds.FILE, "relative/k"),
        (kinds.LIST, "a"),
        (kinds.LIST, [1]),
        (kinds.LIST, ["a,b"]),
        (kinds.LIST, [""]),
    ],
)
def test_toml_refused(kind: Kind, value: object) -> None:
    with pytest.raises(ValueError, match=r"write|name|use"):
        kind.read_toml(value)


def test_toml_types() -> None:
    assert kinds.SIZE.read_toml(4096) == kinds.SIZE.read_toml("4K") == 4096
    assert kinds.DURATION.read_toml(5) == kinds.DURATION.read_toml("5s") == 5.0
    assert kinds.LIST.read_toml(["a", "b"]) == ("a", "b")
    assert kinds.BOOLEAN.read_toml(False) is False

"""Names and keys: what PBS puts where, and that no key leads out of the datastore."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.backends.s3.keys import Keys, is_namespaces
from store.errors import InvalidName

KEYS = Keys("store")
COMPONENT = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\x7f"),
    min_size=1,
    max_size=20,
).filter(lambda text: text not in (".", "..", ".namespace"))
NAME = st.lists(COMPONENT | st.sampled_from([".chunks", ".vaultway", ".cnt"]), min_size=1).map(
    "/".join
)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (".chunks/0123/0123ff", "store/.chunks/0123/0123ff"),
        (".vaultway/locks/a", "store/.vaultway/locks/a"),
        ("vm/100/owner", "store/.cnt/vm/100/owner"),
        ("ns/a/ns/b/ct/1/t/index.json.blob", "store/.cnt/ns/a/ns/b/ct/1/t/index.json.blob"),
    ],
)
def test_where_things_are(name: str, key: str) -> None:
    assert KEYS.key(name) == key
    assert KEYS.name(key) == name


@given(NAME.filter(lambda name: len(name.encode()) < 900))
def test_a_key_has_its_name_and_no_other(name: str) -> None:
    assert KEYS.name(KEYS.key(name)) == name


@given(st.text() | NAME.map(lambda name: f"store/{name}") | NAME.map("store/.cnt/{}".format))
def test_what_has_a_name_has_that_key(key: str) -> None:
    name = KEYS.name(key)
    assert name is None or KEYS.key(name) == key


@pytest.mark.parametrize(
    "key",
    [
        "store/.in-use",
        "store/.s3-client-test",
        "store/vm/100/owner",
        "store/.cnt/../../etc/passwd",
        "store/.cnt//etc/passwd",
        "store/.cnt/vm/./x",
        "store/.cnt/vm/",
        "store/.cnt/vm/\x00",
        "store/.cnt/a\nb",
        "store/.cnt/.chunks/0123/x",  # would be taken for the chunk
        "store/.cnt/.vaultway/locks/x",
        "store/.cnt/ns/a/.namespace",
        "store2/.cnt/vm/100/owner",
        "storx",
        "store/.cnt/" + "x" * 1020,
    ],
)
def test_what_has_no_name(key: str) -> None:
    assert KEYS.name(key) is None


@pytest.mark.parametrize(
    "name", ["", "..", "/a", "a/", "a//b", "a/../b", "./a", "a\x7f", "x" * 1020]
)
def test_names_that_may_not_be(name: str) -> None:
    with pytest.raises(InvalidName):
        KEYS.key(name)


def test_prefixes_end_in_a_slash() -> None:
    assert KEYS.prefix("vm/10") == "store/.cnt/vm/10/"
    assert KEYS.prefix("") == "store/"


def test_markers_are_of_namespaces_alone() -> None:
    assert KEYS.marker("ns/a") == "store/.cnt/ns/a/.namespace"
    assert KEYS.marker("ns/a/ns/b") == "store/.cnt/ns/a/ns/b/.namespace"
    for name in ("ns", "vm/100", "ns/a/vm", "ns/a/ns", "ns/a/vm/ns/b"):
        assert KEYS.marker(name) is None
    assert is_namespaces("ns")
    assert is_namespaces("ns/a/ns")
    assert not is_namespaces("ns/a")
    assert not is_namespaces("vm")

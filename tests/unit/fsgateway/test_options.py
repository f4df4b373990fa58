"""Mount options: the known ones mean what they say, the others are refused by name."""

from pathlib import Path

import pytest

from fsgateway.options import MountOptions, parse_options, split_options
from store.errors import InvalidName
from store.repositories.options import Given


def test_nothing_given() -> None:
    options = parse_options([])
    assert options == MountOptions()
    assert options.for_fuse("/srv/a") == {"ro", "fsname=/srv/a", "subtype=vaultway"}


def test_all_together() -> None:
    options = parse_options(
        ["ro,allow_other,noatime", "memory=1G,uid=5,gid=6,umask=027", "keyfile=/k,ns=a/b,log=/l"]
    )
    assert options == MountOptions(
        allow_other=True, uid=5, gid=6, umask=0o027, log="/l", flags=frozenset({"noatime"}),
        repository={
            "memory": Given(1 << 30, "-o memory"),
            "keyfile": Given(Path("/k"), "-o keyfile"),
            "ns": Given("a/b", "-o ns"),
        },
    )  # fmt: skip


def test_views() -> None:
    assert parse_options(["versions"]) == MountOptions(versions=True)
    assert parse_options(["shadow-copy", "ro"]) == MountOptions(shadow_copy=True)
    assert parse_options(["versions,shadow-copy"]).for_fuse("x") == MountOptions().for_fuse("x")


def test_allow_other_brings_protection() -> None:
    assert "default_permissions" in parse_options(["allow_other"]).for_fuse("x")
    assert "default_permissions" not in parse_options([]).for_fuse("x")
    assert "allow_other" not in parse_options(["default_permissions"]).for_fuse("x")


def test_nonempty_is_ours_alone() -> None:
    """libfuse 3 does not know the word."""
    options = parse_options(["nonempty"])
    assert options.nonempty
    assert options.for_fuse("x") == MountOptions().for_fuse("x")


def test_max_read_never_reaches_libfuse() -> None:
    assert not any("max_read" in option for option in MountOptions().for_fuse("x"))


def test_names_libfuse_cannot_take_raw() -> None:
    assert r"fsname=/a\,b\\c?" in MountOptions().for_fuse("/a,b\\cö")


def test_fstab_words_are_ignored() -> None:
    words = "defaults,_netdev,nofail,x-systemd.automount,x-a=b,noauto,user,sync,lazytime"
    assert parse_options([words]) == MountOptions()


@pytest.mark.parametrize(
    "text",
    ["frob", "frob=1", "memory=lots", "memory=1K", "cache=1G", "endpoint=here",
     "uid=x", "uid=-1", "uid=4294967295",
     "umask=9", "max_read=131072", "allow_other=1", "cache"],
)  # fmt: skip
def test_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidName) as caught:
        parse_options([f"noatime,{text}"])
    assert f"mount option {text.partition('=')[0]}" in str(caught.value)


def test_repository_options_without_a_value() -> None:
    options = parse_options(["path-style,no-conditional-put", "take-over=yes"])
    given = {name: given.value for name, given in options.repository.items()}
    assert given == {"path-style": True, "conditional-put": False, "take-over": True}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a=1,b", ["a=1", "b"]),
        (r"a=1\,2,b", ["a=1,2", "b"]),
        ('a="1,2",b', ["a=1,2", "b"]),
        (r"a=\"x\\,b", ['a="x\\', "b"]),
        ('a="open,b', ['a="open', "b"]),
        ("", [""]),
        ("a\\", ["a\\"]),
    ],
)
def test_commas_in_values(text: str, parts: list[str]) -> None:
    """libfuse's backslash, and mount(8)'s double quotes."""
    assert split_options(text) == parts


def test_a_secret_is_not_in_the_error() -> None:
    with pytest.raises(InvalidName) as caught:
        parse_options(["secret-key=canary\x01"])
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["seal=close", "heads=/x", "journal=1G", "noxattr", "rw,noxattr,ro"]
)
def test_what_needs_a_writable_mount(text: str) -> None:
    with pytest.raises(InvalidName, match="needs rw"):
        parse_options([text])
    assert parse_options([f"{text},rw"]).writable
    assert parse_options([f"{text},writable"]).writable

"""Mount options: the known ones mean what they say, the others are refused by name."""

import pytest

from fsgateway.options import DEFAULT_CACHE, MountOptions, parse_options, parse_size
from store.errors import InvalidName


def test_nothing_given() -> None:
    options = parse_options([])
    assert options == MountOptions()
    assert options.cache == DEFAULT_CACHE
    assert options.for_fuse("/srv/a") == {"ro", "fsname=/srv/a", "subtype=vaultway"}


def test_all_together() -> None:
    options = parse_options(
        ["ro,allow_other,noatime", "cache=1G,uid=5,gid=6,umask=027", "keyfile=/k,ns=a/b,log=/l"]
    )
    assert options == MountOptions(
        allow_other=True, cache=1 << 30, uid=5, gid=6, umask=0o027,
        keyfile="/k", namespace="a/b", log="/l", flags=frozenset({"noatime"}),
    )  # fmt: skip


def test_allow_other_brings_protection() -> None:
    assert "default_permissions" in parse_options(["allow_other"]).for_fuse("x")
    assert "default_permissions" not in parse_options([]).for_fuse("x")
    assert "allow_other" not in parse_options(["default_permissions"]).for_fuse("x")


def test_max_read_never_reaches_libfuse() -> None:
    assert not any("max_read" in option for option in MountOptions().for_fuse("x"))


def test_names_libfuse_cannot_take_raw() -> None:
    assert r"fsname=/a\,b\\c?" in MountOptions().for_fuse("/a,b\\cö")


def test_fstab_words_are_ignored() -> None:
    assert parse_options(["defaults,_netdev,nofail,x-systemd.automount,x-a=b,noauto,user"]) == (
        MountOptions()
    )


@pytest.mark.parametrize(
    "text",
    ["rw", "frob", "frob=1", "cache=lots", "cache=1M", "uid=x", "uid=-1", "uid=4294967295",
     "umask=9", "max_read=131072", "allow_other=1", "cache"],
)  # fmt: skip
def test_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidName) as caught:
        parse_options([f"noatime,{text}"])
    assert text.split("=")[-1] in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("4k", 4096), ("256M", 256 << 20), ("2GiB", 2 << 30), ("1Tb", 1 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size

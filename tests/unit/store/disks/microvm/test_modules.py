import lzma
from pathlib import Path

import pytest
import zstandard

from store.disks.microvm.modules import Modules
from store.errors import FormatError, NotFound


def module(
    folder: Path, name: str, depends: str = "", soft: str = "", suffix: str = ".ko"
) -> bytes:
    """A module's file, as far as we look into it."""
    info = b"license=GPL\0depends=%b\0" % depends.encode()
    if soft:
        info += b"softdep=%b\0" % soft.encode()
    content = b"\x7fELF" + bytes(100) + b"\0" + info + b"name=" + name.encode() + b"\0"
    packed = {
        ".ko": content,
        ".ko.xz": lzma.compress(content),
        ".ko.zst": zstandard.compress(content),
    }[suffix]
    path = folder / "kernel/fs" / f"{name}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed)
    return content


def names(found: list[tuple[str, bytes]]) -> list[str]:
    return [name for name, _ in found]


def test_each_comes_after_what_it_needs(tmp_path: Path) -> None:
    module(tmp_path, "crc")
    module(tmp_path, "journal", "crc")
    module(tmp_path, "fine-fs", "journal,crc", "pre: sha-256 not-a-file post: crc")
    module(tmp_path, "sha-256")
    found = names(Modules(tmp_path).needed(["fine_fs"]))
    assert found == ["crc", "journal", "sha_256", "fine_fs"]


@pytest.mark.parametrize("suffix", [".ko", ".ko.xz", ".ko.zst"])
def test_the_kernel_gets_them_unpacked(tmp_path: Path, suffix: str) -> None:
    content = module(tmp_path, "one", suffix=suffix)
    assert Modules(tmp_path).needed(["one"]) == [("one", content)]


def test_what_is_built_in_is_not_loaded(tmp_path: Path) -> None:
    module(tmp_path, "fs", "crc")
    (tmp_path / "modules.builtin").write_text("kernel/lib/crc.ko\nkernel/fs/ext4/ext4.ko\n")
    modules = Modules(tmp_path)
    assert names(modules.needed(["fs", "ext4"])) == ["fs"]
    assert modules.has("ext4")
    assert modules.has("fs")
    assert not modules.has("xfs")


def test_wishes_need_not_be_there_and_needs_must(tmp_path: Path) -> None:
    module(tmp_path, "fs", "gone")
    modules = Modules(tmp_path)
    assert modules.needed([], ["none"]) == []
    with pytest.raises(NotFound, match="has no module gone"):
        modules.needed(["fs"])


def test_modules_that_need_each_other_end(tmp_path: Path) -> None:
    module(tmp_path, "a", "b")
    module(tmp_path, "b", "a")
    assert sorted(names(Modules(tmp_path).needed(["a"]))) == ["a", "b"]


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    module(tmp_path, "fs", suffix=".ko.xz")
    (tmp_path / "kernel/fs/fs.ko.xz").write_bytes(b"no xz")
    with pytest.raises(FormatError, match=r"fs\.ko\.xz"):
        Modules(tmp_path).needed(["fs"])

"""Which modules of a kernel are needed for something, and in which order they are loaded.

Told by the modules themselves, for a kernel package that is only unpacked has no modules.dep.

Source: linux include/linux/module.h (MODULE_INFO): texts `key=value`, NUL-terminated, in the ELF
section .modinfo.
"""

import lzma
import re
from collections.abc import Iterable
from pathlib import Path

import zstandard

from store.errors import FormatError, NotFound

LARGEST_MODULE = 64 << 20
_INFO = re.compile(rb"\0(depends|softdep)=([^\0]*)")
_SUFFIXES = (".ko", ".ko.xz", ".ko.zst")


class Modules:
    """The modules of one kernel.

    Args:
        folder: `/lib/modules/<version>`, or the same from an unpacked package.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths = {
            _name(path.name): path
            for path in sorted(folder.glob("kernel/**/*.ko*"))
            if path.name.endswith(_SUFFIXES)
        }
        self._built_in = _built_in(folder)

    def needed(self, wanted: Iterable[str], wished: Iterable[str] = ()) -> list[tuple[str, bytes]]:
        """Names and ELF contents, each module after those it needs; without what is built in.

        Args:
            wanted: names of modules.
            wished: the same; those that are not there are left out.

        Raises:
            NotFound: the kernel has no such module.
            FormatError: a module cannot be read.
        """
        found: dict[str, bytes] = {}
        for name in wished:
            if _name(name) in self._paths:
                self._add(_name(name), found, frozenset())
        for name in wanted:
            self._add(_name(name), found, frozenset())
        return [*found.items()]

    def has(self, name: str) -> bool:
        """Whether the kernel can do what this module does."""
        return _name(name) in self._paths or _name(name) in self._built_in

    def _add(self, name: str, found: dict[str, bytes], above: frozenset[str]) -> None:
        if name in found or name in above or name in self._built_in:
            return
        if name not in self._paths:
            raise NotFound(f"the kernel in {self._folder} has no module {name}")
        content = _content(self._paths[name])
        for key, value in _INFO.findall(content):
            for other in _names(key, value):
                # What it is better with may be missing, or be no module but an alias of some.
                if key == b"depends" or other in self._paths:
                    self._add(other, found, above | {name})
        found[name] = content


def _names(key: bytes, value: bytes) -> list[str]:
    """Of `depends=crc16,jbd2` or `softdep=pre: sha256 xxhash`."""
    words = value.decode("ascii", "replace").replace(",", " ").split()
    if key == b"softdep":
        words = words[1:] if words[:1] == ["pre:"] else []
    return [_name(word) for word in words if not word.endswith(":")]


def _name(file_name: str) -> str:
    return file_name.partition(".ko")[0].replace("-", "_")


def _built_in(folder: Path) -> frozenset[str]:
    try:
        lines = (folder / "modules.builtin").read_text(errors="replace").split()
    except FileNotFoundError:
        return frozenset()
    return frozenset(_name(line.rpartition("/")[2]) for line in lines)


def _content(path: Path) -> bytes:
    """The module as the kernel takes it; it unpacks none itself."""
    try:
        raw = path.read_bytes()
        if path.suffix == ".xz":
            return lzma.LZMADecompressor().decompress(raw, LARGEST_MODULE)
        if path.suffix == ".zst":
            return zstandard.ZstdDecompressor().decompressobj().decompress(raw)
    except (OSError, lzma.LZMAError, zstandard.ZstdError) as error:
        raise FormatError(f"kernel module {path}: {error}") from error
    return raw

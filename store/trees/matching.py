"""Which entries a search finds: tests on name, path, kind, size and time, all of which must hold.

Globs are those of `.pxarexclude` (store/format/pxar/globs.py): `*` and `?` stop at a slash, `**` is
any number of directories.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from store.errors import InvalidName
from store.format.pxar.entries import Entry, EntryKind
from store.format.pxar.globs import literal_beginning, reaches, translate

KINDS = {
    "f": (EntryKind.FILE, EntryKind.HARDLINK),
    "d": (EntryKind.DIRECTORY,),
    "l": (EntryKind.SYMLINK,),
    "b": (EntryKind.BLOCK_DEVICE,),
    "c": (EntryKind.CHAR_DEVICE,),
    "p": (EntryKind.FIFO,),
    "s": (EntryKind.SOCKET,),
}
_UNITS = {"": 1, "c": 1, "b": 512, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"([+-]?)(\d{1,18})([cbkmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII)

Test = Callable[[bytes, Entry], bool]
Facts = Callable[[Entry], Entry]
"""Of a hard link the file it names, of others themselves: where size and times are."""


@dataclass(frozen=True)
class SizeTest:
    """Sizes from `least` to `most` bytes, both included."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> "SizeTest":
        """Read `+1M` (larger), `-1M` (smaller) or `1M` (exactly). Raises InvalidName."""
        found = _SIZE.fullmatch(text)
        if not found:
            raise InvalidName(f"size {text!r}: write it as +1M, -10k or 512, with k, M, G or T")
        size = int(found[2]) * _UNITS[found[3].lower()]
        if found[1] == "+":
            return cls(size + 1, 1 << 64)
        return cls(0, size - 1) if found[1] == "-" else cls(size, size)


@dataclass(frozen=True)
class Query:
    """What is searched for. Of several names (or paths, kinds) one must match, of sizes all.

    names, inames: globs for the last part of the path; the second without regard to case.
    paths: globs for all of it, from the root of the archive; one without a leading slash may match
        any tail, as a pattern of `restore` does.
    kinds: letters of KINDS.
    newer, older: modified then or later, and before (seconds since the epoch).
    """

    names: Sequence[str] = ()
    inames: Sequence[str] = ()
    paths: Sequence[str] = ()
    kinds: Sequence[str] = ()
    sizes: Sequence[SizeTest] = ()
    newer: int | None = None
    older: int | None = None

    @property
    def wants_times_or_sizes(self) -> bool:
        """Whether anything but names and kinds is asked for."""
        return bool(self.sizes) or self.newer is not None or self.older is not None

    def enters(self) -> "Callable[[bytes], bool] | None":
        """Which directories (by path) can have something below that matches; None: all."""
        globs = _raw(self.paths)
        if not globs or not all(glob.startswith(b"/") for glob in globs):
            return None
        beginnings = [literal_beginning(glob) for glob in globs]
        return lambda path: reaches(beginnings, path)

    def test(self, facts: Facts) -> Test:
        """The whole as one function of `(prefix, entry)`. Raises InvalidName for a bad glob."""
        tests = [self._name_test(), self._path_test(), self._kind_test(), self._facts_test(facts)]
        wanted = [test for test in tests if test is not None]
        if not wanted:
            return lambda _prefix, _entry: True
        if len(wanted) == 1:
            return wanted[0]
        return lambda prefix, entry: all(test(prefix, entry) for test in wanted)

    def _name_test(self) -> Test | None:
        if not self.names and not self.inames:
            return None
        match = _any_of(_raw(self.names)) if self.names else None
        lower = _any_of([_lower(glob) for glob in _raw(self.inames)]) if self.inames else None
        if lower is None:
            assert match is not None
            return lambda _prefix, entry: match(entry.name) is not None
        return lambda _prefix, entry: bool(
            (match and match(entry.name)) or lower(_lower(entry.name))
        )

    def _path_test(self) -> Test | None:
        if not self.paths:
            return None
        globs = [glob if glob.startswith(b"/") else b"**/" + glob for glob in _raw(self.paths)]
        match = _any_of([glob.rstrip(b"/") or b"/" for glob in globs])
        return lambda prefix, entry: match(b"/%b%b" % (prefix, entry.name)) is not None

    def _kind_test(self) -> Test | None:
        if not self.kinds:
            return None
        try:
            wanted = frozenset(kind for letter in self.kinds for kind in KINDS[letter])
        except KeyError as error:
            raise InvalidName(f"type {error}: use {', '.join(KINDS)}") from error
        return lambda _prefix, entry: entry.kind in wanted

    def _facts_test(self, facts: Facts) -> Test | None:
        """Size and time, which a hard link has to be followed for: asked last."""
        sizes, newer, older = self.sizes, self.newer, self.older
        if not self.wants_times_or_sizes:
            return None
        least = max([size.least for size in sizes], default=0)
        most = min([size.most for size in sizes], default=1 << 64)

        def test(_prefix: bytes, entry: Entry) -> bool:
            entry = facts(entry)
            if sizes and not (_has_size(entry) and least <= size_of(entry) <= most):
                return False
            if newer is None and older is None:
                return True
            time = entry.metadata.mtime_s
            return (newer is None or time >= newer) and (older is None or time < older)

        return test


def size_of(entry: Entry) -> int:
    """As `stat` has it: a file's content, a link's target."""
    return len(entry.target) if entry.kind is EntryKind.SYMLINK else entry.size


def _has_size(entry: Entry) -> bool:
    return entry.kind in (EntryKind.FILE, EntryKind.SYMLINK)


def _raw(globs: Sequence[str]) -> list[bytes]:
    if "" in globs:
        raise InvalidName("pattern '': empty")
    return [glob.encode("utf-8", "surrogateescape") for glob in globs]


def _lower(name: bytes) -> bytes:
    """In lower case, also beyond ASCII; bytes that are no UTF-8 stay."""
    if name.isascii():
        return name.lower()
    return name.decode("utf-8", "surrogateescape").lower().encode("utf-8", "surrogateescape")


def _any_of(globs: list[bytes]) -> "Callable[[bytes], object]":
    expressions = [b"(?:%b)" % translate(glob) for glob in globs]
    return re.compile(b"|".join(expressions), re.DOTALL).fullmatch

"""Globs typed in a directory: the entries they stand for, found without walking the whole tree."""

import re
from collections.abc import Iterator

from store.errors import NotFound
from store.format.pxar.entries import EntryKind
from store.format.pxar.globs import SPECIAL, translate
from store.trees.base import FileTree
from store.trees.matching import Query
from store.trees.paths import Spot, find_path, root_of
from store.trees.walk import Walk

_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)


def expand(tree: FileTree, start: Spot, glob: bytes) -> Iterator[Spot]:
    """Yield the spots that a glob stands for, from `start` or, with a leading slash, the root.

    Raises InvalidName for a bad glob.
    """
    spot = root_of(tree) if glob.startswith(b"/") else start
    yield from _expand(tree, spot, [part for part in glob.split(b"/") if part])


def _expand(tree: FileTree, spot: Spot, parts: list[bytes]) -> Iterator[Spot]:
    if not parts:
        yield spot
        return
    first, *rest = parts
    if first == b"**":
        yield from _anywhere(tree, spot, b"/".join(parts))
    elif SPECIAL.search(first.replace(b"\\", b"")):
        match = re.compile(translate(first), re.DOTALL).fullmatch
        directory = _directory(tree, spot)
        for entry in tree.iterate(directory.entry) if directory else ():
            if match(entry.name):
                assert directory is not None
                yield from _expand(tree, directory.child(entry), rest)
    else:
        name = _ESCAPED.sub(rb"\1", first)
        following = _step(tree, spot, name, follow=bool(rest))
        if following is not None:
            yield from _expand(tree, following, rest)


def _step(tree: FileTree, spot: Spot, name: bytes, *, follow: bool) -> Spot | None:
    directory = _directory(tree, spot)
    try:
        return find_path(tree, name, directory, follow=follow) if directory else None
    except NotFound:
        return None


def _directory(tree: FileTree, spot: Spot) -> Spot | None:
    """The directory that a spot is, or that a symbolic link leads to; None if there is none."""
    if spot.entry.kind is EntryKind.SYMLINK:
        try:
            spot = find_path(tree, spot.entry.name, spot.parent)
        except NotFound:
            return None
    return spot if spot.entry.kind is EntryKind.DIRECTORY else None


def _anywhere(tree: FileTree, spot: Spot, glob: bytes) -> Iterator[Spot]:
    test = Query(paths=["/" + glob.decode("utf-8", "surrogateescape")]).test(lambda entry: entry)
    chain: list[Spot] = [spot]
    for prefix, entry in Walk(tree).below(spot.entry):
        del chain[prefix.count(b"/") + 1 :]
        if entry.kind is EntryKind.DIRECTORY:
            found = chain[-1].child(entry)
            chain.append(found)
        if test(prefix, entry):
            yield chain[-1] if entry.kind is EntryKind.DIRECTORY else chain[-1].child(entry)

"""The merged tree of several snapshots, against a model that keeps everything in dictionaries."""

import stat
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.errors import BackendError, FormatError, IntegrityError, KeyRequired
from store.format.buffer import BytesReadAt
from store.format.pxar.accessor import Accessor
from store.format.pxar.entries import Entry, EntryKind, Metadata
from store.trees.moments import Moment
from store.trees.version_names import version_name
from store.trees.versions import VersionsTree
from tests.fakes.archives import SplitTree
from tests.unit.store.format.pxar.archives import Node, encode_tree

HOUR = 3600
DEPTH = 1500
NAMES = [b"a", b"b.txt", b"c"]
VERSIONS_MODE = 0o40555

Path = tuple[bytes, ...]
Shown = dict[Path, tuple[object, ...]]


def directory(mode: int = 0o755, **children: Node) -> Node:
    named = {name.replace("_", ".").encode(): node for name, node in children.items()}
    return Node(Metadata(stat.S_IFDIR | mode), children=named)


def file(content: bytes, mtime: int = 0, mode: int = 0o644, uid: int = 0) -> Node:
    return Node(Metadata(stat.S_IFREG | mode, uid=uid, mtime_s=mtime), content)


def link(target: bytes) -> Node:
    return Node(Metadata(stat.S_IFLNK | 0o777), target=target)


def moment(root: Node, time: int, *, split: bool = True, identity: bytes = b"") -> Moment:
    archive, payload = encode_tree(root, split=split)
    names = Accessor(BytesReadAt(archive))
    whole = Accessor(BytesReadAt(archive), None if payload is None else BytesReadAt(payload))
    label = f"host/h/{time}/root.pxar"
    return Moment(label, time, len(archive), lambda: names, lambda: whole, identity)


def tree(*roots: Node, split: bool = True) -> VersionsTree:
    """Over roots at 1 h, 2 h, 3 h, …"""
    moments = [moment(root, HOUR * number, split=split) for number, root in enumerate(roots, 1)]
    return VersionsTree(moments[::-1])


def walk(found: VersionsTree) -> Iterator[tuple[Path, Entry]]:
    """Everything, by listings; each must be found by its name, and by its number, as it was."""
    todo: list[tuple[Path, Entry]] = [((), found.root())]
    while todo:
        path, entry = todo.pop()
        yield path, entry
        if entry.kind is EntryKind.DIRECTORY:
            children = [*found.iterate(entry)]
            assert len({child.name for child in children}) == len(children)
            for child in children:
                assert same(found.lookup(entry, child.name), child)
                assert same(found.entry_at(child.offset), child)
                todo.append(((*path, child.name), child))
            assert found.lookup(entry, b"nobody") is None
            assert found.lookup(entry, b"1999-01-01T00:00:00Z") is None


def same(one: Entry | None, other: Entry) -> bool:
    assert one is not None
    slots = [slot for slot in Entry.__slots__ if slot != "_metadata"]
    return all(getattr(one, slot) == getattr(other, slot) for slot in slots)


def shown(found: VersionsTree) -> Shown:
    return {path: facts(found, entry) for path, entry in walk(found) if path}


def facts(found: VersionsTree, entry: Entry) -> tuple[object, ...]:
    if entry.kind is EntryKind.DIRECTORY:
        return (entry.kind,)
    if entry.kind is EntryKind.FILE:
        stream, start = found.content(entry)
        content = stream.read(start, entry.size)
        assert found.read(entry, 0, entry.size + 1) == content
        return entry.kind, content, entry.metadata.mtime_s
    return entry.kind, entry.target


def model(roots: list[Node]) -> Shown:
    expected: Shown = {}
    for number, root in enumerate(roots, 1):
        previous = roots[: number - 1]
        for path, node in nodes(root):
            expected[path] = (EntryKind.DIRECTORY,)
            if node.kind is EntryKind.DIRECTORY or judged(node) == last(previous, path):
                continue
            content = (
                (node.content, node.metadata.mtime_s)
                if node.kind is EntryKind.FILE
                else (node.target,)
            )
            expected[(*path, version_name(HOUR * number, path[-1]))] = node.kind, *content
    return expected


def judged(node: Node) -> tuple[object, ...]:
    return node.kind, len(node.content), node.metadata.mtime_s, node.target


def last(roots: list[Node], path: Path) -> tuple[object, ...] | None:
    """What the newest of the roots that has a file at a path has there."""
    for root in reversed(roots):
        for where, node in nodes(root):
            if where == path and node.kind is not EntryKind.DIRECTORY:
                return judged(node)
    return None


def nodes(root: Node, path: Path = ()) -> Iterator[tuple[Path, Node]]:
    for name, node in root.children.items():
        yield (*path, name), node
        yield from nodes(node, (*path, name))


def of(children: dict[bytes, Node]) -> Node:
    return Node(Metadata(stat.S_IFDIR | 0o755), children=children)


FILES = st.builds(file, st.sampled_from([b"", b"x", b"yy"]), st.integers(0, 2))
LINKS = st.builds(link, st.sampled_from([b"x", b"y"]))
DIRECTORIES = st.recursive(
    st.dictionaries(st.sampled_from(NAMES), FILES | LINKS),
    lambda inner: st.dictionaries(st.sampled_from(NAMES), FILES | LINKS | inner.map(of)),
    max_leaves=12,
)


@given(st.lists(DIRECTORIES.map(of), min_size=1, max_size=5), st.booleans())
def test_as_the_model_says(roots: list[Node], split: bool) -> None:
    """Small names, sizes and times, so that files become directories, vanish and come back."""
    assert shown(tree(*roots, split=split)) == model(roots)


def test_a_file_over_time() -> None:
    found = tree(
        directory(a_txt=file(b"one", 1)),
        directory(a_txt=file(b"one", 1)),
        directory(),
        directory(a_txt=file(b"two", 2)),
    )
    assert shown(found) == {
        (b"a.txt",): (EntryKind.DIRECTORY,),
        (b"a.txt", b"1970-01-01T01:00:00Z.txt"): (EntryKind.FILE, b"one", 1),
        (b"a.txt", b"1970-01-01T04:00:00Z.txt"): (EntryKind.FILE, b"two", 2),
    }


def test_hard_links_are_files() -> None:
    name = Node(Metadata(0), link=True)
    first = directory(a=file(b"one", 1), b=name)
    second = directory(a=file(b"one", 1), b=file(b"other", 2))
    paths = shown(tree(first, second))
    assert paths[b"b", b"1970-01-01T01:00:00Z"] == (EntryKind.FILE, b"one", 1)
    assert paths[b"b", b"1970-01-01T02:00:00Z"] == (EntryKind.FILE, b"other", 2)
    assert (b"a", b"1970-01-01T02:00:00Z") not in paths
    assert {entry.links for path, entry in walk(tree(first)) if len(path) == 2} == {1}


def test_the_directory_of_a_file_has_its_owner() -> None:
    found = tree(directory(a=file(b"one", 7, 0o600, uid=5)))
    entry = found.lookup(found.root(), b"a")
    assert entry is not None
    assert entry.metadata == Metadata(VERSIONS_MODE, uid=5, mtime_s=7)


def test_directories_are_no_more_open_than_they_were() -> None:
    found = tree(directory(a=directory(0o700)), directory(a=directory(0o755)))
    for entry in (found.lookup(found.root(), b"a"), next(found.iterate(found.root()))):
        assert entry is not None
        assert entry.metadata.mode == 0o40700


def test_the_same_archive_is_asked_once() -> None:
    root = directory(a=file(b"x"))

    def refuse() -> Accessor:
        pytest.fail("opened")

    again = Moment("again", 2 * HOUR, 100, refuse, refuse, b"same")
    found = VersionsTree([again, moment(root, HOUR, identity=b"same")])
    assert [path for path, _ in walk(found)][-1] == (b"a", b"1970-01-01T01:00:00Z")


def failing(error: Exception) -> Moment:
    def fail() -> Accessor:
        raise error

    return Moment("host/h/bad/root.pxar", HOUR, 100, fail, fail)


@pytest.mark.expect_warnings
@pytest.mark.parametrize("error", [KeyRequired("needs k"), IntegrityError("x"), FormatError("y")])
def test_one_that_cannot_be_read_is_left_out(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    root = directory(a=file(b"x"))
    found = VersionsTree([moment(root, 3 * HOUR), failing(error), moment(root, HOUR)])
    assert shown(found) == model([root])
    assert [record.getMessage() for record in caplog.records] == [
        f"host/h/bad/root.pxar: left out: {error}"
    ]


@pytest.mark.expect_warnings
def test_none_that_can_be_read() -> None:
    with pytest.raises(KeyRequired, match="needs k"):
        VersionsTree([failing(KeyRequired("needs k"))]).root()


def test_a_storage_that_is_away_is_everybodys_error() -> None:
    found = VersionsTree([moment(directory(), 0), failing(BackendError("away"))])
    with pytest.raises(BackendError):
        found.root()


@pytest.mark.expect_warnings
def test_a_damaged_directory_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    older, newer = directory(a=directory(b=file(b"1"))), directory(a=directory(c=file(b"2", 1)))
    archive, payload = encode_tree(newer, split=True)
    assert payload is not None
    archive = archive.replace(b"c\0", b"/\0")
    broken = Accessor(BytesReadAt(archive), BytesReadAt(payload))
    bad = Moment("bad", HOUR, len(archive), lambda: broken, lambda: broken)
    found = VersionsTree([bad, moment(older, 0)])
    for _ in range(2):
        entry = found.lookup(found.root(), b"a")
        assert entry is not None
        assert [child.name for child in found.iterate(entry)] == [b"b"]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["bad"]


def test_numbers_that_lead_nowhere() -> None:
    found = tree(directory(a=file(b"x")), directory(b=directory()))
    known = {entry.offset for _, entry in walk(found)}
    for number in set(range(1, 600)) - known:
        with pytest.raises((FormatError, IntegrityError)):
            found.entry_at(number)


@pytest.mark.expect_warnings
def test_more_than_there_are_numbers_for() -> None:
    huge = Moment("huge", 0, 1 << 46, pytest.fail, pytest.fail)
    found = VersionsTree([moment(directory(a=file(b"x")), HOUR), huge])
    assert [child.name for child in found.iterate(found.root())] == [b"a"]


def test_calls_are_made_at_once_where_that_is_asked_for() -> None:
    rounds: list[int] = []
    roots = [directory(a=directory(b=file(b"%d" % n))) for n in range(3)]
    moments = [moment(root, HOUR * n) for n, root in enumerate(roots, 1)]

    def warm(asks: object) -> None:
        assert isinstance(asks, list)
        rounds.append(len(asks))
        for ask in asks:
            ask()

    found = VersionsTree(moments[::-1], warm)
    assert shown(found) == model(roots)
    assert set(rounds) == {3}


def test_deeper_than_python_recurses() -> None:
    deep = SplitTree()
    for _ in range(DEPTH):
        deep.enter(b"d")
    deep.file(b"f", b"x")
    for _ in range(DEPTH):
        deep.leave()
    archive, _ = deep.finish()

    def merged() -> VersionsTree:
        names = Accessor(BytesReadAt(archive))
        return VersionsTree([Moment("deep", HOUR, len(archive), lambda: names, lambda: names)])

    found = merged()
    entry: Entry | None = found.root()
    for _ in range(DEPTH):
        assert entry is not None
        entry = found.lookup(entry, b"d")
    assert entry is not None
    assert [child.name for child in merged().iterate(entry)] == [b"f"]
    assert same(merged().entry_at(entry.offset), entry)


SOUND = directory(
    a=directory(b_txt=file(b"sound", 1), c=link(b"x")),
    d=file(b"also sound", 2),
    e=directory(0o700, f=file(b"")),
)
NEWER = directory(
    a=directory(b_txt=file(b"newer", 9), d=file(b"x")),
    d=directory(b=file(b"y")),
    e=directory(f=file(b"z", 3)),
)


@pytest.mark.expect_warnings
@given(st.data(), st.booleans())
def test_a_broken_archive_breaks_nothing_else(data: st.DataObject, split: bool) -> None:
    """Whatever bytes are wrong, the other snapshot's files are there, and nothing crashes."""
    archive, payload = encode_tree(NEWER, split=split)
    broken = bytearray(archive)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(broken) - 1))
        broken[position] = data.draw(st.sampled_from([0, 1, 0x7F, 0xFF]) | st.integers(0, 255))

    def open_broken() -> Accessor:
        stream = None if payload is None else BytesReadAt(payload)
        return Accessor(BytesReadAt(bytes(broken)), stream)

    bad = Moment("bad", 2 * HOUR, len(archive), open_broken, open_broken)
    found = VersionsTree([bad, moment(SOUND, HOUR, split=split)])
    seen = contents_by_path(found)
    for path, facts_ in model([SOUND]).items():
        if facts_[0] is EntryKind.FILE:
            assert seen.get(path) == facts_[1]


def contents_by_path(found: VersionsTree) -> dict[Path, bytes]:
    contents = {}
    todo: list[tuple[Path, Entry]] = [((), found.root())]
    while todo:
        path, entry = todo.pop()
        with suppress(FormatError, IntegrityError):
            found.entry_at(entry.offset)
        # A name that only the broken one has may be listed and not be found.
        with suppress(FormatError):
            if entry.kind is EntryKind.DIRECTORY:
                todo += [((*path, child.name), child) for child in found.iterate(entry)]
            elif entry.kind is EntryKind.FILE:
                contents[path] = found.read(entry, 0, 100)
    return contents

"""What comes of a file after it was acknowledged: there is room for it, or nothing goes on."""

from typing import NoReturn

import pytest

from store.errors import OutOfSpace
from store.heads import Heads, Tree
from store.heads.head import OpenHead
from store.heads.journal import COLLECTED
from tests.fakes.datastores import GROUP, ROOT


@pytest.fixture
def tree(head: OpenHead) -> Tree:
    return head.create_tree("root.pxar")


def complete(tree: Tree, number: int, data: bytes, *, releases: bool = False) -> None:
    tree.complete(number, data, 0o100751, 1, 2, 10, 20, 30, releases=releases)


def test_it_is_as_if_done_one_by_one(head: OpenHead, tree: Tree) -> None:
    number = tree.create(tree.root, b"f", 0o600, 0, 0, holds=1).number
    complete(tree, number, b"x" * COLLECTED, releases=True)
    other = tree.create(tree.root, b"g", 0o600, 0, 0).number
    tree.write(other, 0, b"x" * COLLECTED)
    tree.setattr(other, mode=0o751, uid=1, gid=2, atime_ns=10, mtime_ns=20, ctime_ns=30)
    for facts in ("mode", "uid", "gid", "size", "blocks", "atime_ns", "mtime_ns", "ctime_ns"):
        assert getattr(tree.getattr(number), facts) == getattr(tree.getattr(other), facts)
    tree.write(number, 5, b"yz")
    head.sync()
    assert tree.read(number, 0, 9) == b"xxxxxyzxx"
    tree.unlink(tree.root, b"f")
    with pytest.raises(OSError, match="Stale"):
        tree.getattr(number)  # nobody holds it


def test_no_more_than_there_is_room_for(head: OpenHead, tree: Tree) -> None:
    assert tree.room() == COLLECTED
    head.journal.budget_bytes = head.journal.segments.total_bytes + 10
    assert tree.room() == 10
    head.journal.budget_bytes = 0
    assert tree.room() == 0


def test_nothing_while_the_state_of_now_is_wanted(head: OpenHead, tree: Tree) -> None:
    with head.journal.holding_still():
        assert tree.room() == 0
    assert tree.room()


def test_the_disk_is_looked_at_as_for_others(head: OpenHead, tree: Tree) -> None:
    looks = []
    head.journal._look_at_space = lambda: looks.append(1)  # type: ignore[method-assign]
    for number in range(64):
        made = tree.create(tree.root, b"%d" % number, 0o600, 0, 0).number
        complete(tree, made, b"x" * COLLECTED)
    assert 1 <= len(looks) <= 3


def test_what_cannot_be_kept_ends_it(heads: Heads, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was acknowledged: nothing that comes later may be made durable without it."""
    head = heads.open(ROOT, GROUP)
    tree = head.create_tree("root.pxar")

    def fail(*_: object) -> NoReturn:
        raise OutOfSpace("injected")

    number = tree.create(tree.root, b"f", 0o600, 0, 0).number
    with monkeypatch.context() as patched:
        patched.setattr(head.journal.segments, "append", fail)
        with pytest.raises(OutOfSpace):
            complete(tree, number, b"x")
    assert tree.room() == 0
    with pytest.raises(OutOfSpace):
        tree.sync()
    with pytest.raises(OutOfSpace):
        tree.create(tree.root, b"g", 0o600, 0, 0)
    with pytest.raises(OutOfSpace):
        head.close()

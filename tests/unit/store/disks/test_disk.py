"""Which engine opens a part, the first time and again."""

import pytest

from store.disks.base import Part, Segment
from store.disks.disk import DiskPart, Disks
from store.errors import IntegrityError
from store.format.buffer import BytesReadAt, ReadAt


class Tree:
    """By somebody."""

    def __init__(self, by: str) -> None:
        self.by = by

    def close(self) -> None:
        """Nothing to do."""


class Machine:
    """An engine that opens everything."""

    def why_not(self, kind: str) -> str:
        return ""

    def open(self, part: Part, blocks: ReadAt) -> Tree:
        return Tree("machine")


@pytest.mark.parametrize(
    ("parser_works", "opened_by"),
    [
        ((True, True), ["parsers", "parsers"]),
        ((False, True), ["machine", "machine"]),
        ((True, False), ["parsers", "an error"]),
    ],
)
def test_a_part_is_opened_again_by_the_same_engine(
    monkeypatch: pytest.MonkeyPatch, parser_works: tuple[bool, ...], opened_by: list[str]
) -> None:
    """Each numbers files its own way, and the kernel still holds numbers of the tree before."""
    answers = iter(parser_works)

    def parse(_process: object) -> Tree:
        if next(answers):
            return Tree("parsers")
        raise IntegrityError("too slow")

    monkeypatch.setattr("store.disks.disk.ParsedTree", parse)
    disks = Disks()
    disks.machine = Machine()  # type: ignore[assignment] # its trees have nothing in them
    part = Part("part1", "btrfs", (Segment(0, 4096),))
    opened = DiskPart(part, BytesReadAt(bytes(4096)), "disk: part1", disks, needs_recovery=False)
    found = []
    for _ in parser_works:
        try:
            found.append(opened.open_tree().by)  # type: ignore[attr-defined]
        except IntegrityError:
            found.append("an error")
        disks._trees.clear()  # others were used since
    assert found == opened_by

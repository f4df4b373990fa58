"""Which engine opens a part, the first time and again; and what an encrypted one says."""

import pytest

from store.disks.base import Part, Segment, State
from store.disks.disk import Disk, DiskOptions, DiskPart, Disks
from store.disks.layout import Described
from store.disks.replay import NotReplayed
from store.errors import BackendError, ChunkMissing, IntegrityError, KeyRequired, StoreError
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

    def close(self) -> None:
        """Nothing to do."""


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
    part, blocks = Part("part1", "btrfs", (Segment(0, 4096),)), BytesReadAt(bytes(4096))
    found = []
    for _ in parser_works:
        opened = DiskPart(part, blocks, "disk: part1", disks, needs_recovery=False)
        try:
            found.append(opened.open_tree().by)  # type: ignore[attr-defined]
        except IntegrityError:
            found.append("an error")
        disks._trees.clear()  # others were used since, and other disks
    assert found == opened_by


def _described(number: int, kind: str, unclean: str = "") -> Described:
    return Described(number, (Segment(0, 4096),), kind, "", "", unclean, "")


@pytest.mark.expect_warnings
def test_what_cannot_be_replayed_goes_by_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def replayed(*_: object) -> ReadAt:
        raise NotReplayed("disk: part2: in vain")

    found = [_described(1, "fat"), _described(2, "ntfs", "the journal holds writes")]
    monkeypatch.setattr(Disk, "_layout", lambda _disk, _stream, _name: found)
    monkeypatch.setattr("store.disks.disk.ParsedTree", lambda _process: Tree("parsers"))
    monkeypatch.setattr("store.disks.replay.why_not", lambda _kind: "")
    monkeypatch.setattr("store.disks.replay.replayed", replayed)
    disk = Disk(BytesReadAt(bytes(4096)), "disk", Disks(DiskOptions(use_machine=False)))
    first = disk.parts[0]
    assert disk.parts[1].directory == "part2"
    with pytest.raises(NotReplayed):
        disk.parts[1].open_tree()
    for _ in range(2):
        assert [part.directory for part in disk.parts] == ["part1", "part2.unclean"]
        assert disk.parts[1].open_tree().by == "parsers"  # type: ignore[attr-defined]
    assert disk.parts[0] is first


class TestEncrypted:
    """A disk of two parts, whose second is decrypted as `attempts` say."""

    attempts: tuple[StoreError | None, ...]

    @pytest.fixture
    def disk(self, monkeypatch: pytest.MonkeyPatch) -> Disk:
        plain = BytesReadAt(bytes(4096))

        def layout(disk: Disk, stream: ReadAt, name: str) -> list[Described]:
            is_inside = stream is plain
            return [_described(1, "ext4")] + [_described(2, "luks")] * (not is_inside)

        def plaintext(disk: Disk, blocks: ReadAt, kind: str, name: str) -> ReadAt:
            error, *self.attempts = self.attempts
            if error is not None:
                raise error
            return plain

        monkeypatch.setattr(Disk, "_layout", layout)
        monkeypatch.setattr(Disk, "_plaintext", plaintext)
        monkeypatch.setattr("store.disks.disk.ParsedTree", lambda _process: Tree("parsers"))
        return Disk(BytesReadAt(bytes(4096)), "disk", Disks())

    def test_only_a_missing_key_is_locked(self, disk: Disk) -> None:
        self.attempts = (KeyRequired("no key given opens it"),)
        for _ in range(2):
            assert disk.parts[1].state is State.LOCKED
            with pytest.raises(KeyRequired, match="is encrypted"):
                disk.parts[1].open_tree()

    @pytest.mark.parametrize("error", [ChunkMissing("gone"), IntegrityError("takes too long")])
    def test_all_else_is_said_and_tried_again(self, disk: Disk, error: StoreError) -> None:
        self.attempts = (error, error, None)
        first = disk.parts[0]
        assert disk.parts[1].has_tree
        for _ in range(2):
            with pytest.raises(IntegrityError, match=str(error)):
                disk.parts[1].open_tree()
        assert disk.parts[1].state is State.CLEAN
        assert disk.parts[1].open_tree().by == "parsers"  # type: ignore[attr-defined]
        assert disk.parts[0] is first

    def test_a_storage_that_is_away(self, disk: Disk) -> None:
        self.attempts = (BackendError("away", retryable=True), None)
        with pytest.raises(BackendError):
            _ = disk.parts
        assert disk.parts[1].state is State.CLEAN

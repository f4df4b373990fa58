"""Broken and hostile disks: a parser may say what is wrong, and nothing else may happen."""

import os
import time
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path

import pytest

from store.disks.disk import DiskOptions, open_disk
from store.disks.parsers.process import Crew, ParserProcess
from store.disks.parsers.tree import ParsedTree
from store.errors import StoreError
from store.format.buffer import ReadAt
from store.trees.base import FileTree
from tests.conftest import once
from tests.fakes.disk_files import DiskFile
from tests.fakes.mutations import Recorded, Walk, mutate
from tests.guest_disks import children_of, make_kit, peak_kib

pytestmark = [
    pytest.mark.needs("root", "images"),
    pytest.mark.timeout(3600),
    pytest.mark.expect_warnings,  # of journals that cannot be made out
]

KINDS = {"ext4": "ext4", "xfs": "xfs", "btrfs": "btrfs", "ntfs": "ntfs", "fat32": "fat"}
IMAGES = (*KINDS, "gpt-lvm", "mbr-multi")
FEW, MANY = 40, 500
# A parser is killed after ten seconds of its own; what it waits for is not counted.
PATIENCE_S = 13.0
MEMORY_KIB = 512 << 10
# What the parsers give up on is not for a machine to boot, here.
NO_MACHINE = DiskOptions(use_machine=False)


@pytest.fixture(scope="module")
def images(shared_folder: Path) -> Path:
    folder = shared_folder / "small-disks"
    with once(folder) as first:
        if first:
            folder.mkdir()
            make_kit(folder, 30)
    return folder


def parsed(stream: ReadAt, image: Path, crew: Crew) -> ParsedTree:
    """An image that is one file system."""
    return ParsedTree(ParserProcess(stream, KINDS[image.stem], crew, image.stem))


@cache
def metadata_of(image: Path) -> list[tuple[int, int]]:
    """Where a parser looks: all but the content of large files."""
    file = DiskFile(image)
    stream = Recorded(file)
    if image.stem in KINDS:
        crew = Crew()
        assert Walk(parsed(stream, image, crew)).errors == []
        crew.close()
    else:
        disk = open_disk(stream, image.stem, NO_MACHINE)
        trees = [part.open_tree() for part in disk.parts if part.has_tree]
        assert len(trees) >= 3
        assert [Walk(tree).errors for tree in trees] == [[]] * len(trees)
        disk.close()
    file.close()
    return sorted(read for read in stream.reads if read[1] <= 512 << 10)


def look_at(image: Path, seed: str) -> None:
    """Everything there is in a mutated disk."""
    with closing(DiskFile(image)) as stream:
        mutated = mutate(stream, metadata_of(image), seed)
        if image.stem in KINDS:
            crew = Crew()
            look_into(lambda: parsed(mutated, image, crew), crew.close, seed)
        else:
            look_at_parts(mutated, image, seed)


def look_at_parts(mutated: ReadAt, image: Path, seed: str) -> None:
    """The parts that a mutated disk says it has, and the file systems in them."""
    disk = open_disk(mutated, image.stem, NO_MACHINE)
    try:
        parts = disk.parts
    except StoreError:
        parts = []
    for part in parts:
        assert part.size <= mutated.size
        if part.has_tree:
            look_into(part.open_tree, check_memory, f"{seed}: {part.name}")
    check_memory()
    disk.close()


def look_into(open_tree: Callable[[], FileTree], end: Callable[[], None], what: str) -> None:
    """A broken file system, as far as it goes; within the time and memory there are."""
    started = time.monotonic()
    try:
        Walk(open_tree())
    except StoreError:
        pass
    finally:
        check_memory()
        end()
    assert time.monotonic() - started < PATIENCE_S, what


def check_memory() -> None:
    """Of the parsers that live."""
    for child in children_of(os.getpid()):
        assert peak_kib(child) < MEMORY_KIB


def check(images: Path, seeds: range) -> None:
    for seed in seeds:
        image = images / f"{IMAGES[seed % len(IMAGES)]}.raw"
        look_at(image, f"{image.stem} {seed}")


def test_a_few_mutated_disks(images: Path) -> None:
    check(images, range(FEW))


@pytest.mark.slow
def test_many_mutated_disks(images: Path) -> None:
    check(images, range(FEW, MANY))

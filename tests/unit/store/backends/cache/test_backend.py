"""What a cache of chunks answers, drops, and leaves to the store."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from store.backends.cache.backend import Cache
from store.errors import InvalidName, NotFound
from tests.fakes.chunks import ChunkSource, chunk

MIB = 1 << 20
ONE, TWO, THREE = (chunk(number) for number in range(3))


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if len(path.name) == 64]


@pytest.fixture
def source() -> ChunkSource:
    return ChunkSource((ONE, TWO, THREE))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(source: ChunkSource, directory: Path) -> Cache:
    return Cache(source, str(directory), 4 * MIB)


def test_a_chunk_is_fetched_once(cache: Cache, source: ChunkSource) -> None:
    assert [cache.read(ONE.name) for _ in range(3)] == [ONE.raw] * 3
    assert cache.read_range(ONE.name, 4, 10) == ONE.raw[4:14]
    assert source.asked == [ONE.name]
    usage = cache.usage()
    assert (usage.entries, usage.hits, usage.misses) == (1, 3, 1)
    assert len(ONE.raw) < usage.bytes < usage.budget_bytes == 4 * MIB


def test_a_range_of_a_chunk_that_is_not_here_is_passed_on(
    cache: Cache, source: ChunkSource
) -> None:
    assert cache.read_range(ONE.name, 4, 10) == ONE.raw[4:14]
    assert source.asked == [ONE.name]
    assert cache.usage().entries == 0


@pytest.mark.parametrize(
    "name",
    [
        "host/web01/owner",
        f".chunks/{'0' * 4}/{'1' * 64}",
        f".chunks/{'a' * 4}/{'a' * 63}",
        f".chunks/{'a' * 4}/{'A' * 64}",
        f".chunks/{'a' * 4}/{'a' * 64}.0.bad",
        f"x/.chunks/{'a' * 4}/{'a' * 64}",
    ],
)
def test_only_chunks_are_kept(cache: Cache, source: ChunkSource, name: str) -> None:
    source.mkdir(name.rpartition("/")[0])
    source.write(name, (ONE.raw,))
    assert [cache.read(name), cache.read(name)] == [ONE.raw] * 2
    assert source.asked == [name, name]
    assert cache.usage().entries == 0


@pytest.mark.parametrize(
    "bad",
    [b"", b"x" * 100, ONE.raw[:-1], ONE.raw[:20] + b"\xff" + ONE.raw[21:], bytes(17 * MIB)],
    ids=["empty", "foreign", "cut", "flipped", "huge"],
)
def test_a_damaged_chunk_is_passed_on_and_not_kept(
    cache: Cache, source: ChunkSource, bad: bytes
) -> None:
    source.write(ONE.name, (bad,))
    assert [cache.read(ONE.name), cache.read(ONE.name)] == [bad] * 2
    assert cache.usage().entries == 0


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[2000] ^= 1
    path.write_bytes(raw)


def _link(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, 0),
        lambda path: os.truncate(path, 5),
        lambda path: os.truncate(path, 3000),
        lambda path: os.truncate(path, 1 << 40),
        lambda path: path.write_bytes(b"something else"),
        _flip,
        _link,
        _pipe,
    ],
    ids=["empty", "no header", "cut", "huge", "foreign", "flipped", "symlink", "pipe"],
)
def test_a_damaged_file_is_dropped_and_the_chunk_fetched(
    cache: Cache,
    source: ChunkSource,
    directory: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
) -> None:
    cache.read(ONE.name)
    (path,) = files(directory)
    damage(path)
    with caplog.at_level(logging.INFO):
        assert cache.read(ONE.name) == ONE.raw
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert str(path) in caplog.text
    assert source.asked == [ONE.name] * 2
    assert cache.read(ONE.name) == ONE.raw
    assert source.asked == [ONE.name] * 2
    assert cache.usage().entries == 1


@pytest.mark.expect_warnings
def test_a_directory_in_the_place_of_a_file(
    cache: Cache, source: ChunkSource, directory: Path
) -> None:
    cache.read(ONE.name)
    (path,) = files(directory)
    path.unlink()
    path.mkdir()
    assert [cache.read(ONE.name), cache.read(ONE.name)] == [ONE.raw] * 2


def test_copies_are_asked_for_when_the_decoder_finds_one_bad(
    cache: Cache, source: ChunkSource, directory: Path
) -> None:
    """The CRC does not cover the header of an encrypted chunk, nor who has which name."""
    source.write(ONE.name, (TWO.raw,))
    assert cache.read(ONE.name) == TWO.raw
    source.write(ONE.name, (ONE.raw,))
    assert cache.read(ONE.name) == TWO.raw
    assert list(cache.copies(ONE.name)) == [ONE.raw]
    assert files(directory) == []
    assert cache.read(ONE.name) == ONE.raw
    cache.repair(ONE.name, ONE.raw)
    assert files(directory) == []


def test_a_copy_that_can_not_be_read_is_left_out(cache: Cache, source: ChunkSource) -> None:
    source.delete(ONE.name)
    assert list(cache.copies(ONE.name)) == []
    assert list(cache.copies("host/web01/owner")) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.delete(ONE.name),
        lambda cache: cache.rename(ONE.name, f"{ONE.name}.0.bad"),
        lambda cache: cache.rename(TWO.name, ONE.name),
        lambda cache: cache.remove_tree(ONE.name.rpartition("/")[0]),
        lambda cache: cache.remove_tree(".chunks"),
        lambda cache: cache.write(ONE.name, (TWO.raw,)),
    ],
    ids=["delete", "rename away", "rename onto", "directory", "all", "write"],
)
def test_what_changes_through_us_is_dropped(
    cache: Cache, source: ChunkSource, change: Callable[[Cache], None]
) -> None:
    cache.read(ONE.name)
    cache.read(THREE.name)
    change(cache)
    there = source.stat(ONE.name)
    if there is None:
        with pytest.raises(NotFound):
            cache.read(ONE.name)
    else:
        assert cache.read(ONE.name) == TWO.raw
    assert cache.usage().entries == (there is not None) + (source.stat(THREE.name) is not None)


def test_what_a_failed_call_may_have_changed_is_dropped(cache: Cache, directory: Path) -> None:
    cache.read(ONE.name)
    cache.inner.delete(ONE.name)
    with pytest.raises(NotFound):
        cache.delete(ONE.name)
    assert files(directory) == []


def test_written_chunks_are_not_kept(cache: Cache) -> None:
    new = chunk(9)
    cache.mkdir(new.name.rpartition("/")[0])
    cache.write(new.name, (new.raw,), exclusive=True)
    assert cache.usage().entries == 0


def test_the_cache_says_nothing_about_the_store(cache: Cache, source: ChunkSource) -> None:
    cache.read(ONE.name)
    source.delete(ONE.name)
    assert cache.stat(ONE.name) is None
    assert cache.touch(ONE.name) is None
    assert ONE.name.removeprefix(".chunks/") not in [found.name for found in cache.walk(".chunks")]


def test_datastores_share_a_directory_and_no_chunk(directory: Path) -> None:
    with_it, without = ChunkSource((ONE,), "s3://a/one"), ChunkSource((), "s3://a/two")
    first = Cache(with_it, str(directory), 4 * MIB)
    second = Cache(without, str(directory), 4 * MIB)
    namesake = Cache(without, str(directory), 4 * MIB, identity="https://other s3://a/one")
    same = Cache(without, str(directory), 4 * MIB, identity="s3://a/one")
    assert first.read(ONE.name) == ONE.raw
    for other in (second, namesake):
        with pytest.raises(NotFound):
            other.read(ONE.name)
    assert same.read(ONE.name) == ONE.raw
    without.add(ONE)
    second.read(ONE.name)
    second.remove_tree(".chunks")
    assert second.usage().entries == first.usage().entries == 1


def test_what_was_kept_survives_a_restart(source: ChunkSource, directory: Path) -> None:
    for _ in range(3):
        cache = Cache(source, str(directory), 4 * MIB)
        assert cache.read(ONE.name) == ONE.raw
        assert cache.usage().entries == 1
        cache.close()
    assert source.asked == [ONE.name]


def test_the_budget_is_held_across_restarts(directory: Path) -> None:
    chunks = [chunk(number, 30_000) for number in range(60)]
    for start in range(0, 60, 20):
        cache = Cache(ChunkSource(chunks), str(directory), MIB)
        for one in chunks[start : start + 20]:
            cache.read(one.name)
            assert cache.usage().bytes <= MIB
        cache.close()
    smaller = Cache(ChunkSource(chunks), str(directory), MIB // 2)
    smaller.read(chunks[0].name)
    assert smaller.usage().bytes <= MIB // 2
    assert smaller.usage().entries == len(files(directory)) > 5


def test_a_chunk_larger_than_the_budget_costs_nobody_his_place(
    cache: Cache, source: ChunkSource
) -> None:
    big = chunk(9, 5 * MIB)
    source.add(big)
    cache.read(ONE.name)
    assert cache.read(big.name) == big.raw
    assert cache.usage().entries == 1


def test_modes_are_private_and_backups_leave_it_out(cache: Cache, directory: Path) -> None:
    cache.read(ONE.name)
    modes = {path: path.stat().st_mode & 0o777 for path in (directory, *directory.rglob("*"))}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert (
        (directory / "CACHEDIR.TAG")
        .read_bytes()
        .startswith(b"Signature: 8a477f597d28d172789f06886806bc55")
    )


def test_a_file_is_refused(source: ChunkSource, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"dear to somebody")
    with pytest.raises(InvalidName, match=r"photo\.jpg: not a directory; give an empty or a new"):
        Cache(source, str(tmp_path / "photo.jpg"), 1 << 20)


def test_a_directory_with_something_else_is_refused(source: ChunkSource, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"dear to somebody")
    with pytest.raises(InvalidName, match=r"photo\.jpg"):
        Cache(source, str(tmp_path), MIB)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_an_empty_directory_is_made_private(source: ChunkSource, directory: Path) -> None:
    directory.mkdir(0o755)
    (directory / "lost+found").mkdir()
    Cache(source, str(directory), MIB)
    assert directory.stat().st_mode & 0o777 == 0o700


def test_what_killed_writers_left_goes_when_it_is_old(source: ChunkSource, directory: Path) -> None:
    Cache(source, str(directory), MIB)
    old, new, foreign = (
        directory / "tmp" / name for name in ("0" * 64 + ".abcdef", "1" * 64 + ".abcdef", "mine")
    )
    for path in (old, new, foreign):
        path.write_bytes(b"half a chunk")
    for path in (old, foreign):
        os.utime(path, (0, 0))
    Cache(source, str(directory), MIB)
    assert [path.exists() for path in (old, new, foreign)] == [False, True, True]


def _without_index(directory: Path) -> None:
    (directory / "index.sqlite").unlink()


def _garbled_index(directory: Path) -> None:
    (directory / "index.sqlite").write_bytes(b"SQLite format 3\0" + os.urandom(40_000))


def _foreign_index(directory: Path) -> None:
    (directory / "index.sqlite").write_bytes(b"no database at all")


@pytest.mark.parametrize("damage", [_without_index, _garbled_index, _foreign_index])
@pytest.mark.parametrize("running", [True, False], ids=["running", "between runs"])
def test_a_lost_or_damaged_index_is_made_anew_from_the_files(
    source: ChunkSource, directory: Path, damage: Callable[[Path], None], running: bool
) -> None:
    clock = [0.0]

    def start() -> Cache:
        return Cache(source, str(directory), 4 * MIB, clock=lambda: clock[0])

    cache = start()
    cache.read(ONE.name)
    cache.read(TWO.name)
    if not running:
        cache.close()
    damage(directory)
    if not running:
        cache = start()
    assert cache.read(ONE.name) == ONE.raw
    assert cache.read(THREE.name) == THREE.raw  # finds the damage, may not be kept
    clock[0] += 5
    cache.read(THREE.name)
    assert cache.usage().entries == 3
    source.asked.clear()
    assert [cache.read(one.name) for one in (ONE, TWO, THREE)] == [ONE.raw, TWO.raw, THREE.raw]
    assert source.asked == []


def _all(directory: Path) -> None:
    shutil.rmtree(directory)


def _content(directory: Path) -> None:
    for path in directory.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _directories(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


@pytest.mark.parametrize("delete", [_all, _content, _directories])
def test_the_directory_may_be_deleted_while_it_is_used(
    source: ChunkSource, directory: Path, delete: Callable[[Path], None]
) -> None:
    clock = [0.0]
    cache = Cache(source, str(directory), 4 * MIB, clock=lambda: clock[0])
    for one in (ONE, TWO):
        cache.read(one.name)
    delete(directory)
    for _ in range(2):
        assert [cache.read(one.name) for one in (ONE, TWO)] == [ONE.raw, TWO.raw]
        clock[0] += 5
    source.asked.clear()
    assert [cache.read(one.name) for one in (ONE, TWO)] == [ONE.raw, TWO.raw]
    assert source.asked == []
    assert cache.usage().entries == 2


def test_a_fork_is_harmless(cache: Cache, directory: Path) -> None:
    cache.read(ONE.name)
    child = os.fork()
    if not child:
        good = [cache.read(one.name) for one in (ONE, TWO)] == [ONE.raw, TWO.raw]
        good = good and cache.usage().entries == 2
        os._exit(0 if good else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert [cache.read(one.name) for one in (ONE, TWO, THREE)] == [ONE.raw, TWO.raw, THREE.raw]
    assert cache.usage().entries == 3

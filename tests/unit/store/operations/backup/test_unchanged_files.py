"""Files that are as they were, taken over many at once: the result is that of looking at each."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from store.names import Digest
from store.operations.backup import previous
from tests.fakes.datastores import ROOT, local_datastore
from tests.unit.store.operations.backup.conftest import METADATA, Vault, contents, noise

FILES = 60


def fill(source: Path, rng: random.Random) -> None:
    for number in range(FILES):
        path = source / f"d{number % 3}/file-{number:03d}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(noise(number, rng.choice((0, 10, 700, 9000))))
    (source / "d0/link").symlink_to("file-000")
    (source / "d0/second").hardlink_to(source / "d0/file-003")
    os.setxattr(source / "d1/file-001", "user.colour", b"blue")
    settle(source)


def settle(source: Path) -> None:
    """Give what was written just now a time that is not now."""
    for path in source.rglob("*"):
        if path.is_file() and not path.is_symlink():
            time = path.stat().st_mtime_ns - 3_600_000_000_000
            os.utime(path, ns=(time, time))


def touch(path: Path) -> None:
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def replace_by_symlink(path: Path) -> None:
    path.unlink()
    path.symlink_to("elsewhere")


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def rewrite(path: Path) -> None:
    """Other bytes, as many, and another time."""
    size = path.stat().st_size
    path.write_bytes(noise(99, size))
    os.utime(path, ns=(1, 1_600_000_000_000_000_001))


CHANGES: dict[str, Callable[[Path], object]] = {
    "time": touch,
    "content": rewrite,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "mode": lambda path: path.chmod(0o600),
    "removed": Path.unlink,
    "added": lambda path: path.with_name(path.name + "-new").write_bytes(b"new"),
    "renamed": lambda path: path.rename(path.with_name("z-" + path.name)),
    "linked": lambda path: path.with_name(path.name + "-link").hardlink_to(path),
    "attribute": lambda path: os.setxattr(path, "user.colour", b"red"),
    "symlink": replace_by_symlink,
    "directory": replace_by_directory,
    "fresh": lambda path: os.utime(path),
}


def both(tmp_path: Path) -> tuple[Vault, Vault]:
    return Vault(local_datastore(tmp_path / "fast")), Vault(local_datastore(tmp_path / "slow"))


def back_up(vault: Vault, source: Path, monkeypatch: pytest.MonkeyPatch, *, slow: bool) -> None:
    with monkeypatch.context() as patch:
        if slow:
            patch.setattr(previous, "unchanged_files", None)
        vault.backup(f"root.pxar:{source}", change_detection_mode=METADATA)


def digests(vault: Vault, kind: str) -> list[Digest]:
    index = vault.datastore.dynamic_index(ROOT, vault.snapshots[-1], f"root.{kind}pxar.didx")
    return [index.digest(position) for position in range(len(index))]


def check(fast: Vault, slow: Vault, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Back up with and without, and compare every byte of what came of it."""
    back_up(fast, source, monkeypatch, slow=False)
    back_up(slow, source, monkeypatch, slow=True)
    assert fast.warnings == slow.warnings
    for kind in "mp":
        assert digests(fast, kind) == digests(slow, kind)
    assert fast.open(fast.snapshots[-1]).contents == contents(source)


def test_the_module_is_built() -> None:
    assert previous.unchanged_files is not None


def test_nothing_changed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(source, random.Random(0))
    fast, slow = both(tmp_path)
    check(fast, slow, source, monkeypatch)
    before = digests(fast, "m"), digests(fast, "p")
    taken = spy_on_runs(monkeypatch)
    check(fast, slow, source, monkeypatch)
    assert (digests(fast, "m"), digests(fast, "p")) == before
    assert sum(taken) >= FILES - 5


def spy_on_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files each call recognised."""
    taken: list[int] = []
    original = previous.unchanged_files

    def count(*arguments: object) -> tuple[bytes, bytes, bytes]:
        found: tuple[bytes, bytes, bytes] = original(*arguments)  # type: ignore[arg-type]
        taken.append(len(found[0]) // 8)
        return found

    monkeypatch.setattr(previous, "unchanged_files", count)
    return taken


@pytest.mark.parametrize("change", CHANGES)
def test_one_change(
    change: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(source, random.Random(1))
    fast, slow = both(tmp_path)
    check(fast, slow, source, monkeypatch)
    for name in ("d1/file-004", "d2/file-002", "d0/file-057"):  # in the middle, first, last
        CHANGES[change](source / name)
    check(fast, slow, source, monkeypatch)
    check(fast, slow, source, monkeypatch)


@pytest.mark.parametrize("seed", range(12))
def test_generations_of_changes(
    seed: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    fill(source, rng)
    fast, slow = both(tmp_path)
    for _ in range(4):
        check(fast, slow, source, monkeypatch)
        files = sorted(p for p in source.rglob("*") if p.is_file() and not p.is_symlink())
        for path in rng.sample(files, rng.randrange(len(files) // 4)):
            CHANGES[rng.choice([*CHANGES])](path)
        if rng.random() < 0.3:
            shutil.rmtree(source / "d1", ignore_errors=True)


def test_directories_of_many_files_and_long_names(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than one call takes, more than one window of the archive has."""
    for number in range(3000):
        (source / f"{number:05d}-{'x' * (number % 240)}").write_bytes(b"%d" % number)
    settle(source)
    fast, slow = both(tmp_path)
    check(fast, slow, source, monkeypatch)
    (source / f"01500-{'x' * (1500 % 240)}").write_bytes(b"changed")
    taken = spy_on_runs(monkeypatch)
    check(fast, slow, source, monkeypatch)
    assert sum(taken) > 2900
    assert len(taken) < 60


def test_excluded_files_are_left_out(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(source, random.Random(2))
    fast, slow = both(tmp_path)
    check(fast, slow, source, monkeypatch)
    (source / ".pxarexclude").write_text("file-01*\n")
    back_up(fast, source, monkeypatch, slow=False)
    back_up(slow, source, monkeypatch, slow=True)
    for kind in "mp":
        assert digests(fast, kind) == digests(slow, kind)
    assert not [name for name in fast.open(fast.snapshots[-1]).names if "file-01" in name]

"""What of a tree is archived: exclude patterns, file systems, the datastore itself."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.errors import InvalidName, SourceError
from store.format.catalog import Catalog
from store.format.pxar.entries import EntryKind
from store.operations.backup import ChangeDetectionMode
from tests.unit.store.operations.backup.conftest import DATA, LEGACY, Vault

needs_root = pytest.mark.needs("root")


def fill(directory: Path, *names: str) -> None:
    """Make files, and directories where a name ends in a slash."""
    for name in names:
        path = directory / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)


@pytest.fixture
def tmpfs(source: Path) -> Iterator[Path]:
    """Another file system, mounted below the source."""
    point = source / "mounted"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=750", "none", point], check=True)
    fill(point, "inside", "sub/deeper")
    yield point
    subprocess.run(["umount", "-R", point], check=True)


def test_exclude(vault: Vault, source: Path, mode: ChangeDetectionMode) -> None:
    fill(source, "a.tmp", "b", "d/c.tmp", "d/e", "cache/x", "keep/cache", "d/keep.tmp")
    tree = vault.tree(source, mode, exclude=("*.tmp", "cache/", "!keep.tmp"))
    names = [name for name in tree.names if name != ".pxarexclude-cli"]
    assert names == ["b", "d", "d/e", "d/keep.tmp", "keep", "keep/cache"]


def test_the_command_lines_patterns_are_kept(vault: Vault, source: Path) -> None:
    """In a file after all names (v1), or in the prelude (v2)."""
    fill(source, ".pxarexclude-cli", "a", "b")
    patterns = ("/a", "!/b", "*.tmp/")
    tree = vault.tree(source, LEGACY, exclude=patterns)
    assert tree.names == ["b", ".pxarexclude-cli"]
    assert tree.read(".pxarexclude-cli") == b"/a\n!/b\n*.tmp/\n"
    metadata = tree[".pxarexclude-cli"].metadata
    assert (metadata.mode, metadata.mtime_s) == (0o100600, 0)
    catalog = vault.reader(vault.snapshots[-1]).catalog()
    assert isinstance(catalog, Catalog)
    [root] = catalog.archives()
    assert [entry.name for entry in catalog.list(root)] == [b"b", b".pxarexclude-cli"]
    tree = vault.tree(source, DATA, exclude=patterns)
    assert tree.names == [".pxarexclude-cli", "b"]
    assert tree.accessor.prelude == b'{"exclude-patterns":"/a\\n!/b\\n*.tmp/\\n"}'
    assert vault.tree(source, DATA).accessor.prelude is None


def test_bad_pattern(vault: Vault, source: Path) -> None:
    with pytest.raises(InvalidName, match="not a valid pattern"):
        vault.tree(source, exclude=("[a",))
    assert vault.snapshots == []


def test_exclude_files(vault: Vault, source: Path, mode: ChangeDetectionMode) -> None:
    """They hold for their directory and all below, the deepest first, and end with it."""
    fill(
        source,
        "a.o",
        "x/a.o",
        "x/keep/a.o",
        "x/only",
        "x/sub/only",
        "y/only",
        "y/a.o",
        "dir/only/f",
    )
    fill(source, "x/anchored", "x/sub/anchored")
    (source / ".pxarexclude").write_text("# comment\n\n  *.o  \nonly/\n")
    (source / "x/.pxarexclude").write_text("only\n/anchored\n")
    (source / "x/keep/.pxarexclude").write_text("!a.o\n")
    tree = vault.tree(source, mode)
    files = [name for name in tree.names if tree[name].kind is EntryKind.FILE]
    assert files == [
        ".pxarexclude",
        "x/.pxarexclude",
        "x/keep/.pxarexclude",
        "x/keep/a.o",
        "x/sub/anchored",
        "y/only",
    ]
    assert vault.warnings == []


def test_odd_exclude_files(vault: Vault, source: Path) -> None:
    """A bad line is named and skipped; only a regular file counts; too large is not read."""
    fill(source, "a/f", "b/f", "c/f", "d/f")
    (source / "a/.pxarexclude").write_text("[x\nf\n")
    (source / "b/.pxarexclude").mkdir()
    (source / "c/.pxarexclude").symlink_to("../a/.pxarexclude")
    with (source / "d/.pxarexclude").open("wb") as file:
        file.truncate((16 << 20) + 1)
    tree = vault.tree(source)
    assert [name for name in tree.names if name.endswith("/f")] == ["b/f", "c/f", "d/f"]
    assert vault.warnings == [
        f"{source}/a/.pxarexclude: bad pattern '[x' ignored",
        f"{source}/d/.pxarexclude: not honoured: File too large",
    ]


def test_lost_and_found(vault: Vault, source: Path) -> None:
    fill(source, "lost+found/x", "a/lost+found/x", "b")
    assert "lost+found/x" in vault.tree(source).names
    names = vault.tree(source, skip_lost_and_found=True).names
    assert [name for name in names if name != ".pxarexclude-cli"] == ["a", "b"]


@needs_root
def test_one_file_system(
    vault: Vault, source: Path, tmpfs: Path, mode: ChangeDetectionMode
) -> None:
    fill(source, "before", "zlast")
    tree = vault.tree(source, mode)
    assert tree.names == ["before", "mounted", "zlast"]
    assert tree["mounted"].metadata.mode == 0o040750
    assert vault.warnings == [
        f"{tmpfs}: another file system is mounted here, its contents are left out"
    ]


@needs_root
def test_other_file_systems_on_request(vault: Vault, source: Path, tmpfs: Path) -> None:
    everything = ["mounted", "mounted/inside", "mounted/sub", "mounted/sub/deeper"]
    assert vault.tree(source, include_devices=(str(tmpfs),)).names == everything
    assert vault.tree(source, all_file_systems=True).names == everything
    assert vault.tree(source, include_devices=("/dev",)).names == ["mounted"]
    with pytest.raises(SourceError, match="/no/such: No such file"):
        vault.tree(source, include_devices=("/no/such",))


@needs_root
def test_a_bind_mount_is_of_the_same_file_system(vault: Vault, source: Path) -> None:
    fill(source, "a/file", "bound/")
    subprocess.run(["mount", "--bind", source / "a", source / "bound"], check=True)
    try:
        assert vault.tree(source).names == ["a", "a/file", "bound", "bound/file"]
    finally:
        subprocess.run(["umount", source / "bound"], check=True)


@needs_root
def test_virtual_file_systems(vault: Vault, source: Path) -> None:
    with pytest.raises(SourceError, match="/proc: is a virtual file system"):
        vault.tree(Path("/proc"))
    fill(source, "proc/")
    subprocess.run(["mount", "-t", "proc", "none", source / "proc"], check=True)
    try:
        assert vault.tree(source, all_file_systems=True).names == ["proc"]
    finally:
        subprocess.run(["umount", source / "proc"], check=True)
    assert vault.warnings == []


def test_the_datastore_below_the_source(vault: Vault, tmp_path: Path) -> None:
    fill(tmp_path / "source", "file")
    tree = vault.tree(tmp_path)
    assert tree.names == ["source", "source/file", "vault"]
    assert vault.warnings == [
        f"{tmp_path}/vault: is the datastore that the backup goes to, its contents are left out"
    ]


def test_the_datastores_chunks_are_elsewhere(vault: Vault, source: Path, tmp_path: Path) -> None:
    (tmp_path / "vault/.chunks").rename(source / "chunks")
    (tmp_path / "vault/.chunks").symlink_to(source / "chunks")
    assert vault.tree(source).names == ["chunks"]
    assert len(vault.warnings) == 1


@pytest.mark.parametrize("below", ["", ".chunks", "host"])
def test_the_datastore_as_the_source(
    vault: Vault, source: Path, tmp_path: Path, below: str
) -> None:
    vault.tree(source)
    with pytest.raises(SourceError, match="is the datastore that the backup goes to"):
        vault.tree(tmp_path / "vault" / below)
    assert (len(vault.snapshots), vault.leftovers) == (1, [])

"""rsync finds no difference between the mount and what was backed up, whatever it compares."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.golden_snapshots import KEY_PASSWORD, GoldenArchive, golden_archives
from tests.program import mounted, run

pytestmark = [pytest.mark.needs("fuse", "root"), pytest.mark.xdist_group("mount")]

# Contents, hard links, ACLs, xattrs (capabilities too), owners, modes, times, devices, and what
# would have to be deleted.
# The one file is what .pxarexclude keeps out of backups.
ALL = (
    "-aHAXn", "--checksum", "--delete", "--numeric-ids", "--itemize-changes",
    "--exclude=/excluded/drop.tmp",
)  # fmt: skip
NEWEST = {
    archive.snapshot.group: archive for archive in golden_archives(".pxar") if not archive.below
}
"""Of each kind: one stream, split, encrypted."""


def differences(one: Path, other: Path) -> str:
    done = subprocess.run(
        ["rsync", *ALL, f"{one}/", f"{other}/"], check=True, capture_output=True, text=True
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("archive", NEWEST.values(), ids=str)
def test_a_backup_by_pbs(
    golden: Path,
    source_tree: Callable[[int], Path],
    tmp_path: Path,
    archive: GoldenArchive,
) -> None:
    key = archive.snapshot.key
    options = ["--keyfile", golden / "keys" / key] if key else []
    source = source_tree(archive.snapshot.day) / "tree"
    with mounted(golden / "datastore", tmp_path / "m", *options, env=KEY_PASSWORD) as mount:
        found = mount / archive.snapshot.mount_path / archive.name
        assert differences(found, source) == ""


@pytest.mark.parametrize(("mode", "option"), [("legacy", "ro"), ("metadata", "allow_other")])
def test_a_backup_of_ours(
    store: Path, source_tree: Callable[[int], Path], tmp_path: Path, mode: str, option: str
) -> None:
    """Both ways; with allow_other it is the kernel that answers for ACLs."""
    source = source_tree(2) / "tree"
    what = f"root.pxar:{source}"
    run("backup", what, "--repository", store, "--change-detection-mode", mode, "--backup-id", "h")
    with mounted(store, tmp_path / "m", "-o", option) as mount:
        found = mount / "host/h/latest/root.pxar"
        assert differences(found, source) == ""
        assert differences(source, found) == ""


def test_it_would_tell(store: Path, tmp_path: Path) -> None:
    """One xattr more, or one byte of the same length and time: rsync sees it through the mount."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"aaaa")
    (source / "b").write_bytes(b"b")
    run("backup", f"root.pxar:{source}", "--repository", store, "--backup-id", "h")
    before = (source / "a").stat()
    (source / "a").write_bytes(b"aaab")
    subprocess.run(["touch", "-d", f"@{before.st_mtime_ns / 1e9:.9f}", source / "a"], check=True)
    subprocess.run(["setfattr", "-n", "user.x", "-v", "1", source / "b"], check=True)
    with mounted(store, tmp_path / "m") as mount:
        lines = differences(mount / "host/h/latest/root.pxar", source).splitlines()
    assert [line.split()[1] for line in lines] == ["a", "b"]

"""Windows' "Previous Versions": the README's smb.conf, a real smbd, and smbclient for Windows."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import scratch_folder
from tests.fakes.archives import SplitTree, snapshot, stat
from tests.fakes.datastores import local_datastore
from tests.program import mounted
from tests.samba import shared

pytestmark = [pytest.mark.needs("fuse", "root", "samba"), pytest.mark.xdist_group("mount")]

README = Path(__file__).parents[2] / "README.md"
TIMES = ("2025-01-01T03:04:05Z", "2025-01-02T03:04:05Z")
GMT = ("@GMT-2025.01.01-03.04.05", "@GMT-2025.01.02-03.04.05")


def tree(day: int) -> SplitTree:
    made = SplitTree()
    if day == 0:
        made.file(b"deleted.txt", b"gone since", stat(0o100644, mtime_s=1))
    made.file(b"report.txt", b"day %d" % day, stat(0o100644, mtime_s=day + 1))
    made.enter(b"sub folder")
    made.file(b"a b.txt", b"below, day %d" % day, stat(0o100644, mtime_s=day + 1))
    made.leave()
    return made


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder that smbd's guest may enter (pytest's own it closes to all but us)."""
    with scratch_folder() as folder:
        folder.chmod(0o755)
        yield folder


def live_files(folder: Path) -> Path:
    """What is shared: the files as they are today."""
    (folder / "sub folder").mkdir(parents=True)
    (folder / "report.txt").write_text("today")
    (folder / "sub folder/a b.txt").write_text("below, today")
    return folder


def documented(live: Path, mount: Path) -> dict[str, object]:
    """The README's lines for a share, with our paths in place of its own."""
    text = README.read_text().partition("[files]\n")[2].partition("```")[0]
    text = text.replace("/srv/files", str(live)).replace("/mnt/vault", str(mount))
    pairs = (line.partition(" = ") for line in text.splitlines())
    options: dict[str, object] = {name.strip(): value for name, _, value in pairs}
    assert options.pop("path") == str(live)
    assert "shadow:snapdir" in options
    return options


def test_previous_versions(base: Path) -> None:
    live = live_files(base / "live")
    datastore = local_datastore(base / "store")
    for day, time in enumerate(TIMES):
        with snapshot(datastore, f"host/web01/{time}") as builder:
            builder.split_tree("files", tree(day))
    options = ("-o", "shadow-copy,allow_other")
    got = base / "got"
    with (
        mounted(base / "store", base / "m", *options) as mount,
        shared(base / "smb", live, documented(live, mount)) as share,
    ):
        for file in ("report.txt", "sub folder\\a b.txt", "sub folder"):
            printed = share.ask(f'allinfo "{file}"')
            assert [line for line in printed.splitlines() if line.startswith("@")] == [*GMT[::-1]]
        for day, gmt in enumerate(GMT):
            share.ask(f'get "{gmt}\\report.txt" {got}')
            assert got.read_text() == f"day {day}"
            share.ask(f'get "{gmt}\\sub folder\\a b.txt" {got}')
            assert got.read_text() == f"below, day {day}"
        share.ask(f"get report.txt {got}")
        assert got.read_text() == "today"
        assert "deleted.txt" in share.ask(f"ls {GMT[0]}\\*")
        assert "deleted.txt" not in share.ask(f"ls {GMT[1]}\\*")
        share.ask(f"get {GMT[0]}\\deleted.txt {got}")
        assert got.read_text() == "gone since"


def test_a_share_of_a_part(base: Path) -> None:
    """A directory in what is backed up is shared; basedir stays what is backed up."""
    live = live_files(base / "live")
    datastore = local_datastore(base / "store")
    with snapshot(datastore, f"host/web01/{TIMES[0]}") as builder:
        builder.split_tree("files", tree(0))
    got = base / "got"
    with (
        mounted(base / "store", base / "m", "-o", "shadow-copy,allow_other") as mount,
        shared(base / "smb", live / "sub folder", documented(live, mount)) as share,
    ):
        share.ask(f'get "{GMT[0]}\\a b.txt" {got}')
        assert got.read_text() == "below, day 0"

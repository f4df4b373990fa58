import os
import queue
from pathlib import Path

from store.operations.backup.estimate import estimated
from store.progress import SilentProgress


class Watched(SilentProgress):
    wants_total = True

    def __init__(self) -> None:
        self.totals: queue.Queue[int] = queue.Queue()

    def expect(self, total: int) -> None:
        self.totals.put(total)


def test_the_bytes_of_a_tree(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_bytes(bytes(1000))
    (tmp_path / "a/link").hardlink_to(tmp_path / "a/b/file")
    (tmp_path / "symlink").symlink_to("a/b/file")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / os.fsdecode(b"\xff")).write_bytes(b"12345")
    progress = Watched()
    with estimated(str(tmp_path), progress):
        assert progress.totals.get(timeout=10) == 1005


def test_nobody_watches(tmp_path: Path) -> None:
    progress = Watched()
    progress.wants_total = False
    with estimated(str(tmp_path), progress):
        pass
    assert progress.totals.empty()


def test_a_tree_that_is_gone(tmp_path: Path) -> None:
    progress = Watched()
    with estimated(str(tmp_path / "gone"), progress):
        pass
    assert progress.totals.empty()

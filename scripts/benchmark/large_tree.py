"""The rows of very large trees: a million entries, a dozen in a directory, through our mount.

The tree is encoded straight into the datastore: no file of it ever exists, so no peer can have it.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from scripts.benchmark.contenders import Vaultway
from scripts.benchmark.running import BenchError, run
from tests.fakes.large_trees import fill, open_datastore, read_key, write_large_tree

ENTRIES = 1_000_000
OURS, GOAL = "vaultway", "goal"
SNAPSHOT = "host/bench/2025-01-01T00:00:00Z"
LARGE_TREE_ROWS = (
    "fuse-large-ls", "fuse-large-find-cold", "fuse-large-find-warm", "fuse-large-find-legacy",
    "memory-fuse-large",
)  # fmt: skip
GOALS = {
    "fuse-large-ls": 2.0,
    "fuse-large-find-cold": 15_000.0,
    "fuse-large-find-warm": 40_000.0,
    "fuse-large-find-legacy": 15_000.0,
    "memory-fuse-large": 400.0,
}

Add = Callable[[str, str, float, str], None]


class LargeTreeBench:
    """Made once, mounted afresh every round."""

    def __init__(self, work: Path, wanted: set[str], add: Add) -> None:
        self.work, self.wanted, self.add = work / "large", wanted, add
        self.mountpoint = work / "mnt"
        self.stores = {split: Vaultway(self.work / f"{split}") for split in (True, False)}

    def prepare(self) -> None:
        """Encode the trees: one split, one legacy, both encrypted."""
        for split, ours in self.stores.items():
            if not split and "fuse-large-find-legacy" not in self.wanted:
                continue
            ours.work.mkdir(parents=True)
            ours.create()
            datastore, make = open_datastore(ours.repository), partial(fill, entries=ENTRIES)
            write_large_tree(datastore, SNAPSHOT, make, read_key(ours.key), split=split)

    def round(self) -> None:
        """Look at everything twice: first nothing is in memory, neither ours nor the kernel's."""
        ours = self.stores[True]
        with ours.mount(self.mountpoint) as root:
            self.result("fuse-large-ls", run(["ls", root]).seconds, "s")
            for row in ("fuse-large-find-cold", "fuse-large-find-warm"):
                self.result(row, self.find(root), "entries/s")
            self.result("memory-fuse-large", self.peak_mib(), "MiB")
        if "fuse-large-find-legacy" in self.wanted:
            with self.stores[False].mount(self.mountpoint) as root:
                self.result("fuse-large-find-legacy", self.find(root), "entries/s")

    def result(self, row: str, value: float, unit: str) -> None:
        self.add(row, OURS, value, unit)
        self.add(row, GOAL, GOALS[row], unit)

    def find(self, root: Path) -> float:
        """Entries a second."""
        found = run(["find", f"{root}/", "-mindepth", "1", "-size", "-100000k"])
        count = found.output.count("\n")
        if count != ENTRIES:
            raise BenchError(f"find: {count} entries of {ENTRIES}")
        return count / found.seconds

    def peak_mib(self) -> float:
        """The most that the mount's process had in memory."""
        mount = run(["pgrep", "-f", f"mount .* {self.mountpoint} "]).output.split()[0]
        status = Path(f"/proc/{mount}/status").read_text(encoding="ascii")
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found
        return int(found[1]) / 1024

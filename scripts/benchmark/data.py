"""What is backed up: a tree of real files out of /usr, one large file in it, and a disk image with
the same files."""

import os
import random
import shutil
import stat
from pathlib import Path

from scripts.benchmark.running import BenchError, run

# Libraries and programs as much as small files: about 40 KB a file.
SHARES = {"/usr/lib": 0.5, "/usr/bin": 0.1, "/usr/share": 0.3}
LARGE = "large.tar"
LARGE_SHARE = 10  # the large file is a tenth of the tree


def tree_bytes(tree: Path) -> int:
    """Bytes of regular files."""
    return sum(
        os.lstat(os.path.join(parent, name)).st_size
        for parent, _, names in os.walk(tree)
        for name in names
        if not os.path.islink(os.path.join(parent, name))
    )


def file_count(tree: Path) -> int:
    """How many regular files there are."""
    return sum(
        stat.S_ISREG(os.lstat(os.path.join(parent, name)).st_mode)
        for parent, _, names in os.walk(tree)
        for name in names
    )


def copy_part(source: Path, target: Path, size: int) -> None:
    """Copy what fits of a directory's entries, in order of their names, until it is about `size`
    bytes."""
    target.mkdir()
    for entry in sorted(source.iterdir()):
        is_tree = entry.is_dir() and not entry.is_symlink()
        amount = tree_bytes(entry) if is_tree else entry.lstat().st_size
        if amount <= size:
            run(["cp", "-a", "--", entry, target])
            size -= amount


def make_tree(tree: Path, size: int) -> None:
    """Copy parts of /usr, about `size` bytes, a tenth of it once more as one large tar file."""
    tree.mkdir()
    for source, share in SHARES.items():
        copy_part(Path(source), tree / Path(source).name, int(size * share))
    chosen, large = [], 0
    for parent, _, names in os.walk(tree):
        for name in names:
            path = Path(parent, name)
            if large < size // LARGE_SHARE and path.is_file() and not path.is_symlink():
                chosen.append(path.relative_to(tree))
                large += path.stat().st_size
    names = tree.parent / "names"
    names.write_text("".join(f"{name}\n" for name in chosen))
    run(["tar", "-cf", tree / LARGE, "--no-recursion", "-T", names], cwd=tree)


def make_image(image: Path, tree: Path) -> None:
    """An ext4 file system with the tree, half of it empty."""
    size = 2 * tree_bytes(tree) + (64 << 20)
    with image.open("wb") as file:
        file.truncate(size - size % (4 << 20))
    run(["/usr/sbin/mkfs.ext4", "-q", "-F", "-N", "200000", "-d", tree, image])


def change_tree(tree: Path) -> int:
    """Change 1 % of the files, spread at random: a third appended to, a third overwritten, a third
    new; returns their bytes."""
    rng, changed = random.Random(7), 0
    files = sorted(
        path for path in tree.rglob("*")
        if path.name != LARGE and stat.S_ISREG(path.lstat().st_mode) and path.lstat().st_nlink == 1
    )  # fmt: skip
    for number, path in enumerate(rng.sample(files, len(files) // 100)):
        if number % 3 == 0:
            with path.open("ab") as file:
                file.write(rng.randbytes(1000))
        elif number % 3 == 1:
            data = bytearray(path.read_bytes())
            data[len(data) // 2 : len(data) // 2 + 1] = b"#"
            path.write_bytes(data)
        else:
            path = path.with_name(f"{path.name[:200]}.new")
            path.write_bytes(rng.randbytes(20_000))
        changed += path.stat().st_size
    return changed


def scratch_folder(wanted: Path | None, size: int) -> Path:
    """Where six times `size` fits: RAM if there is enough, so that disks do not decide."""
    need = 6 * size + (1 << 30)
    for folder in (
        [wanted]
        if wanted
        else [Path("/dev/shm"), Path(os.environ.get("TMPDIR", "/tmp")), Path("/var/tmp")]
    ):
        if folder.is_dir() and free_bytes(folder) > need:
            return folder
    raise BenchError(f"no {need / 1e9:.0f} GB free: use --size or --work")


def free_bytes(folder: Path) -> int:
    """What fits into a folder; in RAM no more than is free of that."""
    free = shutil.disk_usage(folder).free
    if folder != Path("/dev/shm"):
        return free
    memory = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    available = next(line for line in memory if line.startswith("MemAvailable:"))
    return min(free, int(available.split()[1]) << 10)

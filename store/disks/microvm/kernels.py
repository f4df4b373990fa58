"""Stock kernels: those that Debian installed, or else one from its package, unpacked only."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from store.disks.microvm.tools import run_tool
from store.errors import NotFound

# Without the drivers of real hardware; it has the file systems we need.
PACKAGE = "linux-image-cloud-amd64"


@dataclass(frozen=True, slots=True)
class Kernel:
    """An image to boot, and the modules made with it."""

    image: Path
    modules: Path

    @property
    def version(self) -> str:
        """As `uname -r` would say."""
        return self.modules.name


def find_kernels(caches: Iterable[Path]) -> list[Kernel]:
    """Readable stock kernels with modules, those made for virtual machines first, newest first."""
    roots = [Path("/"), *(cache / "kernel" for cache in caches)]
    found = [kernel for root in roots for kernel in _kernels_below(root)]
    return sorted(
        found, key=lambda kernel: ("cloud" in kernel.version, _rank(kernel)), reverse=True
    )


def _kernels_below(root: Path) -> list[Kernel]:
    found = []
    for image in root.glob("boot/vmlinuz-*-amd64"):
        version = image.name.removeprefix("vmlinuz-")
        for folder in (root / "lib/modules" / version, root / "usr/lib/modules" / version):
            if os.access(image, os.R_OK) and (folder / "kernel").is_dir():
                found.append(Kernel(image, folder))
                break
    return found


def _rank(kernel: Kernel) -> list[int]:
    """6.1.0-9 comes before 6.1.0-10."""
    words = kernel.version.replace("-", ".").replace("+", ".").split(".")
    return [int(word) for word in words if word.isdigit()]


def fetch_kernel(cache: Path) -> None:
    """Download a package into `cache` and unpack it; none of its scripts runs.

    Raises NotFound (no package tools, no such package), BackendError, OSError.
    """
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise NotFound(
                f"no {tool}: the micro-VM's kernel is a Debian package; on another system put "
                f"vmlinuz-*-amd64 into {cache}/kernel/boot and its modules into "
                f"{cache}/kernel/lib/modules"
            )
    package = _newest_package()
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        run_tool(["apt-get", "-q", "download", package], f"downloading {package}", folder)
        files = [str(path) for path in Path(folder).glob("*.deb")]
        unpacked = Path(folder) / "unpacked"
        run_tool(["dpkg-deb", "-x", *files, str(unpacked)], f"unpacking {package}", folder)
        shutil.rmtree(cache / "kernel", ignore_errors=True)
        unpacked.replace(cache / "kernel")


def _newest_package() -> str:
    """What the package that always names the newest kernel depends on."""
    told = run_tool(["apt-cache", "depends", PACKAGE], "looking for a kernel package", "/")
    for line in told.splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends" and name.startswith("linux-image-"):
            return name
    raise NotFound(f"apt knows no {PACKAGE}: run `apt-get update`, or add Debian's sources")

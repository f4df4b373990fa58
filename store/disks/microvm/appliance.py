"""What the micro-VM is made of: QEMU, a stock kernel with its modules, and our agent.

A kernel that Debian installed is used where it is. Without one, `prepare` fetches the package and
unpacks it, without running any of its scripts: the host goes on booting what it booted. Nothing is
fetched or compiled while disks are open.
"""

import errno
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from store.datastore.xdg import cache_home
from store.disks.microvm.cpio import directory, encode_cpio, regular
from store.disks.microvm.modules import Modules
from store.errors import BackendError, NotFound, OutOfSpace, StoreError

QEMU = "qemu-system-x86_64"
# Without the drivers of real hardware; each of its kind has the file systems we need.
KERNEL_PACKAGE = "linux-image-cloud-amd64"
SHARED_CACHE = Path("/var/cache/vaultway")
COMMAND = "vaultway microvm prepare"

# What Part.kind calls it -> the module, and the mount options.
#   errors=continue: else an image may ask for a panic.
#   subvolid=5: all subvolumes, not the one its owner made the default.
#   nostale_ro: the only way in which FAT finds a file again by its number.
FILE_SYSTEMS = {
    "ext2": ("ext4", "errors=continue"),
    "ext3": ("ext4", "errors=continue"),
    "ext4": ("ext4", "errors=continue"),
    "xfs": ("xfs", ""),
    "btrfs": ("btrfs", "subvolid=5"),
    "fat": ("vfat", "nfs=nostale_ro,utf8,tz=UTC"),
}
_DRIVERS = ("virtio_pci", "virtio_blk", "virtio_console")
# By no name that the modules above mention: algorithms, code pages.
_WISHED = {
    "ext4": ("crc32c_intel", "crc32c_generic"),
    "xfs": ("crc32c_intel", "crc32c_generic"),
    "btrfs": (
        "crc32c_intel", "crc32c_generic", "xxhash_generic", "sha256_generic", "blake2b_generic",
    ),
    "vfat": ("nls_cp437", "nls_ascii", "nls_utf8"),
}  # fmt: skip
_SOURCE = Path(__file__).with_name("agent.c")
_COMPILER_TIMEOUT_S = 120
_DOWNLOAD_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class Kernel:
    """An image to boot, and the modules made with it."""

    image: Path
    modules: Path

    @property
    def version(self) -> str:
        """As `uname -r` would say."""
        return self.modules.name


@dataclass(frozen=True, slots=True)
class Appliance:
    """All that a micro-VM needs; found, not yet tried."""

    kernel: Kernel
    agent: Path

    def has(self, module: str) -> bool:
        """Whether its kernel has it."""
        return Modules(self.kernel.modules).has(module)

    def first_root(self, kind: str) -> bytes:
        """The guest's files: agent, modules for this kind of file system, settings.

        Raises NotFound (the kernel has no such module), FormatError, BackendError.
        """
        module, options = FILE_SYSTEMS[kind]
        found = Modules(self.kernel.modules).needed((*_DRIVERS, module), _WISHED[module])
        try:
            agent = self.agent.read_bytes()
        except OSError as error:
            raise BackendError(f"{self.agent}: {error.strerror}") from error
        return encode_cpio(
            [
                *map(directory, ("dev", "proc", "top", "modules")),
                regular("init", agent, 0o755),
                regular("settings", f"{module}\n{options}\n".encode()),
                regular("modules/order", "".join(f"{name}\n" for name, _ in found).encode()),
                *(regular(f"modules/{name}", content) for name, content in found),
            ]
        )


def find_appliance() -> Appliance:
    """Raises NotFound: something is missing; the message says what to do."""
    missing = why_no_qemu()
    if missing:
        raise NotFound(missing)
    kernel = next(iter(_kernels()), None)
    agent = next((path for path in map(_agent_in, _caches()) if os.access(path, os.X_OK)), None)
    if kernel is None or agent is None:
        what = "a kernel" if kernel is None else "its agent"
        raise NotFound(f"the micro-VM has no {what.split()[-1]} yet: run `{COMMAND}` once")
    return Appliance(kernel, agent)


def why_no_qemu() -> str:
    """Why no micro-VM can ever run here; "" if one may."""
    if platform.machine() != "x86_64":
        return f"a micro-VM needs an x86-64 processor, this is {platform.machine()}"
    if shutil.which(QEMU) is None:
        return f"no {QEMU}: install qemu-system-x86"
    return "" if shutil.which("setpriv") else "no setpriv: install util-linux"


def prepare() -> Appliance:
    """Compile the agent and have a kernel, in the user's cache (root's: /var/cache/vaultway).

    Done again it does what is left to do; a newer agent or kernel package is not looked for.

    Raises:
        NotFound: no QEMU, compiler or package tools; the message says what to install.
        BackendError: compiling, downloading or unpacking failed.
    """
    missing = why_no_qemu()
    if missing:
        raise NotFound(missing)
    cache = _own_cache()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if not any(os.access(_agent_in(place), os.X_OK) for place in _caches()):
            _compile(_agent_in(cache))
        if not _kernels():
            _fetch_kernel(cache)
    except OSError as error:
        raise _no_place(cache, error) from error
    return find_appliance()


def _no_place(cache: Path, error: OSError) -> StoreError:
    text = f"micro-VM: cannot write to {cache}: {error.strerror}"
    return BackendError(text) if error.errno != errno.ENOSPC else OutOfSpace(text)


def _own_cache() -> Path:
    return (SHARED_CACHE if os.geteuid() == 0 else cache_home()) / "microvm"


def _caches() -> list[Path]:
    """Root believes in nothing that another user may have written."""
    shared = SHARED_CACHE / "microvm"
    return [shared] if os.geteuid() == 0 else [cache_home() / "microvm", shared]


def _agent_in(cache: Path) -> Path:
    """Named by its source: an older release's agent is not taken for ours."""
    return cache / f"agent-{hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]}"


def _kernels() -> list[Kernel]:
    """Readable stock kernels with modules, those made for virtual machines first, newest first."""
    roots = [Path("/"), *(cache / "kernel" for cache in _caches())]
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


def _compile(target: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NotFound("no C compiler for the micro-VM's agent: install gcc and libc6-dev")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / "agent"
        options = ["-O2", "-static", "-s", "-pthread", "-o"]
        _run([compiler, *options, str(made), str(_SOURCE)], "compiling the agent", folder)
        made.replace(target)


def _fetch_kernel(cache: Path) -> None:
    """Download and unpack; no script of the package runs."""
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise NotFound(
                f"no {tool}: the micro-VM's kernel is a Debian package; on another system put "
                f"vmlinuz-*-amd64 into {cache}/kernel/boot and its modules into "
                f"{cache}/kernel/lib/modules"
            )
    package = _newest_package()
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        _run(["apt-get", "-q", "download", package], f"downloading {package}", folder)
        files = [str(path) for path in Path(folder).glob("*.deb")]
        unpacked = Path(folder) / "unpacked"
        _run(["dpkg-deb", "-x", *files, str(unpacked)], f"unpacking {package}", folder)
        shutil.rmtree(cache / "kernel", ignore_errors=True)
        unpacked.replace(cache / "kernel")


def _newest_package() -> str:
    """What the package that always names the newest kernel depends on."""
    told = _run(["apt-cache", "depends", KERNEL_PACKAGE], "looking for a kernel package", "/")
    for line in told.splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends" and name.startswith("linux-image-"):
            return name
    raise NotFound(f"apt knows no {KERNEL_PACKAGE}: run `apt-get update`, or add Debian's sources")


def _run(command: list[str], what: str, folder: str) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, check=False,
            text=True, errors="replace", timeout=_DOWNLOAD_TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"{what}: not done after {_DOWNLOAD_TIMEOUT_S} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise BackendError(f"{what} failed: {lines[-1] if lines else done.returncode}")
    return done.stdout

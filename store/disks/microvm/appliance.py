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
import tempfile
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from store.datastore.xdg import cache_home
from store.disks.microvm.cpio import directory, encode_cpio, regular
from store.disks.microvm.kernels import Kernel, fetch_kernel, find_kernels
from store.disks.microvm.machine import Command
from store.disks.microvm.modules import Modules
from store.disks.microvm.qemu import QEMU, qemu_command
from store.disks.microvm.tools import run_tool
from store.errors import BackendError, NotFound, OutOfSpace, StoreError

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


@dataclass(frozen=True, slots=True)
class Appliance:
    """All that a micro-VM needs; found, not yet tried."""

    kernel: Kernel
    agent: Path

    def has(self, module: str) -> bool:
        """Whether its kernel has it."""
        return _modules(self.kernel.modules).has(module)

    def command(self, accelerator: str) -> Command:
        """How QEMU is called."""
        return partial(qemu_command, accelerator)

    def kernel_image(self) -> bytes:
        """What is booted. Raises BackendError."""
        return _content(self.kernel.image)

    def first_root(self, kind: str) -> bytes:
        """The guest's files: agent, modules for this kind of file system, settings.

        Raises NotFound (the kernel has no such module), FormatError, BackendError.
        """
        module, options = FILE_SYSTEMS[kind]
        found = _modules(self.kernel.modules).needed((*_DRIVERS, module), _WISHED[module])
        agent = _content(self.agent)
        return encode_cpio(
            [
                *map(directory, ("dev", "proc", "top", "modules")),
                regular("init", agent, 0o755),
                regular("settings", f"{module}\n{options}\n".encode()),
                regular("modules/order", "".join(f"{name}\n" for name, _ in found).encode()),
                *(regular(f"modules/{name}", content) for name, content in found),
            ]
        )


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BackendError(f"{path}: {error.strerror}") from error


# A kernel's modules are thousands of files, and do not change under its name.
_modules = lru_cache(4)(Modules)


def find_appliance() -> Appliance:
    """Raises NotFound: something is missing; the message says what to do."""
    missing = why_no_qemu()
    if missing:
        raise NotFound(missing)
    kernel = next(iter(find_kernels(_caches())), None)
    agent = next((path for path in map(_agent_in, _caches()) if os.access(path, os.X_OK)), None)
    if kernel is None or agent is None:
        what = "a kernel" if kernel is None else "its agent"
        raise NotFound(f"the micro-VM has no {what.split()[-1]} yet: run `{COMMAND}` once")
    return Appliance(kernel, agent)


def why_no_qemu() -> str:
    """Why no micro-VM can ever run here; "" if one may."""
    if platform.machine() != "x86_64":
        return f"a micro-VM needs an x86-64 processor, this is {platform.machine()}"
    return "" if shutil.which(QEMU) else f"no {QEMU}: install qemu-system-x86"


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
        if not find_kernels(_caches()):
            fetch_kernel(cache)
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


def _compile(target: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NotFound("no C compiler for the micro-VM's agent: install gcc and libc6-dev")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / "agent"
        options = ["-O2", "-static", "-s", "-pthread", "-o"]
        run_tool([compiler, *options, str(made), str(_SOURCE)], "compiling the agent", folder)
        made.replace(target)

"""The engine that shows disks by a micro-VM."""

from threading import Lock
from weakref import WeakSet

from store.disks.base import GuestTree, Part, SegmentStream
from store.disks.microvm.accelerator import Accelerator
from store.disks.microvm.appliance import FILE_SYSTEMS, find_appliance
from store.disks.microvm.guest import Guest
from store.disks.microvm.pool import Pool
from store.disks.microvm.tree import GuestFiles, Numbers
from store.errors import FormatError, IntegrityError, InvalidName, NotFound, StoreError
from store.format.buffer import ReadAt


class MicroVmEngine:
    """An Engine: at most `pool`'s limit of its machines run at a time. Thread-safe."""

    def __init__(self, pool: Pool | None = None, accelerator: Accelerator | None = None) -> None:
        self._pool = pool or Pool()
        self._accelerator = accelerator
        # By name of the part: a number means the same file when it is opened anew.
        self._numbers: dict[str, Numbers] = {}
        self._lock = Lock()
        self._guests: WeakSet[Guest] = WeakSet()
        self._closed = False

    def why_not(self, kind: str) -> str:
        if kind not in FILE_SYSTEMS:
            return f"a micro-VM does not read {kind}"
        try:
            appliance = find_appliance()
            self._accelerator = self._accelerator or Accelerator()
        except (NotFound, InvalidName) as error:
            return str(error)
        module = FILE_SYSTEMS[kind][0]
        if not appliance.has(module):
            return f"the micro-VM's kernel {appliance.kernel.version} does not read {kind}"
        return ""

    def open(self, part: Part, blocks: ReadAt) -> GuestTree:
        name = blocks.name if isinstance(blocks, SegmentStream) else part.name
        missing = self.why_not(str(part.kind))
        if missing:
            raise FormatError(f"{name}: {missing}")
        assert self._accelerator is not None
        guest = Guest(name, str(part.kind), blocks, find_appliance(), self._accelerator, self._pool)
        with self._lock:
            if self._closed:
                raise IntegrityError(f"{name}: closed")
            self._guests.add(guest)
        try:
            return GuestFiles(guest, self._numbers.setdefault(name, Numbers(name)))
        except StoreError:
            guest.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._closed = True
            guests = [*self._guests]
        for guest in guests:
            guest.close()

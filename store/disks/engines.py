"""Who can show the files of a part: the parsers, or a small virtual machine.

The parsers are quick and see only what is on the disk; the machine's kernel replays journals and
knows everything Linux knows, and takes seconds to start.
"""

from importlib import import_module
from typing import Protocol

from store.disks.base import GuestTree, Part
from store.format.buffer import ReadAt


class Engine(Protocol):
    """Something that opens file systems."""

    def why_not(self, kind: str) -> str:
        """Why it cannot open a file system of this kind here, and what to do; "" when it can.

        Looks at the machine only, not at any disk; quick enough to be asked each time.
        """

    def open(self, part: Part, blocks: ReadAt) -> GuestTree:
        """The files of a part.

        Args:
            part: what it is.
            blocks: its bytes, decrypted; read-only, the engine puts its own overlay over them.

        Raises FormatError, IntegrityError (damaged, or it does not answer in time), BackendError.
        """

    def close(self) -> None:
        """End what is being opened, too: who waits for it gets IntegrityError, as all later do."""


def machine() -> Engine | None:
    """The engine that replays every journal, if this installation has it."""
    try:
        module = import_module("store.disks.microvm.engine")
    except ImportError:
        return None
    engine: Engine = module.MicroVmEngine()
    return engine

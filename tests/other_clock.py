"""A clock of its own for the program: it jumps when a test says so."""

import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parent / "fakes/other_clock.c"


class OtherClock:
    """The time of day of the processes that have `environment`; theirs alone."""

    def __init__(self, folder: Path) -> None:
        """`folder`: for what it is made of."""
        self._library, self._offset = folder / "other_clock.so", folder / "offset"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", self._library, SOURCE, "-ldl"], check=True)
        self._offset.write_bytes(bytes(8))

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "CLOCK_OFFSET": str(self._offset)}

    def jump_to(self, offset_s: int) -> None:
        """Be off by so many seconds, at once."""
        with self._offset.open("r+b") as file:
            file.write(struct.pack("=q", offset_s))

"""How an operation tells its caller how far it is. The default says nothing."""

from typing import Protocol


class Progress(Protocol):
    """Receives `start` once, `advance` many times (from any thread), `done` once."""

    def start(self, total: int | None, unit: str) -> None:
        """A stretch of work begins: `total` units ("B" or a noun), None when not known."""

    def advance(self, amount: int) -> None:
        """`amount` more units are done."""

    def done(self) -> None:
        """The stretch ended, well or not."""


class SilentProgress:
    """Progress that nobody watches."""

    def start(self, total: int | None, unit: str) -> None:
        pass

    def advance(self, amount: int) -> None:
        pass

    def done(self) -> None:
        pass


SILENT = SilentProgress()

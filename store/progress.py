"""How an operation tells its caller how far it is. The default says nothing."""

from typing import Protocol


class Progress(Protocol):
    """Receives `start` once, `advance` many times (from any thread), `done` once.

    wants_total: whether it is worth some work to find out a total that is not known at the start.
    """

    wants_total: bool

    def start(self, total: int | None, unit: str) -> None:
        """A stretch of work begins: `total` units ("B" or a noun), None when not known."""

    def expect(self, total: int) -> None:
        """About `total` units, it turns out, will be done in all (from any thread)."""

    def advance(self, amount: int) -> None:
        """`amount` more units are done."""

    def done(self) -> None:
        """The stretch ended, well or not."""


class SilentProgress:
    """Progress that nobody watches."""

    wants_total = False

    def start(self, total: int | None, unit: str) -> None:
        pass

    def expect(self, total: int) -> None:
        pass

    def advance(self, amount: int) -> None:
        pass

    def done(self) -> None:
        pass


SILENT = SilentProgress()

"""When a head becomes a snapshot by itself."""

from dataclasses import dataclass

from store.errors import InvalidName


@dataclass(frozen=True, slots=True)
class SealPolicy:
    """When a head that a gateway has open is sealed without being asked.

    idle_s: so long after the last write to it; None: never.
    at_end: when the gateway ends.
    """

    idle_s: float | None = None
    at_end: bool = False

    @classmethod
    def parse(cls, text: str) -> "SealPolicy":
        """`manual`, `close`, or `idle:SECONDS`, which seals at the end, too. Raises InvalidName."""
        if text == "manual":
            return cls()
        if text == "close":
            return cls(at_end=True)
        kind, _, number = text.partition(":")
        if kind == "idle" and number.isascii() and number.isdigit() and int(number) > 0:
            return cls(float(number), at_end=True)
        raise InvalidName(f"seal={text}: use idle:SECONDS, close or manual")

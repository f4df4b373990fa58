"""From what was measured to what a backup or restore will do, and what bounds it.

The pipeline overlaps everything, so the slowest part sets the speed: the processors, which share
all their steps; the cutting of a tree's stream, which one thread does; or the storage.
"""

from collections.abc import Mapping
from dataclasses import dataclass

CPU_STEPS = ("sha256", "compress", "decompress", "aes256_gcm", "crc32", "chunker")
"""PBS's names where it has one."""


Limit = tuple[str, float]
"""What bounds an operation, and the speed it allows."""


@dataclass(frozen=True)
class Rate:
    """Bytes a second of one thing that a number of threads did at once."""

    name: str
    threads: int
    speed: float


@dataclass(frozen=True)
class Prediction:
    """Plain bytes a second of an operation, and the name of what bounds it.

    `limits` has what each part alone would allow: the processors, under the name of the step that
    takes most of their time, and the rest.
    """

    name: str
    speed: float
    limited_by: str
    limits: tuple[Limit, ...]


@dataclass(frozen=True)
class Measured:
    """What predictions are made from; `stat_s` is seconds for a look at one chunk."""

    machine: tuple[Rate, ...]
    storage: tuple[Rate, ...]
    stat_s: float
    compressed: float
    chunk_size: int
    encrypted: bool
    is_object_store: bool

    def best(self, name: str) -> float:
        """The highest rate of a thing, whatever number of threads it takes."""
        return max(rate.speed for rate in (*self.machine, *self.storage) if rate.name == name)

    def one_thread(self, name: str) -> float:
        """The rate of one thread."""
        return next(r.speed for r in self.machine if r.name == name and r.threads == 1)

    @property
    def threads(self) -> int:
        """The most that the storage was asked with."""
        return max(rate.threads for rate in self.storage)


def predict(measured: Measured) -> tuple[Prediction, ...]:
    """A first backup of a tree, one in which nothing changed but all is read, and a restore.

    How fast the source is read, and the target written, is not known here.
    """
    stored = measured.compressed
    sealing = {"aes256_gcm": stored} if measured.encrypted else {}
    hashing = {"sha256": 1.0, "chunker": 1.0}
    packing = {**hashing, "compress": 1.0, "crc32": stored, **sealing}
    unpacking = {"sha256": 1.0, "decompress": 1.0, "crc32": stored, **sealing}
    cutting = ("chunker", measured.one_thread("chunker"))
    return (
        _slowest(
            "first backup",
            [_processors(measured, packing), cutting, ("put", measured.best("put") / stored)],
        ),
        _slowest("unchanged backup", [_processors(measured, hashing), cutting, *_looks(measured)]),
        _slowest(
            "restore", [_processors(measured, unpacking), ("get", measured.best("get") / stored)]
        ),
    )


def _processors(measured: Measured, parts: Mapping[str, float]) -> Limit:
    """What all processors do when each plain byte takes these steps, `parts` of a byte of each.

    Under the name of the step that takes most of the time.
    """
    costs = {name: part / measured.best(name) for name, part in parts.items()}
    return max(costs, key=lambda name: costs[name]), 1 / sum(costs.values())


def _looks(measured: Measured) -> list[Limit]:
    """A touch of each known chunk. On an object store nobody asks: what is there is listed."""
    if measured.is_object_store:
        return []
    return [("stat", measured.chunk_size / measured.stat_s * measured.threads)]


def _slowest(name: str, limits: list[Limit]) -> Prediction:
    limiting, speed = min(limits, key=lambda limit: limit[1])
    return Prediction(name, speed, limiting, tuple(limits))

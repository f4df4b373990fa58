"""The MD5 of what several threads received: each gets its own, whoever hashed it."""

import hashlib
import random
import threading
from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from store.backends.s3.http import checksums
from store.backends.s3.http.checksums import AT_ONCE, Checksums
from store.backends.turns import Turns
from store.format.buffer import Buffer
from store.format.md5 import md5_many


def md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def hash_in_threads(processors: int, bodies: Sequence[bytes]) -> list[bytes]:
    """All at once: none gets a turn before all have asked."""
    turns = Turns(processors)
    sums = Checksums(turns)
    found: dict[int, bytes] = {}

    def work(number: int) -> None:
        found[number] = sums.md5(bodies[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(bodies))]
    with ExitStack() as taken:
        for _ in range(processors):
            taken.enter_context(turns.turn())
        for thread in threads:
            thread.start()
        while len(sums._waiting) < len(bodies):
            threading.Event().wait(0.001)
    for thread in threads:
        thread.join()
    return [found[number] for number in range(len(bodies))]


def test_one() -> None:
    assert Checksums(Turns(1)).md5(b"abc") == md5(b"abc")


def test_many_in_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []

    def counted(bodies: Sequence[Buffer]) -> list[bytes]:
        passes.append(len(bodies))
        return md5_many(bodies)

    monkeypatch.setattr(checksums, "md5_many", counted)
    rng = random.Random(5)
    bodies = [rng.randbytes(rng.randrange(3000)) for _ in range(2 * AT_ONCE)]
    assert hash_in_threads(1, bodies) == [md5(body) for body in bodies]
    assert passes == [AT_ONCE, AT_ONCE]


def test_any_number_of_processors() -> None:
    rng = random.Random(6)
    for _ in range(20):
        bodies = [rng.randbytes(rng.randrange(300)) for _ in range(rng.randrange(1, 20))]
        assert hash_in_threads(3, bodies) == [md5(body) for body in bodies]


def test_who_took_others_and_was_interrupted_leaves_them_to_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sums, calls = Checksums(Turns(1)), iter([KeyboardInterrupt])

    def interrupted(bodies: Sequence[Buffer]) -> list[bytes]:
        error = next(calls, None)
        if error is not None:
            raise error
        return md5_many(bodies)

    monkeypatch.setattr(checksums, "md5_many", interrupted)
    other = checksums._Body(b"other")
    sums._waiting.append(other)
    with pytest.raises(KeyboardInterrupt):
        sums.md5(b"ours")
    assert other.done.is_set()
    assert not other.md5
    assert sums.md5(b"other") == md5(b"other")

"""A cache against a dictionary: whatever is done to it and its files, reads are the store's."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from store.backends.cache.backend import Cache
from store.errors import NotFound
from tests.fakes.cache_checks import chunk_files, disk_bytes
from tests.fakes.chunks import ChunkSource, chunk
from tests.machine import scratch_parent

CHUNKS = [chunk(number, 9000 * (1 + number % 3)) for number in range(12)]
BUDGET = 280 << 10  # about half of them
numbers = st.integers(0, len(CHUNKS) - 1)


class CacheMachine(RuleBasedStateMachine):
    """Clients, one store, one cache directory, and somebody who damages it."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(dir=scratch_parent()))
        self.source = ChunkSource()
        for one in CHUNKS:
            self.source.mkdir(one.name.rpartition("/")[0])
        self.stored: set[int] = set()
        self.now = 0.0
        self.cache = self.opened()

    def opened(self) -> Cache:
        return Cache(self.source, str(self.directory), BUDGET, clock=lambda: self.now)

    def teardown(self) -> None:
        self.cache.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    @rule(number=numbers)
    def write(self, number: int) -> None:
        self.cache.write(CHUNKS[number].name, (CHUNKS[number].raw,))
        self.stored.add(number)

    @rule(number=numbers)
    def delete(self, number: int) -> None:
        try:
            self.cache.delete(CHUNKS[number].name)
        except NotFound:
            assert number not in self.stored
        self.stored.discard(number)

    @rule(number=numbers, times=st.integers(1, 3))
    def read(self, number: int, times: int) -> None:
        for _ in range(times):
            try:
                assert self.cache.read(CHUNKS[number].name) == CHUNKS[number].raw
                assert number in self.stored
            except NotFound:
                assert number not in self.stored

    @rule()
    def read_everything(self) -> None:
        for number in sorted(self.stored):
            self.read(number, 1)

    @rule(which=st.integers(0, 100), at=st.integers(0, 40_000), byte=st.integers(1, 255))
    def flip(self, which: int, at: int, byte: int) -> None:
        paths = list(chunk_files(self.directory).values())
        if paths:
            path = paths[which % len(paths)]
            raw = bytearray(path.read_bytes())
            if raw:
                raw[at % len(raw)] ^= byte
            path.write_bytes(raw)

    @rule(which=st.integers(0, 100), size=st.integers(0, 9000))
    def truncate(self, which: int, size: int) -> None:
        paths = list(chunk_files(self.directory).values())
        if paths:
            path = paths[which % len(paths)]
            path.write_bytes(path.read_bytes()[:size])

    @rule(name=st.sampled_from(["", "tmp", "index.sqlite", "index.sqlite-journal", "CACHEDIR.TAG"]))
    def lose(self, name: str) -> None:
        path = self.directory / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    @rule()
    def restart(self) -> None:
        self.cache.close()
        self.cache = self.opened()

    @rule(seconds=st.sampled_from([2, 100]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def look(self) -> None:
        usage = self.cache.usage()
        assert usage.entries <= len(CHUNKS)

    @invariant()
    def budget_is_held(self) -> None:
        assert disk_bytes(self.directory) <= BUDGET


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)

"""The benchmark: what it measures, that it leaves nothing behind, and what follows from it."""

import math
from collections.abc import Sequence

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from store.backends.base import Backend
from store.backends.memory import MemoryBackend
from store.backends.wrappers.read_only import ReadOnly
from store.backends.wrappers.wrapper import Wrapper
from store.errors import BackendError, PermissionDenied
from store.format import chunker
from store.format.buffer import Buffer
from store.format.crypt import CryptConfig
from store.operations.benchmark import BenchmarkRequest, run, run_benchmark
from store.operations.benchmark.machine import make_samples, measure_machine
from store.operations.benchmark.prediction import CPU_STEPS, Measured, Rate, predict
from store.progress import SILENT

KEY = CryptConfig(bytes(range(32)))
MB = 1e6


class Watched(Wrapper):
    """Remembers what was touched, and fails at one call."""

    parallelism = 3

    def __init__(self, fail_at: float = math.inf, error: BaseException | None = None) -> None:
        self.memory = MemoryBackend()
        self.memory.create()
        super().__init__(self.memory)
        self.fail_at, self.error = fail_at, error
        self.touched: list[str] = []
        self.interrupted = False

    def _touch(self, name: str) -> None:
        self.touched.append(name)
        if len(self.touched) >= self.fail_at and self.error is not None:
            raise self.error

    def write(
        self, name: str, parts: Sequence[Buffer], *, exclusive: bool = False, durable: bool = False
    ) -> None:
        self._touch(name)
        super().write(name, parts, exclusive=exclusive, durable=durable)

    def read(self, name: str) -> bytes:
        self._touch(name)
        return super().read(name)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        self._touch(name)
        return super().read_range(name, offset, size)

    def delete(self, name: str) -> None:
        self.touched.append(name)
        super().delete(name)

    def interrupt(self) -> None:
        self.interrupted = True

    def names(self) -> list[str]:
        return sorted(found.name for found in self.memory.walk(""))


def quick(backend: Backend, key: CryptConfig | None = None) -> BenchmarkRequest:
    return BenchmarkRequest(backend, key, 64 << 10, 0.002)


@pytest.mark.parametrize("key", [None, KEY])
def test_everything_is_measured_and_nothing_else_touched(key: CryptConfig | None) -> None:
    backend = Watched()
    backend.memory.mkdir(".vaultway/heads")
    backend.memory.write(".vaultway/heads/one", (b"precious",))
    before = backend.names()
    result = run_benchmark(quick(backend, key))
    assert {rate.name for rate in result.machine} == set(CPU_STEPS)
    assert [(rate.name, rate.threads) for rate in result.storage] == [
        (name, threads) for threads in (1, 3, 4) for name in ("put", "get")
    ]
    assert [latency.name for latency in result.latencies] == ["stat", "read"]
    assert all(rate.speed > 0 for rate in (*result.machine, *result.storage))
    assert len({name.split("/")[2] for name in backend.touched}) == 1
    assert all(name.startswith(".vaultway/benchmark/") for name in backend.touched)
    assert backend.names() == before
    assert backend.memory.stat(".vaultway/benchmark") is None


def test_our_own_directory_goes_too_where_there_was_none() -> None:
    backend = Watched()
    run_benchmark(quick(backend))
    assert backend.memory.stat(".vaultway") is None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BackendError("no route")], ids=repr)
@pytest.mark.parametrize("fail_at", [1, 2, 3, 5, 8, 13])
def test_nothing_is_left_when_it_is_interrupted(fail_at: int, error: BaseException) -> None:
    backend = Watched(fail_at, error)
    before = backend.names()
    with pytest.raises(type(error)):
        run_benchmark(quick(backend))
    assert backend.names() == before
    assert backend.memory.stat(".vaultway") is None
    assert backend.interrupted == (fail_at > 1), "the first put is nobody else's"


def test_who_may_not_write_hears_it_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Before ten seconds of measuring, and with no word of objects that never were."""
    monkeypatch.setattr(run, "measure_machine", None)
    backend = Watched()
    with pytest.raises(PermissionDenied, match="is read-only: held by a PBS"):
        run_benchmark(quick(ReadOnly(backend, "held by a PBS")))
    assert (backend.touched, caplog.records) == ([], [])


def test_the_cutter_has_something_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """It skips the first MiB of a chunk: in small ones it would find nothing, endlessly fast."""
    looked: list[int] = []

    def find_cut(data: Buffer, start: int, end: int, mask: int, threshold: int) -> int:
        looked.append(end - start)
        return 0

    monkeypatch.setattr(chunker, "find_cut", find_cut)
    measure_machine(make_samples(64 << 10), 1, 0.001, SILENT)
    assert max(looked) > 8 << 20


@pytest.mark.expect_warnings
def test_what_can_not_be_removed_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend = Watched(3, BackendError("no route"))

    def fail(name: str) -> None:
        raise BackendError("still no route")

    monkeypatch.setattr(backend, "remove_tree", fail)
    with pytest.raises(BackendError, match=r"^no route"):
        run_benchmark(quick(backend))
    [record] = caplog.records
    assert ".vaultway/benchmark/" in record.getMessage()


def test_samples_compress_as_programs_do() -> None:
    samples = make_samples(1 << 20)
    assert samples == make_samples(1 << 20)
    assert len(set(samples)) == len(samples)
    assert {len(chunk) for chunk in samples} == {1 << 20}
    assert 0.2 < len(zstandard.compress(samples[0], 1)) / len(samples[0]) < 0.4


# Predictions


def measured(
    *,
    put: float = 1000,
    get: float = 1000,
    stat_s: float = 1e-5,
    encrypted: bool = False,
    is_object_store: bool = False,
    **machine: float,
) -> Measured:
    """Rates in MB/s by one thread; two do twice as much."""
    rates = dict.fromkeys(CPU_STEPS, 1000.0) | machine
    return Measured(
        tuple(Rate(name, n, n * speed * MB) for name, speed in rates.items() for n in (1, 2)),
        (Rate("put", 1, put * MB), Rate("get", 1, get * MB)),
        stat_s,
        0.5,
        4_000_000,
        encrypted=encrypted,
        is_object_store=is_object_store,
    )


def limits(what: Measured) -> dict[str, tuple[str, int]]:
    return {one.name: (one.limited_by, round(one.speed / MB)) for one in predict(what)}


def test_a_slow_storage_bounds_backup_and_restore() -> None:
    found = limits(measured(put=50, get=20))
    assert found["first backup"] == ("put", 100)
    assert found["restore"] == ("get", 40)
    assert found["unchanged backup"][0] in {"sha256", "chunker"}


def test_slow_compression_bounds_a_first_backup() -> None:
    found = limits(measured(compress=100))
    assert found["first backup"] == ("compress", round(1 / (1 / 2000 * 2.5 + 1 / 200)))
    assert found["restore"][0] != "compress"


def test_one_thread_cuts() -> None:
    found = limits(measured(chunker=300, sha256=9000, compress=9000))
    assert found["first backup"] == ("chunker", 300)
    assert found["unchanged backup"] == ("chunker", 300)


def test_encryption_costs_where_there_is_a_key() -> None:
    plain, sealed = (limits(measured(aes256_gcm=10, encrypted=e)) for e in (False, True))
    assert plain["first backup"][0] != "aes256_gcm"
    assert sealed["first backup"] == ("aes256_gcm", round(1 / (1 / 40 + 3.5 / 2000)))
    assert sealed["restore"][0] == "aes256_gcm"


def test_slow_looks_bound_an_unchanged_backup_but_on_object_stores() -> None:
    assert limits(measured(stat_s=0.1))["unchanged backup"] == ("stat", 40)
    found = limits(measured(stat_s=0.1, is_object_store=True))
    assert found["unchanged backup"][0] != "stat"


@given(
    st.fixed_dictionaries(
        dict.fromkeys((*CPU_STEPS, "put", "get"), st.floats(0.1, 1e5)), optional={}
    ),
    st.booleans(),
)
def test_no_prediction_is_above_any_of_its_limits(rates: dict[str, float], encrypted: bool) -> None:
    for one in predict(measured(encrypted=encrypted, **rates)):
        assert one.speed == min(speed for _, speed in one.limits)
        assert (one.limited_by, one.speed) in one.limits

"""The whole benchmark."""

import os
from dataclasses import dataclass

from store.backends.base import Backend
from store.format.blob import encode_blob
from store.format.crypt import IV_SIZE, CryptConfig
from store.operations.benchmark.machine import make_samples, measure_machine
from store.operations.benchmark.prediction import CPU_STEPS, Measured, Prediction, Rate, predict
from store.operations.benchmark.storage import Latency, StorageBench, scratch_directory
from store.progress import SILENT, Progress


@dataclass(frozen=True)
class BenchmarkRequest:
    """What to measure.

    Attributes:
        backend: where objects are put below `.vaultway/benchmark/`, and removed.
        key: count encryption in; None: leave it out.
        chunk_size: bytes of a chunk before compression.
        seconds: of each storage measurement; the machine's take a tenth.
    """

    backend: Backend
    key: CryptConfig | None = None
    chunk_size: int = 4 << 20
    seconds: float = 3.0


@dataclass(frozen=True)
class BenchmarkResult:
    """Rates in bytes a second: the machine's of plain bytes, the storage's of stored ones.

    Attributes:
        machine: each by 1 thread and by all processors.
        storage: put and get, by 1, 4 and `parallelism` threads.
        compressed: stored bytes for each plain one of the samples.
    """

    machine: tuple[Rate, ...]
    latencies: tuple[Latency, ...]
    storage: tuple[Rate, ...]
    compressed: float
    predictions: tuple[Prediction, ...]


def run_benchmark(request: BenchmarkRequest, progress: Progress = SILENT) -> BenchmarkResult:
    """Measure; takes about half a minute.

    Nothing in the datastore is touched but a new directory below `.vaultway/benchmark/`, which is
    removed whatever happens (not when the process is killed).

    Raises BackendError, OutOfSpace, PermissionDenied.
    """
    plain = make_samples(request.chunk_size)
    cores = len(os.sched_getaffinity(0))
    backend = request.backend
    threads = tuple(sorted({1, 4, backend.parallelism}))
    progress.start(2 * len(CPU_STEPS) + 2 + 2 * len(threads), "measurements")
    try:
        with scratch_directory(backend) as directory:
            machine = measure_machine(plain, cores, request.seconds / 10, progress)
            stored = [encode_blob(chunk, request.key, iv=_iv(request.key)) for chunk in plain]
            bench = StorageBench(backend, directory, stored, request.seconds, progress)
            storage = tuple(rate for number in threads for rate in bench.put_and_get(number))
            latencies = bench.latencies()
    finally:
        progress.done()
    compressed = sum(map(len, stored)) / sum(map(len, plain))
    measured = Measured(
        machine, storage, latencies[0].seconds, compressed, request.chunk_size,
        encrypted=request.key is not None, is_object_store=backend.is_object_store,
    )  # fmt: skip
    return BenchmarkResult(machine, latencies, storage, compressed, predict(measured))


def _iv(key: CryptConfig | None) -> bytes | None:
    return os.urandom(IV_SIZE) if key else None

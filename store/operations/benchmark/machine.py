"""The steps of the pipeline, each alone: by one thread, and by all processors."""

import hashlib
import os
import threading
from collections.abc import Callable, Sequence

import numpy
import zstandard
from zlib_ng.zlib_ng import crc32

from store.format.blob import COMPRESSION_LEVEL
from store.format.chunker import AVERAGE, Chunker
from store.format.crypt import IV_SIZE, CryptConfig
from store.operations.benchmark.crew import Crew
from store.operations.benchmark.prediction import CPU_STEPS, Rate
from store.progress import Progress

SAMPLES = 8
WORD_SIZE, WORDS, RARITY = 12, 4096, 3
"""The samples: random words, some of them much more often than others. zstd makes a third of them,
as of programs and documents."""

STREAM_SIZE = 4 * AVERAGE
"""What is cut, whatever the size of the chunks: the cutter never looks at the first MiB of one."""


def make_samples(size: int, count: int = SAMPLES) -> list[bytes]:
    """Chunks that compress as programs and documents do; the same each time, no two alike."""
    random = numpy.random.default_rng(1)
    words = random.integers(0, 256, (WORDS, WORD_SIZE), dtype=numpy.uint8)
    numbers = [random.random(-(-size // WORD_SIZE)) ** RARITY for _ in range(count)]
    return [words[(chosen * WORDS).astype(int)].tobytes()[:size] for chosen in numbers]


def measure_machine(
    plain: Sequence[bytes], cores: int, seconds: float, progress: Progress
) -> tuple[Rate, ...]:
    """Each step of the pipeline alone, in the units of the plain chunk it works for."""
    tools = threading.local()
    key = CryptConfig(bytes(32))
    packed = {chunk: zstandard.compress(chunk, COMPRESSION_LEVEL) for chunk in plain}

    def compress(chunk: bytes) -> None:
        if not hasattr(tools, "compressor"):
            tools.compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL)
        tools.compressor.compress(chunk)

    def decompress(chunk: bytes) -> None:
        if not hasattr(tools, "decompressor"):
            tools.decompressor = zstandard.ZstdDecompressor()
        tools.decompressor.decompress(packed[chunk])

    steps: dict[str, Callable[[bytes], object]] = {
        "sha256": lambda chunk: hashlib.sha256(chunk).digest(),
        "compress": compress,
        "decompress": decompress,
        "aes256_gcm": lambda chunk: key.encrypt(os.urandom(IV_SIZE), chunk),
        "crc32": crc32,
        "chunker": _scan,
    }
    stream = make_samples(STREAM_SIZE, 1)
    rates = []
    for name in CPU_STEPS:
        data = stream if name == "chunker" else plain
        for threads in (1, cores):
            rates.append(Rate(name, threads, _rate(steps[name], data, threads, seconds)))
            progress.advance(1)
    return tuple(rates)


def _scan(stream: bytes) -> None:
    """Look for cuts."""
    chunker, view = Chunker(), memoryview(stream)
    while view and (cut := chunker.scan(view)):
        view = view[cut:]


def _rate(
    step: Callable[[bytes], object], plain: Sequence[bytes], threads: int, seconds: float
) -> float:
    """Bytes a second of a step that many threads do at once."""

    def work(number: int) -> int:
        chunk = plain[number % len(plain)]
        step(chunk)
        return len(chunk)

    return Crew(seconds).run(threads, work)

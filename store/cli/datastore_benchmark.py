"""`vaultway datastore benchmark`: what bounds a backup here, this machine or the storage."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from store.cli.key_files import DEFAULT_KEY_NAME, find_default, read_key_file
from store.cli.options import (
    add_command,
    add_output_option,
    add_repository_options,
    open_repository,
)
from store.cli.output import Column, print_json, render
from store.errors import InvalidName

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from store.cli.output import Row
    from store.format.crypt import CryptConfig
    from store.operations.benchmark import BenchmarkResult
    from store.operations.benchmark.prediction import Rate

SIZES_KIB = range(64, 16384 + 1)
NAMES = {
    "sha256": "SHA256 checksum computation",
    "compress": "ZStd level 1 compression",
    "decompress": "ZStd level 1 decompression",
    "aes256_gcm": "AES256 GCM encryption",
    "crc32": "CRC32 checksum computation",
    "chunker": "chunk cutting",
    "stat": "look at a chunk",
    "read": "read of 4 KiB",
    "put": "put of chunks",
    "get": "get of chunks",
}
NOTES = """\
Rates are MB/s (10^6 bytes): of plain bytes for the machine and the predictions, of stored ones for
put and get. Predictions are for a tree of well compressible data, and know neither how fast the
source is read nor the target written. A local disk serves what was just written from memory.

Takes half a minute; objects below .vaultway/benchmark/ in the datastore come and go.
"""


def add_command_to(noun: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    """Declare the command, below `datastore`."""
    command = add_command(
        noun,
        "benchmark",
        benchmark,
        "Measure this machine and the storage; say what will bound a backup and a restore.",
        "vaultway datastore benchmark --repository /srv/vault",
        NOTES,
    )
    add = command.add_argument
    add(
        "--keyfile",
        metavar="PATH",
        help="count encryption in (default: if there is a default key); asks for no passphrase",
    )
    add(
        "--size",
        metavar="KIB",
        type=int,
        default=4096,
        help="chunk before compression, 64 to 16384 (default: 4096)",
    )
    add("--quiet", action="store_true", help="no progress")
    add_repository_options(command, namespace=False)
    add_output_option(command)


def benchmark(args: "argparse.Namespace") -> None:
    """Measure and print one table."""
    from store.cli.progress_bar import make_progress
    from store.operations.benchmark import BenchmarkRequest, run_benchmark

    if args.size not in SIZES_KIB:
        raise InvalidName(f"--size {args.size}: use 64 to 16384 KiB")
    key = _any_key(args.keyfile)
    request = BenchmarkRequest(open_repository(args).backend, key, args.size << 10)
    result = run_benchmark(request, make_progress(quiet=args.quiet))
    if args.output_format != "text":
        print_json(_record(result, request.backend.location, key is not None), args.output_format)
        return
    columns = (
        Column("what"),
        *(Column(field, right=True) for field in ("unit", "1 thread", "4 threads", "most threads")),
        Column("limited by"),
    )
    render([*_rows(result)], "text", columns)


def _any_key(path: str | None) -> "CryptConfig | None":
    """Some key, where a backup would use one: each takes as long as the other."""
    from store.format.crypt import KEY_SIZE, CryptConfig

    if path is not None:
        read_key_file(Path(path))
    elif find_default(DEFAULT_KEY_NAME) is None:
        return None
    return CryptConfig(os.urandom(KEY_SIZE))


def _rows(result: "BenchmarkResult") -> "Iterable[Row]":
    yield from _rate_rows(result.machine)
    for latency in result.latencies:
        yield {
            "what": NAMES[latency.name],
            "unit": "ms",
            "1 thread": f"{1000 * latency.seconds:.3f}",
        }
    yield from _rate_rows(result.storage)
    for prediction in result.predictions:
        yield {
            "what": f"prediction: {prediction.name}",
            "unit": "MB/s",
            "most threads": _megabytes(prediction.speed),
            "limited by": NAMES[prediction.limited_by],
        }


def _rate_rows(rates: "tuple[Rate, ...]") -> "Iterable[Row]":
    """A row for each thing, with the number of threads of its columns in its name."""
    for name in dict.fromkeys(rate.name for rate in rates):
        speeds = {rate.threads: _megabytes(rate.speed) for rate in rates if rate.name == name}
        row = {"what": f"{NAMES[name]} (1 to {max(speeds)} threads)", "unit": "MB/s"}
        yield row | {
            "1 thread": speeds[1],
            "4 threads": speeds.get(4),
            "most threads": speeds[max(speeds)],
        }


def _megabytes(speed: float) -> str:
    return f"{speed / 1e6:,.0f}"


def _record(result: "BenchmarkResult", location: str, encrypted: bool) -> "Row":
    """Everything, in bytes a second and seconds."""
    return {
        "repository": location,
        "encrypted": encrypted,
        "compressed-to": round(result.compressed, 3),
        "rates": [
            {"name": rate.name, "threads": rate.threads, "speed": round(rate.speed)}
            for rate in (*result.machine, *result.storage)
        ],
        "latencies": [
            {"name": latency.name, "seconds": latency.seconds} for latency in result.latencies
        ],
        "predictions": [
            {
                "name": prediction.name,
                "speed": round(prediction.speed),
                "limited-by": prediction.limited_by,
                "limits": {name: round(speed) for name, speed in sorted(prediction.limits)},
            }
            for prediction in result.predictions
        ],
    }

"""scripts/bench: measure, print a table, write JSON."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType

from scripts.benchmark.data import scratch_folder
from scripts.benchmark.rows import ROWS, Bench
from scripts.benchmark.running import BenchError


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure us against this machine's limit and the installed peers, in one run.",
        epilog=f"rows: {' '.join(ROWS)}",
    )
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="ROW",
        help="which rows (default: all); `tree` means every tree-… row",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    parser.add_argument(
        "--size", type=int, default=1000, metavar="MB", help="bytes of the tree (default: 1000)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="medians are of so many (default: 3)")
    parser.add_argument("--work", type=Path, help="scratch folder (default: RAM, if there is room)")
    parser.add_argument(
        "--peers", action="store_true", help="install restic, borg, casync and fio first"
    )
    parser.add_argument(
        "--against", metavar="PEERS", help="restic,borg,casync: only these (none: no peer)"
    )
    return parser.parse_args()


def chosen_rows(names: list[str]) -> set[str]:
    chosen = {
        row for row in ROWS for name in names or ROWS if row == name or row.startswith(f"{name}-")
    }
    unknown = [
        name for name in names if not any(row == name or row.startswith(f"{name}-") for row in ROWS)
    ]
    if unknown:
        raise BenchError(f"no such row: {', '.join(unknown)}; there are {' '.join(ROWS)}")
    return chosen


def print_table(results: list[dict[str, object]]) -> None:
    head = f"{'row':24}{'ours':>14}  {'unit':8}{'against':30}{'ratio':>8}{'goal':>8}"
    print(f"\n{head}\n{'-' * len(head)}")
    for result in results:
        value = f"{result['value']:,.2f}"
        print(
            f"{result['row']:24}{value:>14}  {result['unit']:8}"
            f"{result['against']:30}{result['ratio']:8.2f}"
            + (f"{result['goal']:8.2f}" if result["goal"] else "")
        )
    print(
        "\nratio: ours by theirs in speed, above 1 is faster;"
        " for amounts (x, MiB, s/GB) ours by theirs, less is better"
    )


def clean_up(work: Path) -> None:
    mountpoint = work / "mnt"
    if os.path.ismount(mountpoint):
        subprocess.run(["fusermount3", "-u", "-z", mountpoint], capture_output=True, check=False)
    if not os.path.ismount(mountpoint):
        shutil.rmtree(work, ignore_errors=True)


def terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def measure(arguments: argparse.Namespace, work: Path, rows: set[str]) -> list[dict[str, object]]:
    peers = arguments.against.split(",") if arguments.against else None
    bench = Bench(work, arguments.size * 10**6, rows, peers)
    bench.prepare()
    for number in range(arguments.rounds):
        print(f"round {number + 1} of {arguments.rounds}", flush=True)
        bench.round(number)
    return list(bench.samples.results())


def main() -> int:
    arguments, work = parse_arguments(), None
    signal.signal(signal.SIGTERM, terminate)
    try:
        rows = chosen_rows(arguments.rows)
        work = Path(
            tempfile.mkdtemp(
                prefix="vaultway-bench-", dir=scratch_folder(arguments.work, arguments.size * 10**6)
            )
        )
        results = measure(arguments, work, rows)
        print_table(results)
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    else:
        return 0
    finally:
        if work:
            clean_up(work)


if __name__ == "__main__":
    sys.exit(main())

"""What this machine and a datastore's storage can do, and which of them bounds a backup."""

from store.operations.benchmark.run import BenchmarkRequest, BenchmarkResult, run_benchmark

__all__ = ["BenchmarkRequest", "BenchmarkResult", "run_benchmark"]

"""`vaultway datastore benchmark`: its table, its JSON, its options."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from store.operations import benchmark
from store.operations.benchmark import BenchmarkRequest, BenchmarkResult
from store.progress import Progress
from tests.fakes.datastores import bare_backend
from tests.unit.store.cli.conftest import KEYS, Vaultway


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Milliseconds in place of seconds."""
    run = benchmark.run_benchmark

    def run_quickly(request: BenchmarkRequest, progress: Progress) -> BenchmarkResult:
        return run(replace(request, seconds=0.002), progress)

    monkeypatch.setattr(benchmark, "run_benchmark", run_quickly)
    bare_backend(tmp_path / "store")
    monkeypatch.setenv("PBS_REPOSITORY", str(tmp_path / "store"))


def test_the_table(vaultway: Vaultway, tmp_path: Path) -> None:
    done = vaultway("datastore", "benchmark", "--size", 64)
    assert done.code == 0
    for words in (
        "SHA256 checksum computation (1 to ",
        "ZStd level 1 compression",
        "AES256 GCM encryption",
        "chunk cutting",
        "look at a chunk",
        "put of chunks (1 to ",
        "prediction: unchanged backup",
    ):
        assert words in done.out
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [".chunks", ".lock"]


def test_json(vaultway: Vaultway, tmp_path: Path) -> None:
    done = vaultway("datastore", "benchmark", "--size", 64, "--output-format", "json")
    found = json.loads(done.out)
    assert found["repository"] == str(tmp_path / "store")
    assert found["encrypted"] is False
    assert {rate["name"] for rate in found["rates"]} >= {"sha256", "put", "get"}
    assert [one["name"] for one in found["predictions"]] == [
        "first backup",
        "unchanged backup",
        "restore",
    ]
    for one in found["predictions"]:
        assert one["speed"] == one["limits"][one["limited-by"]]


def test_a_key_counts_encryption_in_and_its_passphrase_is_not_asked_for(
    vaultway: Vaultway, tmp_path: Path
) -> None:
    command = ("datastore", "benchmark", "--size", 64, "--output-format", "json")
    done = vaultway(*command, "--keyfile", KEYS / "scrypt.json")
    assert json.loads(done.out)["encrypted"] is True
    assert vaultway(*command, "--keyfile", tmp_path / "none.json").code == 10
    place = tmp_path / "config/proxmox-backup/encryption-key.json"
    place.parent.mkdir(parents=True)
    place.write_bytes((KEYS / "scrypt.json").read_bytes())
    assert json.loads(vaultway(*command).out)["encrypted"] is True


@pytest.mark.parametrize("size", [0, 63, 16385, "4M"])
def test_sizes_that_no_chunk_has(vaultway: Vaultway, size: object) -> None:
    assert vaultway("datastore", "benchmark", "--size", size).code == 2

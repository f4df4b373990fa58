"""Our backup of the same sources gives the chunks, catalogs and blobs that a real PBS client made
of them."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from store.format.blob import decode_blob
from store.format.dynamic_index import DynamicIndex
from store.format.fixed_index import FixedIndex
from store.format.manifest import Manifest
from tests.disks import make_ext4, mounted_image
from tests.golden_snapshots import BLOBS, KEY_PASSWORD, KEYS, SNAPSHOTS, GoldenSnapshot
from tests.machine import scratch_parent, why_missing
from tests.program import run
from tests.trees import differences, expected_tree, list_tree

pytestmark = pytest.mark.needs("root")

GOLDEN = Path(__file__).parents[1] / "golden"
DETERMINISTIC = [snapshot for snapshot in SNAPSHOTS if snapshot.mode != "metadata"]
METADATA = [snapshot for snapshot in SNAPSHOTS if snapshot.mode == "metadata"]
EXTRA = {"host/master": ["--master-pubkey-file", str(KEYS / "master-public.pem")]}


def back_up(store: Path, snapshot: GoldenSnapshot, source: Path, golden: Path) -> None:
    """Do with our program what tests/golden/README.md says was done for `snapshot`."""
    archives = [f"{name}:{source / path}" for name, path in snapshot.archives.items()]
    if blob := BLOBS.get(snapshot.group):
        archives.append(f"{blob}:{golden / 'expected' / blob}")
    kind, identifier = snapshot.group.split("/")
    run(
        "backup", *archives, "--backup-type", kind, "--backup-id", identifier,
        "--backup-time", snapshot.time, "--change-detection-mode", snapshot.mode,
        "--crypt-mode", snapshot.crypt_mode, "--owner", "tester@pbs", "--repository", store,
        *snapshot.options, *EXTRA.get(snapshot.group, []), env=KEY_PASSWORD,
    )  # fmt: skip


@contextmanager
def source_folder() -> Iterator[Path]:
    """Where the sources are made: an archive has a file's xattrs in the order in which the file
    system lists them, and the golden ones come from an ext4."""
    with tempfile.TemporaryDirectory(prefix="vaultway-test-", dir=scratch_parent()) as scratch:
        folder = Path(scratch) / "sources"
        folder.mkdir()
        if why_missing("loop"):
            yield folder
        else:
            make_ext4(Path(scratch) / "disk", 512)
            with mounted_image(Path(scratch) / "disk", folder):
                yield folder


@pytest.fixture(scope="module")
def written(golden: Path, module_store: Path) -> Path:
    """A datastore of ours with every golden snapshot."""
    store = module_store
    run("namespace", "create", "prod", "--repository", store)
    run("namespace", "create", "prod/customer-x", "--repository", store)
    for depth in range(1, 8):
        run("namespace", "create", "/".join("abcdefg"[:depth]), "--repository", store)
    with source_folder() as source:
        for day in (1, 2, 3):
            make_source = [sys.executable, GOLDEN / "make-source.py", source, str(day)]
            subprocess.run(make_source, check=True)
            for snapshot in SNAPSHOTS:
                if snapshot.day == day:
                    back_up(store, snapshot, source, golden)
    return store


def digests(path: Path) -> list[str]:
    index = (FixedIndex if path.suffix == ".fidx" else DynamicIndex)(path.read_bytes())
    return [str(digest) for digest in index.digests()]


@pytest.mark.parametrize("snapshot", DETERMINISTIC, ids=str)
def test_same_chunks(golden: Path, written: Path, snapshot: GoldenSnapshot) -> None:
    theirs = golden / "datastore" / snapshot.directory
    indexes = sorted(path.name for path in theirs.iterdir() if path.suffix in {".fidx", ".didx"})
    ours = written / snapshot.directory
    assert indexes
    assert {name: digests(ours / name) for name in indexes} == {
        name: digests(theirs / name) for name in indexes
    }


@pytest.mark.parametrize("snapshot", SNAPSHOTS, ids=str)
def test_same_manifest(golden: Path, written: Path, snapshot: GoldenSnapshot) -> None:
    """Same files, crypt modes and fingerprint; same sizes where the choice is not ours."""

    def manifest(store: Path) -> Manifest:
        return Manifest.decode(
            decode_blob((store / snapshot.directory / "index.json.blob").read_bytes())
        )

    ours, theirs = manifest(written), manifest(golden / "datastore")
    assert ours.snapshot == theirs.snapshot
    assert ours.key_fingerprint == theirs.key_fingerprint
    assert (ours.signature is None) == (theirs.signature is None)
    assert set(theirs.unprotected) - {"notes", "verify_state"} <= set(ours.unprotected)
    found = {file.filename: str(file.crypt_mode) for file in ours.files}
    expected = {file.filename: str(file.crypt_mode) for file in theirs.files}
    expected.pop("notes.conf.blob", None)  # we have no source of it
    assert found == expected


@pytest.mark.parametrize("snapshot", METADATA, ids=str)
def test_metadata_mode_reads_back(written: Path, tmp_path: Path, snapshot: GoldenSnapshot) -> None:
    run(
        "restore", snapshot.name, "root.pxar", tmp_path / "tree",
        "--repository", written, *snapshot.options, env=KEY_PASSWORD,
    )  # fmt: skip
    assert not differences(list_tree(tmp_path / "tree"), expected_tree(snapshot.day))


def test_chunk_directory_layout(golden: Path, written: Path) -> None:
    """Every chunk where PBS looks for it, and of the chunks both have, the same kind of blob."""
    theirs = {path.name: path for path in (golden / "datastore/.chunks").glob("*/*")}
    ours = {path.name: path for path in (written / ".chunks").glob("*/*")}
    assert len(list((written / ".chunks").iterdir())) == 65536
    assert all(path.parent.name == name[:4] for name, path in ours.items())
    common = set(ours) & set(theirs)
    assert common
    for name in common:
        assert ours[name].read_bytes()[:8] == theirs[name].read_bytes()[:8], name

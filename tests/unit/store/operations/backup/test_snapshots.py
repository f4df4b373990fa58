"""What a whole snapshot is made of: archives, blobs, keys, the manifest."""

import os
import threading
from pathlib import Path

import pytest

from store.errors import InvalidName, KeyRequired, SourceError, WrongKey
from store.format.crypt import CryptConfig
from store.format.keys import KeyFile, unwrap_key
from store.format.manifest import CryptMode
from store.format.pxar.entries import EntryKind
from store.names import Fingerprint
from store.operations.backup import BackupSource, ChangeDetectionMode
from tests.conftest import GOLDEN
from tests.fakes.datastores import ROOT
from tests.unit.store.operations.backup.conftest import DATA, KEY, LEGACY, MIB, Vault, noise


@pytest.fixture
def filled(source: Path) -> Path:
    (source / "d").mkdir()
    (source / "d/file").write_bytes(noise(1, 300_000))
    (source / "disk").write_bytes(noise(2, 5 * MIB))
    (source / "a.conf").write_text("memory: 512\n")
    return source


def test_many_archives(vault: Vault, filled: Path) -> None:
    """The manifest has them as given, then the one catalog of all trees."""
    result = vault.backup(
        f"b.img:{filled}/disk",
        f"tree.pxar:{filled}",
        f"qemu-server.conf:{filled}/a.conf",
        f"again.pxar:{filled}",
        f"client2.log:{filled}/a.conf",
    )
    names = [info.filename for info in result.files]
    assert names == [
        "b.img.fidx",
        "tree.pxar.didx",
        "qemu-server.conf.blob",
        "again.pxar.didx",
        "client2.log.blob",
        "catalog.pcat1.didx",
    ]
    reader = vault.reader(result.snapshot)
    assert [info.filename for info in reader.manifest.files] == names
    assert reader.read_blob("qemu-server.conf") == b"memory: 512\n"
    first, second = reader.open_streams("tree.pxar")[0], reader.open_streams("again.pxar")[0]
    assert list(first.index.digests()) == list(second.index.digests())
    catalog = reader.catalog()
    assert catalog is not None
    assert [entry.name for entry in catalog.archives()] == [b"tree.pxar.didx", b"again.pxar.didx"]
    for root in catalog.archives():
        assert [entry.name for entry in catalog.list(root)] == [b"a.conf", b"d", b"disk"]
    assert result.known_chunks >= len(first.index)


def test_a_split_archive(vault: Vault, filled: Path) -> None:
    result = vault.backup(f"root.pxar:{filled}", change_detection_mode=DATA)
    assert [info.filename for info in result.files] == ["root.ppxar.didx", "root.mpxar.didx"]
    assert vault.reader(result.snapshot).archives == ["root.pxar"]


@pytest.mark.parametrize("crypt_mode", CryptMode)
def test_crypt_modes(
    vault: Vault, filled: Path, mode: ChangeDetectionMode, crypt_mode: CryptMode
) -> None:
    key = None if crypt_mode is CryptMode.NONE else KEY
    result = vault.backup(
        *(f"root.pxar:{filled}", f"a.img:{filled}/disk", f"c.conf:{filled}/a.conf"),
        key=key,
        crypt_mode=crypt_mode,
        change_detection_mode=mode,
    )
    reader = vault.reader(result.snapshot, key)
    assert {info.crypt_mode for info in reader.manifest.files} == {crypt_mode}
    assert reader.manifest.key_fingerprint == (key.fingerprint if key else None)
    assert (reader.manifest.signature is None) == (key is None)
    assert reader.open_image("a.img").read(0, 5 * MIB) == noise(2, 5 * MIB)
    assert reader.read_blob("c.conf") == b"memory: 512\n"
    assert vault.open(result.snapshot, key).read("d/file") == noise(1, 300_000)
    if key:
        with pytest.raises(WrongKey):
            vault.open(result.snapshot, CryptConfig(bytes(32)))
    if crypt_mode is CryptMode.ENCRYPT:
        with pytest.raises(KeyRequired):
            vault.open(result.snapshot, None)
        raw = vault.datastore.read_file(ROOT, result.snapshot, "c.conf.blob")
        assert b"memory" not in raw


def test_a_master_key_brings_the_key_back(vault: Vault, filled: Path) -> None:
    keys = GOLDEN / "keys"
    key_file = KeyFile.decode((keys / "none.json").read_bytes())
    key = key_file.unlock(None)
    result = vault.backup(
        f"c.conf:{filled}/a.conf",
        key=key,
        key_file=key_file,
        crypt_mode=CryptMode.ENCRYPT,
        master_public_key=(keys / "master-public.pem").read_bytes(),
    )
    assert [info.filename for info in result.files] == ["c.conf.blob", "rsa-encrypted.key.blob"]
    wrapped = vault.reader(result.snapshot, None).read_blob("rsa-encrypted.key")
    found = unwrap_key((keys / "master-private.pem").read_bytes(), b"master-password", wrapped)
    again = found.unlock(None)
    assert isinstance(again.fingerprint, Fingerprint)
    assert vault.reader(result.snapshot, again).read_blob("c.conf") == b"memory: 512\n"


def test_a_blob_through_a_pipe(vault: Vault, tmp_path: Path) -> None:
    """As `NAME.conf:<(command)` gives one."""
    receive, send = os.pipe()
    writer = threading.Thread(target=lambda: (os.write(send, b"piped\n"), os.close(send)))
    writer.start()
    try:
        result = vault.backup(f"a.conf:/proc/self/fd/{receive}")
    finally:
        writer.join()
        os.close(receive)
    assert vault.reader(result.snapshot).read_blob("a.conf") == b"piped\n"


def test_what_is_no_blob(vault: Vault, tmp_path: Path) -> None:
    fifo, large = tmp_path / "fifo", tmp_path / "large"
    os.mkfifo(fifo)
    with large.open("wb") as file:
        file.truncate((128 << 20) + 1)
    for path, reason in (
        (fifo, "is no file, and nothing comes out of it"),
        (large, "larger than 128 MiB, too large for a blob"),
        (tmp_path, "is a directory; use a.pxar for a tree"),
        (tmp_path / "none", "No such file or directory"),
    ):
        with pytest.raises(SourceError) as caught:
            vault.backup(f"a.conf:{path}")
        assert str(caught.value) == f"{path}: {reason}"
    assert (vault.snapshots, vault.leftovers) == ([], [])


def test_an_empty_blob(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    result = vault.backup(f"a.conf:{tmp_path}/empty", encrypted=True)
    assert vault.reader(result.snapshot).read_blob("a.conf") == b""


def test_what_is_no_tree(vault: Vault, filled: Path) -> None:
    for path, reason in (
        ("d/file", "not a directory; for a disk use root.img, for a file .conf or .log"),
        ("none", "No such file or directory"),
    ):
        with pytest.raises(SourceError) as caught:
            vault.tree(filled / path)
        assert str(caught.value) == f"{filled / path}: {reason}"


def test_all_sources_are_looked_at_first(vault: Vault, filled: Path) -> None:
    with pytest.raises(SourceError, match="/none: No such file"):
        vault.backup(f"root.pxar:{filled}", f"a.img:{filled}/none")
    assert vault.chunks == set()


@pytest.mark.parametrize(
    "text",
    ["a", "a.pxar", "a.zip:/x", ".pxar:/x", "a.pxar:", "a/b.pxar:/x", "a b.pxar:/x", "pxar:/x"],
)
def test_sources_that_are_none(text: str) -> None:
    with pytest.raises(InvalidName):
        BackupSource.parse(text)


def test_a_path_may_have_colons() -> None:
    source = BackupSource.parse("a.b.pxar:/x:y.pxar")
    assert (source.name, source.type, source.path) == ("a.b", "pxar", "/x:y.pxar")


@pytest.mark.parametrize(
    ("sources", "options"),
    [
        ((), {}),
        (("a.pxar:/x", "a.pxar:/y"), {}),
        (("client.log:/x",), {}),
        (("index.json.log:/x", "a.conf:/x", "a.conf:/x"), {}),
        (("a.pxar:/x",), {"chunk_size": 3 << 20}),
        (("a.pxar:/x",), {"payload_growth": 0.9}),
        (("a.pxar:/x",), {"key": KEY}),
        (("a.pxar:/x",), {"crypt_mode": CryptMode.ENCRYPT}),
        (("a.pxar:/x",), {"master_public_key": b"pem"}),
    ],
)
def test_requests_that_make_no_sense(
    vault: Vault, sources: tuple[str, ...], options: dict[str, object]
) -> None:
    with pytest.raises(InvalidName):
        vault.backup(*sources, **options)


def test_a_large_directory_of_one_kind(vault: Vault, source: Path) -> None:
    """More names than the items gathered on their way; symlinks only, so no content flushes."""
    for number in range(3000):
        (source / f"{number:05}").symlink_to(str(number))
    tree = vault.tree(source, LEGACY)
    assert len(tree.names) == 3000
    assert tree["02999"].kind is EntryKind.SYMLINK

"""PBS's names for its lock files, and its configuration on the same host."""

from pathlib import Path

import pytest

from store.datastore.locks import escape, lock_name, manifest_locks
from store.names import BackupGroup, Namespace, Snapshot
from store.repositories.pbs_host import KnownDatastore, find_datastore

ROOT = Namespace()


@pytest.mark.parametrize(
    ("path", "escaped"),
    [
        ("vm/100", "vm-100"),
        ("vm/100/2022-05-02T08:11:33Z", r"vm-100-2022\x2d05\x2d02T08\x3a11\x3a33Z"),
        ("/.hidden/.x", r"\x2ehidden-.x"),
        ("host/a_b.c-d", r"host-a_b.c\x2dd"),
        ("host/é", r"host-\xc3\xa9"),
    ],
)
def test_escape(path: str, escaped: str) -> None:
    assert escape(path) == escaped


def test_lock_names() -> None:
    assert lock_name(ROOT, "vm/100") == "vm-100"
    assert lock_name(Namespace(("a", "b")), "vm/100") == "a:b/vm-100"


def test_a_long_name_is_hashed() -> None:
    path = "host/" + "x" * 260
    name = lock_name(Namespace(("a",)), path)
    escaped = escape(path)
    assert name.startswith(f"a:/hashed/{escaped[:80]}...{escaped[-80:]}-".replace("a:", "a"))
    assert len(name.rpartition("-")[2]) == 64
    assert lock_name(ROOT, "host/" + "x" * 249) == "host-" + "x" * 249


def test_manifest_locks_of_both_versions() -> None:
    snapshot = Snapshot(BackupGroup("vm", "100"), 86400)
    assert manifest_locks(Namespace(("a",)), snapshot) == (
        r"a/vm-100-1970\x2d01\x2d02T00\x3a00\x3a00Z-.index.json.lck",
        "ns/a/vm/100/1970-01-02T00:00:00Z/1970-01-02T00:00:00Z.index.json.lck",
    )


def test_the_name_a_pbs_on_this_host_has_for_a_directory(tmp_path: Path) -> None:
    store, link = tmp_path / "data", tmp_path / "link"
    store.mkdir()
    link.symlink_to(store)
    configuration = tmp_path / "datastore.cfg"
    configuration.write_text(
        "datastore: other\n\tpath /nowhere\n\n"
        f"datastore: main\n\tcomment path /x\n\tgc-schedule daily\n\tpath {store}\n\n"
        "datastore: stick\n\tbacking-device 1234\n\tpath data\n"
    )
    locks = tmp_path / "locks"
    locks.mkdir()
    for path in (store, link):
        assert find_datastore(str(path), configuration, locks) == KnownDatastore(
            "main", str(locks / "main")
        )
    assert find_datastore(str(tmp_path), configuration, locks) is None
    assert find_datastore(str(store), tmp_path / "none", locks) is None

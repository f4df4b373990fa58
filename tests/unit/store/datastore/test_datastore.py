"""A datastore against a dictionary, and what its parts refuse."""

from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from store.backends.memory import MemoryBackend
from store.datastore import locks
from store.datastore.datastore import Datastore
from store.errors import AlreadyExists, InvalidName, Locked, NotFound, PermissionDenied
from store.format.manifest import Manifest
from store.names import BackupGroup, Namespace, Snapshot
from tests.fakes.datastores import GROUP, ROOT, local_datastore, open_on, snapshot, write_snapshot

NAMESPACES = st.lists(st.sampled_from(["a", "b"]), max_size=3).map(
    lambda parts: Namespace(tuple(parts))
)
GROUPS = st.builds(BackupGroup, st.sampled_from(["vm", "host"]), st.sampled_from(["1", "2"]))


class DatastoreMachine(RuleBasedStateMachine):
    """Namespaces, groups, snapshots and marks, step by step beside plain sets and dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        backend = MemoryBackend()
        backend.create()
        self.store: Datastore = open_on(backend)
        self.namespaces = {ROOT}
        self.snapshots: dict[tuple[Namespace, Snapshot], bool] = {}  # protected?
        self.day = 0

    @rule(namespace=NAMESPACES)
    def create_namespace(self, namespace: Namespace) -> None:
        if not namespace.components:
            expected: type[Exception] | None = InvalidName
        elif namespace.parent not in self.namespaces:
            expected = NotFound
        else:
            expected = AlreadyExists if namespace in self.namespaces else None
        if expected:
            with pytest.raises(expected):
                self.store.create_namespace(namespace)
        else:
            self.store.create_namespace(namespace)
            self.namespaces.add(namespace)

    @rule(namespace=NAMESPACES, group=GROUPS, finish=st.booleans())
    def backup(self, namespace: Namespace, group: BackupGroup, finish: bool) -> None:
        self.day += 1
        what = snapshot(self.day, group)
        if namespace not in self.namespaces:
            with pytest.raises(NotFound):
                self.store.begin_snapshot(namespace, what)
            return
        with self.store.begin_snapshot(namespace, what) as writer:
            assert writer.previous == max(self.of_group(namespace, group), default=None)
            if finish:
                writer.finish(Manifest(what, ()))
                self.snapshots[namespace, what] = False

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data(), value=st.booleans())
    def protect(self, data: st.DataObject, value: bool) -> None:
        namespace, what = data.draw(st.sampled_from(sorted(self.snapshots)))
        self.store.set_protected(namespace, what, value)
        self.snapshots[namespace, what] = value

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        namespace, what = data.draw(st.sampled_from(sorted(self.snapshots)))
        if self.snapshots[namespace, what]:
            with pytest.raises(PermissionDenied):
                self.store.forget_snapshot(namespace, what)
        else:
            self.store.forget_snapshot(namespace, what)
            del self.snapshots[namespace, what]
            with pytest.raises(NotFound):
                self.store.forget_snapshot(namespace, what)

    @rule(namespace=NAMESPACES)
    def delete_namespace(self, namespace: Namespace) -> None:
        inside = [at for at, _ in self.snapshots if at == namespace]
        below = [
            other for other in self.namespaces if other.parent == namespace and other != namespace
        ]
        if namespace not in self.namespaces:
            with pytest.raises(NotFound):
                self.store.delete_namespace(namespace)
        elif inside or below or not namespace.components:
            with pytest.raises(PermissionDenied):
                self.store.delete_namespace(namespace)
        else:
            self.store.delete_namespace(namespace)
            self.namespaces.discard(namespace)

    @rule(namespace=NAMESPACES)
    def delete_namespace_with_all(self, namespace: Namespace) -> None:
        def inside(other: Namespace) -> bool:
            return other.components[: len(namespace.components)] == namespace.components

        if namespace not in self.namespaces or not namespace.components:
            return
        if any(marked for (at, _), marked in self.snapshots.items() if inside(at)):
            return  # stops somewhere on the way: tested apart
        self.store.delete_namespace(namespace, delete_groups=True)
        self.namespaces = {other for other in self.namespaces if not inside(other)}
        self.snapshots = {key: value for key, value in self.snapshots.items() if not inside(key[0])}

    def of_group(self, namespace: Namespace, group: BackupGroup) -> list[Snapshot]:
        return sorted(
            what for at, what in self.snapshots if at == namespace and what.group == group
        )

    @invariant()
    def lists_what_the_model_has(self) -> None:
        assert self.store.list_namespaces() == sorted(self.namespaces)
        for namespace in self.namespaces:
            groups = self.store.list_groups(namespace)
            assert groups == sorted({what.group for at, what in self.snapshots if at == namespace})
            for group in groups:
                listed = self.store.list_snapshots(namespace, group)
                assert listed == self.of_group(namespace, group)
                assert self.store.resolve_snapshot(namespace, str(group)) == listed[-1]
                for what in listed:
                    assert (
                        self.store.is_protected(namespace, what) == self.snapshots[namespace, what]
                    )


TestDatastoreMachine = DatastoreMachine.TestCase
TestDatastoreMachine.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


@pytest.fixture
def store(tmp_path: Path) -> Datastore:
    return local_datastore(tmp_path / "store")


def test_no_datastore_is_said_so() -> None:
    with pytest.raises(NotFound, match=r"no \.chunks"):
        open_on(MemoryBackend())


def test_foreign_names_are_not_listed(store: Datastore, tmp_path: Path) -> None:
    write_snapshot(store, snapshot(1))
    root = tmp_path / "store"
    for name in (
        "host/.hidden",
        "host/web01/notes.d",
        "host/web01/2026-01-01T00:00:00",
        "host/-x",
        "tape/a",
        "ns/.b",
    ):
        (root / name).mkdir(parents=True)
    (root / "host/file").touch()
    (root / "host/web01/2026-01-01T00:00:00Z").touch()
    (root / snapshot(1).path(ROOT) / "x.img.tmp_fidx").touch()
    assert store.list_groups() == [GROUP]
    assert store.list_groups(empty=True) == [GROUP]
    assert store.list_snapshots(ROOT, GROUP) == [snapshot(1)]
    assert store.list_namespaces() == [ROOT]
    assert "x.img.tmp_fidx" not in store.list_files(ROOT, snapshot(1))


def test_namespaces_too_deep_are_not_listed(store: Datastore, tmp_path: Path) -> None:
    deep = Namespace(tuple("abcdefg"))
    (tmp_path / "store" / deep.path / "ns" / "h").mkdir(parents=True)
    assert store.list_namespaces()[-1] == deep
    assert store.list_namespaces(Namespace(("a",)), 1) == [Namespace(("a",)), Namespace(("a", "b"))]
    with pytest.raises(NotFound):
        store.list_namespaces(Namespace(("x",)))


def test_notes_and_protection(store: Datastore) -> None:
    write_snapshot(store, snapshot(1))
    assert store.notes(ROOT, GROUP) == ""
    store.set_notes(ROOT, GROUP, "première ligne\nzweite")
    assert store.notes(ROOT, GROUP) == "première ligne\nzweite"
    store.set_protected(ROOT, snapshot(1), True)
    with pytest.raises(PermissionDenied, match="protected"):
        store.forget_snapshot(ROOT, snapshot(1))
    with pytest.raises(PermissionDenied, match="protected"):
        store.forget_group(ROOT, GROUP)
    store.set_protected(ROOT, snapshot(1), False)
    store.forget_snapshot(ROOT, snapshot(1))
    assert store.list_groups(empty=True) == []
    with pytest.raises(NotFound):
        store.set_protected(ROOT, snapshot(1), True)


def test_a_snapshot_that_is_read_stays(store: Datastore) -> None:
    write_snapshot(store, snapshot(1))
    with (
        store.lock_snapshot_shared(ROOT, snapshot(1)),
        store.lock_snapshot_shared(ROOT, snapshot(1)),
    ):
        with pytest.raises(Locked, match="host/web01"):
            store.forget_snapshot(ROOT, snapshot(1))
        store.set_protected(ROOT, snapshot(1), True)
    with pytest.raises(NotFound):
        store.lock_snapshot_shared(ROOT, snapshot(2))


def test_a_manifest_that_is_changed_stays(
    store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "MANIFEST_TIMEOUT_S", 0.02)
    what = snapshot(1)
    write_snapshot(store, what)
    with locks.lock_manifest(store.backend, ROOT, what):
        for remove in (
            lambda: store.forget_group(ROOT, GROUP),
            lambda: store.forget_snapshot(ROOT, what),
        ):
            with pytest.raises(Locked):
                remove()
    assert store.list_snapshots(ROOT, GROUP) == [what]
    store.forget_group(ROOT, GROUP)


def test_a_group_with_something_else_in_it_keeps_its_owner(
    store: Datastore, tmp_path: Path
) -> None:
    write_snapshot(store, snapshot(1))
    (tmp_path / "store/host/web01/foreign").touch()
    store.forget_snapshot(ROOT, snapshot(1))
    assert store.owner(ROOT, GROUP) == "root@pam"


def test_update_manifest_keeps_what_it_does_not_change(store: Datastore) -> None:
    before = write_snapshot(store, snapshot(1))
    changed = store.update_manifest(
        ROOT, snapshot(1), lambda manifest: manifest.with_unprotected(notes="kept")
    )
    assert (
        changed == store.read_manifest(ROOT, snapshot(1)) == before.with_unprotected(notes="kept")
    )
    with pytest.raises(NotFound, match="host/web01"):
        store.update_manifest(ROOT, snapshot(2), lambda manifest: manifest)


@pytest.mark.parametrize(
    "text", ["host", "host/web01/x/y", "disk/web01", "host/web01/yesterday", ""]
)
def test_snapshots_that_cannot_be(store: Datastore, text: str) -> None:
    with pytest.raises(InvalidName):
        store.resolve_snapshot(ROOT, text)


def test_resolve(store: Datastore) -> None:
    write_snapshot(store, snapshot(1))
    for text in (str(snapshot(1)), "host/web01", "host/web01/latest"):
        assert store.resolve_snapshot(ROOT, text) == snapshot(1)
    for missing in (str(snapshot(2)), "host/web02"):
        with pytest.raises(NotFound):
            store.resolve_snapshot(ROOT, missing)


@pytest.mark.parametrize(
    "filename", ["../owner", "owner", "/etc/passwd.blob", "a/b.blob", "..blob"]
)
def test_no_file_name_leads_out(store: Datastore, filename: str) -> None:
    write_snapshot(store, snapshot(1))
    with pytest.raises(InvalidName):
        store.read_file(ROOT, snapshot(1), filename)


def test_a_protected_snapshot_stops_the_removal_of_its_namespace(store: Datastore) -> None:
    below = Namespace(("a", "b"))
    store.create_namespace(below.parent)
    store.create_namespace(below)
    write_snapshot(store, snapshot(1), below)
    store.set_protected(below, snapshot(1), True)
    with pytest.raises(PermissionDenied, match="protected"):
        store.delete_namespace(below.parent, delete_groups=True)
    assert store.list_snapshots(below, GROUP) == [snapshot(1)]


def test_status(store: Datastore) -> None:
    status = store.status()
    assert 0 < status.avail <= status.total

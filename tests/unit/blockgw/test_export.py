"""Export names against a datastore of four groups in two namespaces."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import pytest

from blockgw.export import Exports, ImageName, Selection, drive_order, select
from store.errors import InvalidName, NotFound
from store.format.manifest import CryptMode, FileInfo, Manifest
from store.names import BackupGroup, Namespace, Snapshot

if TYPE_CHECKING:
    from store.datastore.datastore import Datastore

ROOT, CUSTOMER = Namespace(), Namespace.parse("prod/customer-x")
OLD, NEW = "2026-01-02T03:04:05Z", "2026-02-02T03:04:05Z"
FILES = {
    (ROOT, f"vm/100/{OLD}"): ["drive-scsi0.img.fidx", "qemu-server.conf.blob"],
    (ROOT, f"vm/100/{NEW}"): [
        "drive-efidisk0.img.fidx",
        "drive-scsi0.img.fidx",
        "drive-scsi10.img.fidx",
        "drive-scsi2.img.fidx",
    ],
    (ROOT, f"host/web/{NEW}"): ["root.pxar.didx"],
    (CUSTOMER, f"vm/7/{OLD}"): ["disk.img.fidx"],
}
# What a manifest names and nobody has.
LOST = {f"vm/7/{OLD}": ["drive-virtio0.img.fidx"]}


class FakeDatastore:
    """What Exports asks a datastore for."""

    name = "fake"

    def list_namespaces(self, parent: Namespace = ROOT) -> list[Namespace]:
        return [space for space in (ROOT, CUSTOMER) if str(space).startswith(str(parent))]

    def list_groups(self, namespace: Namespace) -> list[BackupGroup]:
        return sorted({Snapshot.parse(text).group for space, text in FILES if space == namespace})

    def list_snapshots(self, namespace: Namespace, group: BackupGroup) -> list[Snapshot]:
        found = (Snapshot.parse(text) for space, text in FILES if space == namespace)
        return sorted(snapshot for snapshot in found if snapshot.group == group)

    def latest_snapshot(self, namespace: Namespace, group: BackupGroup) -> Snapshot:
        found = self.list_snapshots(namespace, group)
        if not found:
            raise NotFound(f"{group} has no snapshot")
        return found[-1]

    def resolve_snapshot(self, namespace: Namespace, text: str) -> Snapshot:
        parts = text.split("/")
        if len(parts) == 2 or parts[2] == "latest":
            return self.latest_snapshot(namespace, BackupGroup(parts[0], parts[1]))
        return Snapshot.parse(text)

    def list_files(self, namespace: Namespace, snapshot: Snapshot) -> list[str]:
        try:
            return FILES[namespace, str(snapshot)]
        except KeyError:
            raise NotFound(str(snapshot)) from None

    def read_manifest(self, namespace: Namespace, snapshot: Snapshot) -> Manifest:
        names = [*self.list_files(namespace, snapshot), *LOST.get(str(snapshot), [])]
        files = (FileInfo(name, CryptMode.NONE, 4096, bytes(32)) for name in names)
        return Manifest(snapshot, tuple(files), None, {})


DATASTORE = cast("Datastore", FakeDatastore())


def exports(text: str = "", namespace: Namespace = ROOT) -> Exports:
    """What `vaultway export TEXT` serves; all without a text."""
    selection = select(DATASTORE, namespace, text) if text else Selection(namespace)
    return Exports(DATASTORE, selection)


def texts(names: Sequence[ImageName]) -> list[str]:
    return [str(name) for name in names]


def test_all_names_newest_first_drives_in_a_persons_order() -> None:
    assert texts(exports().names()) == [
        f"vm/100/{NEW}/drive-scsi0.img",
        f"vm/100/{NEW}/drive-scsi2.img",
        f"vm/100/{NEW}/drive-scsi10.img",
        f"vm/100/{NEW}/drive-efidisk0.img",
        f"vm/100/{OLD}/drive-scsi0.img",
        f"ns/prod/ns/customer-x/vm/7/{OLD}/disk.img",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "vm/100",
            ["drive-scsi0.img", "drive-scsi2.img", "drive-scsi10.img", "drive-efidisk0.img"],
        ),
        (
            "vm/100/latest",
            ["drive-scsi0.img", "drive-scsi2.img", "drive-scsi10.img", "drive-efidisk0.img"],
        ),
        (f"vm/100/{OLD}", ["drive-scsi0.img"]),
        (f"vm/100/{NEW}/drive-scsi2.img", ["drive-scsi2.img"]),
        ("vm/100/drive-scsi2.img", ["drive-scsi2.img"]),
        ("vm/100/drive-scsi9.img", []),
        ("host/web", []),
    ],
)
def test_selection(text: str, expected: list[str]) -> None:
    assert [name.archive for name in exports(text).names()] == expected


@pytest.mark.parametrize("text", ["vm", "", "vm/100/a/b/c", f"vm/100/a/{NEW}"])
def test_selection_of_another_form(text: str) -> None:
    with pytest.raises(InvalidName):
        select(DATASTORE, ROOT, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"vm/100/{OLD}/drive-scsi0.img", f"vm/100/{OLD}/drive-scsi0.img"),
        ("vm/100/latest/drive-scsi0.img", f"vm/100/{NEW}/drive-scsi0.img"),
        ("/vm/100/latest/drive-scsi0.img", f"vm/100/{NEW}/drive-scsi0.img"),
        ("", f"vm/100/{NEW}/drive-scsi0.img"),
        ("drive-scsi2.img", f"vm/100/{NEW}/drive-scsi2.img"),
        (f"{OLD}/drive-scsi0.img", f"vm/100/{OLD}/drive-scsi0.img"),
        ("latest/drive-scsi2.img", f"vm/100/{NEW}/drive-scsi2.img"),
        (
            f"ns/prod/ns/customer-x/vm/7/{OLD}/disk.img",
            f"ns/prod/ns/customer-x/vm/7/{OLD}/disk.img",
        ),
        (
            "ns/prod/ns/customer-x/vm/7/latest/disk.img",
            f"ns/prod/ns/customer-x/vm/7/{OLD}/disk.img",
        ),
        ("prod/customer-x/vm/7/latest/disk.img", f"ns/prod/ns/customer-x/vm/7/{OLD}/disk.img"),
        ("disk.img", f"ns/prod/ns/customer-x/vm/7/{OLD}/disk.img"),
    ],
)
def test_names_clients_may_use(text: str, expected: str) -> None:
    assert str(exports().resolve(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "nothing.img",
        "cuddly/100/latest/drive-scsi0.img",
        "vm/101/latest/drive-scsi0.img",
        "vm/100/2026-01-01T00:00:00Z/drive-scsi0.img",
        "vm/100/latest/qemu-server.conf",
        "host/web/latest/root.pxar",
        "isk.img",
        "../../etc/passwd",
        "vm/100/latest/../drive-scsi0.img",
        "\0", "a" * 4000,
    ],
)  # fmt: skip
def test_unknown_names(text: str) -> None:
    with pytest.raises(NotFound):
        exports().resolve(text)


def test_end_of_several_names() -> None:
    with pytest.raises(InvalidName, match="2 images"):
        exports().resolve("drive-scsi0.img")


def test_a_snapshot_serves_itself_only() -> None:
    served = exports(f"vm/100/{OLD}")
    assert str(served.resolve("")) == f"vm/100/{OLD}/drive-scsi0.img"
    assert str(served.resolve("vm/100/latest/drive-scsi0.img")) == f"vm/100/{OLD}/drive-scsi0.img"
    for text in (f"vm/100/{NEW}/drive-scsi0.img", "disk.img", "drive-scsi2.img"):
        with pytest.raises(NotFound, match=OLD):
            served.resolve(text)


def test_namespace() -> None:
    served = exports("vm/7", CUSTOMER)
    assert str(served.default()) == f"ns/prod/ns/customer-x/vm/7/{OLD}/disk.img"
    assert served.resolve("vm/7/latest/disk.img") == served.default()
    assert texts(exports(namespace=CUSTOMER).names()) == texts([served.default()])


def test_no_image() -> None:
    for text in ("host/web", "vm/100/drive-scsi9.img"):
        with pytest.raises(NotFound, match="no disk image"):
            exports(text).default()


def test_a_lost_image_is_shown_where_its_snapshot_is_asked_for() -> None:
    """Opening it says that it is lost; among all images only those that are there count."""
    names = exports(f"vm/7/{OLD}", CUSTOMER).names()
    assert [name.archive for name in names] == ["disk.img", "drive-virtio0.img"]
    assert "virtio" not in "".join(texts(exports().names()))


@pytest.mark.expect_warnings
def test_list_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockgw.export.MAX_EXPORTS", 4)
    assert all(NEW in name for name in texts(exports().names()))


def test_drive_order_on_odd_names() -> None:
    names = ["a10", "a2", "2a", "", "10", "a", "drive-tpmstate0-backup.img", "drive-virtio1.img"]
    assert max(names, key=drive_order) == "drive-tpmstate0-backup.img"

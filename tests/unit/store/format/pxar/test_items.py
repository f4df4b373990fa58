import pytest

from store.format.pxar import items
from store.format.pxar.items import hash_name, name_is_valid

SENTENCES = {
    "PXAR_FORMAT_VERSION": "FORMAT_VERSION",
    "PXAR_PRELUDE": "PRELUDE",
    "PXAR_ENTRY": "ENTRY_V2",
    "PXAR_ENTRY_V1": "ENTRY",
    "PXAR_PAYLOAD": "PXAR_PAYLOAD",
    "PXAR_PAYLOAD_REF": "PXAR_PAYLOAD_REF",
    "PXAR_GOODBYE_TAIL_MARKER": "PXAR_GOODBYE_TAIL_MARKER",
    "PXAR_PAYLOAD_START_MARKER": "PXAR_PAYLOAD_START_MARKER",
    "PXAR_PAYLOAD_TAIL_MARKER": "PXAR_PAYLOAD_TAIL_MARKER",
}
TYPES = [
    name
    for name, value in vars(items).items()
    if name.startswith("PXAR_") and isinstance(value, int)
]


def sentence(name: str) -> bytes:
    if name == "PXAR_FORMAT_VERSION":
        return b"__PROXMOX_FORMAT_VERSION__"
    return f"__PROXMOX_FORMAT_{SENTENCES.get(name, name.removeprefix('PXAR_'))}__".encode()


@pytest.mark.parametrize("name", TYPES)
def test_item_types_are_hashes_of_sentences(name: str) -> None:
    assert getattr(items, name) == hash_name(sentence(name))


def test_all_item_types_are_there() -> None:
    assert len(TYPES) == 23


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("", "76614015f8d1bb6c"),
        ("61", "0c26e9067c2c7bcf"),
        (b"file1".hex(), "3d21c7e25c46b0a3"),
        (b"file.txt".hex(), "967764f630c3da14"),
        (b"README.md".hex(), "1e5f05df8b22aee9"),
        ("c3a974c3a9", "c579034b6b06363f"),
    ],
)
def test_name_hashes(name: str, value: str) -> None:
    assert hash_name(bytes.fromhex(name)) == int(value, 16)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0b", b"x" * 4097])
def test_names_that_are_refused(name: bytes) -> None:
    assert not name_is_valid(name)


@pytest.mark.parametrize("name", [b"a", b"...", b".a", b" ", b"\xff", b"a\nb", b"x" * 4096])
def test_names_that_are_taken(name: bytes) -> None:
    assert name_is_valid(name)

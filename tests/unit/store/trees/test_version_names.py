"""Versions are called by their time and their file's extension."""

import pytest

from store.trees.version_names import is_version_name, version_name


@pytest.mark.parametrize(
    ("file", "extension"),
    [
        (b"report.docx", b".docx"),
        (b"fstab", b""),
        (b".bashrc", b""),
        (b".config.json", b".json"),
        (b"a.tar.gz", b".tar.gz"),
        (b"v1.2.3", b".3"),
        (b"a.b c", b""),
        (b"a.", b""),
        (b"a.\xff", b""),
        (b"a." + b"x" * 17, b""),
        (b"a\n.txt", b".txt"),
    ],
)
def test_extensions(file: bytes, extension: bytes) -> None:
    name = version_name(1767323045, file)
    assert name == b"2026-01-02T03:04:05Z" + extension
    assert is_version_name(name)


def test_other_names() -> None:
    for name in (b"", b"etc", b"2026-01-02", b"2026-01-02T03:04:05Zx", b"2026-01-02T03:04:05Z/a"):
        assert not is_version_name(name)

"""The archive is unpacked by cpio itself."""

import subprocess
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from store.disks.microvm.cpio import directory, encode_cpio, regular


def test_cpio_unpacks_what_we_packed(tmp_path: Path) -> None:
    files = [
        directory("dev"),
        directory("modules"),
        regular("modules/odd", b"abc"),
        regular("modules/empty", b""),
        regular("init", bytes(range(256)) * 999, 0o755),
    ]
    subprocess.run(
        ["cpio", "-id", "--quiet"], input=encode_cpio(files), cwd=tmp_path, check=True,
        capture_output=True,
    )  # fmt: skip
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {
        path for path, _, _ in files
    }
    for path, mode, content in files:
        assert (tmp_path / path).stat().st_mode == mode
        assert (tmp_path / path).is_dir() or (tmp_path / path).read_bytes() == content


@given(st.lists(st.tuples(st.text("abc", min_size=1, max_size=9), st.binary(max_size=9))))
def test_every_member_begins_at_four_bytes(members: list[tuple[str, bytes]]) -> None:
    archive = encode_cpio([regular(path, content) for path, content in members])
    assert len(archive) % 4 == 0
    position, found = 0, []
    while True:
        assert archive[position : position + 6] == b"070701"
        fields = [int(archive[position + 6 + 8 * i : position + 14 + 8 * i], 16) for i in range(13)]
        size, name_size = fields[6], fields[11]
        name = archive[position + 110 : position + 110 + name_size - 1].decode()
        start = position + (110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            break
        found.append((name, archive[start : start + size]))
        position = start + (size + 3) // 4 * 4
    assert found == members

"""How much is read of what claims to be a chunk."""

from pathlib import Path

import pytest

from store.backends.chunks import MAX_CHUNK_BYTES
from store.backends.local.backend import LocalBackend
from store.backends.s3.backend import S3Backend
from store.backends.s3.config import S3Config
from store.errors import FormatError
from tests.fakes.scripted_server import ScriptedServer, answer

NAME = f".chunks/0123/0123{'0' * 60}"


def test_a_chunk_on_disk_that_is_larger_than_any(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(MAX_CHUNK_BYTES)
    backend = LocalBackend(str(tmp_path))
    assert len(backend.read(NAME)) == MAX_CHUNK_BYTES
    with path.open("r+b") as file:
        file.truncate(MAX_CHUNK_BYTES + 1)
    with pytest.raises(FormatError, match="more than any"):
        backend.read(NAME)
    path.rename(tmp_path / "blob")
    assert len(backend.read("blob")) == MAX_CHUNK_BYTES + 1
    backend.close()


def test_a_chunk_in_a_bucket_that_is_larger_than_any() -> None:
    with ScriptedServer([answer(size=MAX_CHUNK_BYTES + 1)]) as server:
        config = S3Config(
            "bucket", "store", endpoint=server.endpoint, path_style=True, region="x",
            access_key="a", secret_key="b", read_timeout_s=5,
        )  # fmt: skip
        backend = S3Backend(config)
        with pytest.raises(FormatError, match="more than any"):
            backend.read(NAME)
        backend.close()

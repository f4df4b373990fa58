"""What S3Backend does beyond the contract."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import mmap

import pytest

from store.backends.base import Backend
from store.backends.s3.backend import S3Backend, create_s3, open_s3
from store.backends.s3.config import S3Config
from store.backends.wrappers.read_only import ReadOnly
from store.errors import AlreadyExists, BackendError, NotFound, PermissionDenied
from tests.s3_server import S3Server

pytestmark = pytest.mark.needs("s3")


@pytest.fixture
def config(s3_server: S3Server) -> S3Config:
    """An empty bucket."""
    return s3_server.config(s3_server.new_bucket())


def put(server: S3Server, config: S3Config, key: str, body: bytes = b"x") -> None:
    server.boto3().put_object(Bucket=config.bucket, Key=key, Body=body)


def test_no_bucket(s3_server: S3Server) -> None:
    config = s3_server.config("nobody-made-it")
    with pytest.raises(NotFound, match=r"bucket nobody-made-it at http.* make it first"):
        create_s3(config)
    backend = open_s3(config)
    with pytest.raises(NotFound, match="bucket nobody-made-it at http"):
        backend.stat(".chunks")
    backend.close()


def test_no_datastore_and_then_one(config: S3Config) -> None:
    backend = open_s3(config)
    assert backend.stat(".chunks") is None
    backend.create()
    assert backend.stat(".chunks") is not None
    assert [entry.name for entry in backend.scan("")] == [".chunks"]
    with pytest.raises(AlreadyExists):
        create_s3(config)
    backend.close()


@pytest.mark.parametrize("step", ["put", "write"])
def test_a_creation_whose_answer_was_lost_is_repeated(
    config: S3Config, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it finds of its own is no other datastore."""
    backend = S3Backend(config)
    place = backend.client if step == "put" else backend
    call = getattr(place, step)

    def lose(*arguments: object, **options: object) -> None:
        monkeypatch.undo()
        call(*arguments, **options)
        raise BackendError("lost", retryable=True)

    monkeypatch.setattr(place, step, lose)
    with pytest.raises(BackendError, match="lost"):
        backend.create()
    backend.create()
    assert len(list(backend.walk(".chunks"))) == 1
    with pytest.raises(AlreadyExists):
        create_s3(config)
    backend.close()


def test_a_datastore_without_a_marker(s3_server: S3Server, config: S3Config) -> None:
    """A PBS takes its marker with it when the datastore is removed and its data are kept."""
    put(s3_server, config, "store/.cnt/vm/100/owner")
    backend = open_s3(config)
    assert isinstance(backend, S3Backend)
    assert backend.stat(".chunks") is not None
    assert backend.client.counters.requests == {"GET": 2}
    backend.stat(".chunks")
    assert backend.client.counters.requests == {"GET": 2}
    backend.close()


def test_what_is_beside_the_marker_is_over_before_it_is_closed(
    config: S3Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it sees the error, which ends what it began."""
    seen: list[object] = []

    @contextmanager
    def beside(backend: Backend) -> Iterator[None]:
        assert backend.scan("vm") == []
        try:
            yield
        except PermissionDenied as error:
            seen.append(str(error))
            assert backend.scan("vm") == []
            raise

    def refuse(_: S3Backend, name: str) -> bytes:
        seen.append(name)
        raise PermissionDenied("403")

    open_s3(config, beside=beside).close()
    assert seen == []
    monkeypatch.setattr(S3Backend, "read", refuse)
    close = S3Backend.close
    monkeypatch.setattr(S3Backend, "close", lambda made: (close(made), seen.append("closed")))
    with pytest.raises(PermissionDenied):
        open_s3(config, beside=beside)
    assert seen == [".in-use", "403", "closed"]


def test_one_datastore_does_not_see_another(s3_server: S3Server, config: S3Config) -> None:
    put(s3_server, config, "store2/.in-use", b'{"hostname":"pbs"}')
    put(s3_server, config, "store2/.cnt/vm/100/owner")
    create_s3(config)
    backend = open_s3(config)
    assert isinstance(backend, S3Backend)
    assert backend.scan("vm") == []
    backend.close()


def test_a_marker_that_is_none_keeps_us_from_writing(s3_server: S3Server, config: S3Config) -> None:
    put(s3_server, config, "store/.in-use", b"{")
    backend = open_s3(config)
    assert isinstance(backend, ReadOnly)
    with pytest.raises(
        PermissionDenied, match=r"in-use marker is damaged, a PBS may use it; .* --take-over"
    ):
        backend.write("a", (b"1",))
    with backend.lock("a", (), exclusive=True) as lock, backend.lock_store():
        lock.check()
    backend.close()


def test_keys_that_are_not_ours_to_show(s3_server: S3Server, config: S3Config) -> None:
    for key in (
        "store/.cnt/vm/100/",
        "store/.s3-client-test",
        "store/other/x",
        "store/.cnt/.chunks/a",
    ):
        put(s3_server, config, key)
    put(s3_server, config, "store/.cnt/vm/7/owner")
    backend = open_s3(config)
    assert [found.name for found in backend.walk("")] == ["vm/7/owner"]
    assert {entry.name for entry in backend.scan("")} == {"vm"}
    backend.close()


def test_a_large_object_is_mapped_and_a_small_one_read(config: S3Config) -> None:
    backend = open_s3(config)
    backend.write("vm/1/t/disk.fidx", (bytes(2 << 20),))
    backend.write("vm/1/t/small.fidx", (b"1",))
    assert isinstance(backend.map("vm/1/t/disk.fidx"), mmap)
    assert backend.map("vm/1/t/small.fidx") == b"1"
    backend.close()


def test_a_listing_of_more_than_a_page(config: S3Config) -> None:
    backend = S3Backend(config)
    names = [f".chunks/{number:04x}/{number:064x}" for number in range(12)]
    for name in names:
        backend.write(name, (b"1",))
    pages = list(backend.client.list("store/.chunks/", page_size=5))
    assert [len(page.objects) for page in pages] == [5, 5, 2]
    assert [found.key for page in pages for found in page.objects] == [f"store/{n}" for n in names]
    after = names[7].removeprefix(".chunks/")
    assert [f".chunks/{found.name}" for found in backend.walk(".chunks", after)] == names[8:]
    backend.remove_tree(".chunks")
    assert list(backend.walk(".chunks")) == []
    backend.close()


def test_a_group_is_learnt_from_one_listing(config: S3Config) -> None:
    backend = S3Backend(config)
    for day in range(5):
        backend.write(f"vm/1/{day}/disk.fidx", (b"1",))
        backend.write(f"vm/1/{day}/index.json.blob", (b"1",))
    backend.write("vm/10/1/index.json.blob", (b"1",))
    before = backend.client.counters.requests["GET"]
    found = backend.subdirectories("vm/1", "index.json.blob")
    assert sorted(one.name for one in found if one.is_marked) == ["0", "1", "2", "3", "4"]
    assert backend.client.counters.requests["GET"] - before == 1
    backend.close()


def test_a_temporary_file_can_be_committed_again(
    config: S3Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = S3Backend(config)
    file = backend.create_temporary("vm/1/t/x.didx", "vm/1/t/x.tmp_didx")
    file.write(b"whole")
    with monkeypatch.context() as broken:

        def fail(*_: object, **__: object) -> None:
            raise BackendError("503", retryable=True)

        broken.setattr(backend.client, "put", fail)
        with pytest.raises(BackendError):
            file.commit()
    assert backend.stat("vm/1/t/x.didx") is None
    file.commit()
    assert backend.read("vm/1/t/x.didx") == b"whole"
    backend.close()


def test_without_conditional_puts(s3_server: S3Server) -> None:
    config = s3_server.config(s3_server.new_bucket(), conditional_put=False)
    backend = S3Backend(config)
    backend.create()
    assert backend.mkdir("ns/a")
    assert not backend.mkdir("ns/a")
    backend.write("vm/1/owner", (b"1",), exclusive=True)
    with pytest.raises(AlreadyExists, match="vm/1/owner"):
        backend.write("vm/1/owner", (b"2",), exclusive=True)
    backend.close()


def test_the_marker_we_make(s3_server: S3Server, config: S3Config) -> None:
    create_s3(config)
    found = s3_server.boto3().get_object(Bucket=config.bucket, Key="store/.in-use")["Body"].read()
    assert json.loads(found)["hostname"].startswith("vaultway@")
    backend = open_s3(config)
    assert isinstance(backend, S3Backend)
    backend.close()

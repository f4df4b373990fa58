"""From settings to an open datastore: exactly the wrappers that were asked for, in their order.

The storage behind s3:// and the wrappers are stand-ins, which say what they were given.
"""

import os
import stat
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from store.backends.base import Backend, ObjectStat
from store.backends.cache import backend as cache
from store.backends.local import nfs
from store.backends.local.backend import LocalBackend
from store.backends.memory import MemoryBackend
from store.backends.mirror import backend as mirror
from store.backends.patience import current
from store.backends.s3 import backend as s3_module
from store.backends.s3.backend import Wrap
from store.backends.s3.config import S3Config
from store.backends.wrappers import limit, retry
from store.backends.wrappers.read_only import ReadOnly
from store.backends.wrappers.wrapper import Wrapper
from store.datastore.memory import DEFAULT_MEMORY
from store.errors import BackendError, InvalidName, NotFound, PermissionDenied
from store.names import Namespace
from store.repositories import repository
from store.repositories.repository import (
    OPEN_SITE_S,
    Beside,
    create_datastore,
    open_backend,
    open_datastore,
)
from store.repositories.secret_sources import check_private
from store.repositories.settings import RepositorySettings
from tests.fakes.datastores import bare_backend, nfs_backend

BUCKET = "s3://bucket/store"


class FakeS3(MemoryBackend):
    """A bucket that knows how it was opened, and whether it was closed."""

    is_object_store = True
    opened: list["FakeS3"]

    def __init__(self, config: S3Config) -> None:
        super().__init__()
        self.config = config
        self.is_closed = False
        self.opened.append(self)
        if config.bucket == "broken":
            raise BackendError("no answer")

    def stat(self, name: str) -> ObjectStat | None:
        return ObjectStat(0, 0, 0, is_directory=True)

    def close(self) -> None:
        self.is_closed = True

    def __repr__(self) -> str:
        return self.config.bucket


def open_s3(config: S3Config, wrap: Wrap, beside: Beside) -> Backend:
    backend = wrap(FakeS3(config))
    with beside(backend):
        return backend


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> list[FakeS3]:
    """Storages and wrappers that show how they were made; returns the buckets that were opened."""

    class Named(Wrapper):
        def __init__(self, inner: Backend, *arguments: object, **options: object) -> None:
            super().__init__(inner)
            self.given = [str(a) for a in arguments]
            self.given += [f"{k}={v}" for k, v in options.items() if v is not None]

        def __repr__(self) -> str:
            return f"{type(self).__name__}({', '.join([repr(self.inner), *self.given])})"

    class Mirror(Wrapper):
        def __init__(
            self, primary: Backend, others: Sequence[Backend], *, retry_for_s: float
        ) -> None:
            super().__init__(primary)
            self.others = others

        def __repr__(self) -> str:
            return f"Mirror({self.inner!r}, {self.others!r})"

    FakeS3.opened = []
    created: list[Any] = FakeS3.opened
    monkeypatch.setattr(s3_module, "open_s3", open_s3)
    monkeypatch.setattr(s3_module, "create_s3", lambda config, wrap: created.append(config))
    for module, name in ((retry, "Retry"), (limit, "Limit"), (cache, "Cache")):
        monkeypatch.setattr(module, name, type(name, (Named,), {}))
    monkeypatch.setattr(mirror, "Mirror", Mirror)
    return FakeS3.opened


def opened(url: str, **settings: Any) -> str:
    return repr(open_backend(RepositorySettings(url, **settings)))


def test_a_plain_directory_is_just_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare_backend(tmp_path / "store").close()
    monkeypatch.chdir(tmp_path)
    place = str(tmp_path / "store")
    for written in (place, f"file://{place}", "./store", f"{place}/../store"):
        with open_datastore(written) as datastore:
            assert type(datastore.backend) is LocalBackend
            assert datastore.name == "store"
            assert datastore.memory_bytes == DEFAULT_MEMORY
            assert datastore.list_groups() == []
    with open_datastore(RepositorySettings(place, memory_bytes=1 << 20)) as datastore:
        assert datastore.memory_bytes == 1 << 20


@pytest.mark.parametrize(
    "written", ["", "file://relative", "root@pam@host:store", "host:store", "store", "ftp://x/y"]
)
def test_what_is_not_a_place(written: str) -> None:
    with pytest.raises(InvalidName):
        open_datastore(written)


def test_no_datastore(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        open_datastore(str(tmp_path / "none"))
    with pytest.raises(NotFound, match="not a datastore"):
        open_datastore(str(tmp_path))
    with pytest.raises(InvalidName, match="name too long"):
        open_datastore(f"/{'x' * 5000}")


def test_a_bucket_is_retried(s3: list[FakeS3]) -> None:
    assert opened(BUCKET) == "Retry(bucket, retry_for_s=300.0, open_for_s=30.0)"
    assert opened(BUCKET, retry_for_s=5.0) == "Retry(bucket, retry_for_s=5.0)"
    assert opened(BUCKET, retry_for_s=0.0) == "bucket"
    assert s3[0].config == S3Config("bucket", "store")
    with open_datastore(BUCKET) as datastore:
        assert datastore.name == "store"
    assert s3[-1].is_closed


def test_what_opens_a_bucket_may_look_into_it_meanwhile(s3: list[FakeS3], tmp_path: Path) -> None:
    """Through what repeats calls, and before the cache. Of mirrors nobody knows which to ask."""
    seen: list[str] = []

    def beside(backend: Backend) -> AbstractContextManager[None]:
        seen.append(repr(backend))
        return nullcontext()

    open_datastore(RepositorySettings(BUCKET, cache=Path("/fast")), beside).close()
    assert seen == ["Retry(bucket, retry_for_s=300.0, open_for_s=30.0)"]
    bare_backend(tmp_path / "store").close()
    local = RepositorySettings(str(tmp_path / "store"))
    open_datastore(local, beside).close()
    open_datastore(RepositorySettings(BUCKET, mirrors=(local,)), beside).close()
    assert len(seen) == 1


def test_everything_in_its_order(s3: list[FakeS3], tmp_path: Path) -> None:
    bare_backend(tmp_path).close()
    text = opened(
        BUCKET,
        endpoint="https://x",
        read_bytes_s=1000,
        write_bytes_s=0,
        burst_bytes=50,
        cache=Path("/fast"),
        cache_bytes=10,
        mirrors=(
            RepositorySettings("s3://second/store", requests_s=7, cache_bytes=9),
            RepositorySettings(str(tmp_path)),
        ),
    )
    patience = "retry_for_s=300.0, open_for_s=30.0"
    first = f"Retry(Limit(bucket, read_bytes_s=1000, burst_bytes=50), {patience})"
    second = f"Retry(Limit(second, requests_s=7), {patience})"
    local = f"LocalBackend({str(tmp_path)!r})"
    assert (
        text
        == f"Cache(Mirror({first}, [{second}, {local}]), /fast, 10, identity=https://x {BUCKET})"
    )


@pytest.mark.parametrize(("options", "writes"), [(("nolock",), False), (("vers=4.2",), True)])
def test_nfs_without_locks_is_read_only(
    options: tuple[str, ...], writes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nfs, "open_directory", lambda path, **_: nfs_backend(Path(path), *options))
    with open_datastore(str(tmp_path)) as datastore:
        assert datastore.list_groups() == []
        if writes:
            datastore.create_namespace(Namespace(("a",)))
        else:
            with pytest.raises(PermissionDenied, match="mounted with nolock"):
                datastore.create_namespace(Namespace(("a",)))


def test_a_directory_with_options(s3: list[FakeS3], tmp_path: Path) -> None:
    bare_backend(tmp_path).close()
    text = opened(str(tmp_path), retry_for_s=60.0, cache=Path("/fast"))
    retry = f"Retry({LocalBackend(str(tmp_path))!r}, retry_for_s=60.0)"
    assert text == f"Cache({retry}, /fast, 10737418240, identity={tmp_path})"


def test_what_was_opened_is_closed_when_the_rest_fails(s3: list[FakeS3], tmp_path: Path) -> None:
    broken = RepositorySettings("s3://broken/store")
    with pytest.raises(BackendError):
        open_datastore(RepositorySettings(BUCKET, mirrors=(broken,)))
    assert s3[0].is_closed


@pytest.mark.expect_warnings
@pytest.mark.parametrize("away", ["primary", "mirror"])
def test_a_mirror_is_opened_while_one_site_is_away(
    tmp_path: Path, away: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk is not mounted; when it is, it is used."""
    here, absent = tmp_path / "here", tmp_path / "absent"
    bare_backend(here).close()
    absent.mkdir()
    sites = [absent, here] if away == "primary" else [here, absent]
    mirrors = (RepositorySettings(str(sites[1])),)
    with open_datastore(RepositorySettings(str(sites[0]), mirrors=mirrors)) as datastore:
        [record] = caplog.records
        assert str(absent) in record.getMessage()
        assert datastore.list_groups() == []
        if away == "primary":
            with pytest.raises(BackendError, match=r"nothing can be written.*absent"):
                datastore.backend.lock_store()
            bare_backend(absent).close()
            datastore.backend.write("owner", (b"x",))
            assert (absent / "owner").exists()


def test_a_mirror_is_not_opened_when_no_site_is_there(tmp_path: Path) -> None:
    mirrors = (RepositorySettings(str(tmp_path / "two")),)
    with pytest.raises(NotFound, match="one does not exist"):
        open_datastore(RepositorySettings(str(tmp_path / "one"), mirrors=mirrors))


@pytest.mark.expect_warnings
def test_a_bucket_is_given_up_soon_where_there_are_mirrors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its in-use marker is read when it is back, before anything is written."""
    bare_backend(tmp_path).close()
    trouble, given = [True], []

    def open_s3(config: S3Config, *_: object) -> Backend:
        given.append(current().seconds)
        if trouble:
            raise BackendError("no answer", retryable=True)
        return ReadOnly(FakeS3(config), "held by a PBS")

    FakeS3.opened = []
    monkeypatch.setattr(s3_module, "open_s3", open_s3)
    settings = RepositorySettings(BUCKET, mirrors=(RepositorySettings(str(tmp_path)),))
    with open_datastore(settings) as datastore:
        assert given == [OPEN_SITE_S]
        assert datastore.backend.is_object_store
        trouble.clear()
        with pytest.raises(PermissionDenied, match="held by a PBS"):
            datastore.backend.write("owner", (b"",))
    assert FakeS3.opened[0].is_closed


def test_create_in_a_bucket(s3: list[Any]) -> None:
    create_datastore(RepositorySettings(BUCKET, region="nl", cache_bytes=5))
    assert s3 == [S3Config("bucket", "store", region="nl")]


def test_create_in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.backends.local.create.CHUNK_DIRECTORIES", 2)
    create_datastore(str(tmp_path / "store"))
    with repository.open_datastore(str(tmp_path / "store")) as datastore:
        assert datastore.list_groups() == []


class TestSecrets:
    """Where the secret key comes from."""

    def config(self, s3: list[FakeS3], **settings: Any) -> tuple[str | None, ...]:
        open_datastore(RepositorySettings(BUCKET, **settings)).close()
        config = s3[-1].config
        return config.access_key, config.secret_key, config.session_token

    def test_file_and_command(self, s3: list[FakeS3], tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("sé cret\r\nmore\n")
        (tmp_path / "secret").chmod(0o600)
        found = self.config(s3, access_key="a", secret_key_file=tmp_path / "secret")
        assert found == ("a", "sé cret", None)
        found = self.config(s3, access_key="a", secret_key_cmd="printf 's t\\nmore'")
        assert found == ("a", "s t", None)

    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"secret_key_file": Path("/none")}, NotFound, "secret-key-file /none: No such file"),
            ({"secret_key_file": Path("/dev/null")}, InvalidName, "gave nothing"),
            ({"secret_key_cmd": "false"}, PermissionDenied, "secret-key-cmd false: exit code 1"),
            (
                {"secret_key_cmd": "no-such-program x"},
                NotFound,
                "secret-key-cmd no-such-program x: No such",
            ),
            ({"secret_key_cmd": "'"}, InvalidName, "No closing quotation"),
            ({"secret_key_cmd": "printf '\\377'"}, InvalidName, "not UTF-8"),
        ],
    )
    def test_none(
        self, s3: list[FakeS3], settings: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            self.config(s3, access_key="a", **settings)

    @pytest.mark.parametrize("mode", [0o620, 0o602, 0o640, 0o604, 0o666])
    def test_a_file_that_others_can_read_or_write(
        self, s3: list[FakeS3], tmp_path: Path, mode: int
    ) -> None:
        (tmp_path / "secret").write_text("canary")
        (tmp_path / "secret").chmod(mode)
        verb = "write" if mode & 0o022 else "read"
        with pytest.raises(PermissionDenied, match=f"secret-key-file .*others can {verb} it"):
            self.config(s3, access_key="a", secret_key_file=tmp_path / "secret")

    @pytest.mark.parametrize(
        ("owner", "mode", "is_fine"),
        [(0, 0o444, True), (0, 0o644, False), (7, 0o444, False), (7, 0o400, True), (7, 0, True)],
    )
    def test_a_containers_secret_is_roots(self, owner: int, mode: int, is_fine: bool) -> None:
        status = os.stat_result((stat.S_IFREG | mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))
        with nullcontext() if is_fine else pytest.raises(PermissionDenied, match="others can read"):
            check_private(status, "the file")

    def test_the_environments_keys_become_settings(
        self, s3: list[FakeS3], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So that a process without them opens the same; as boto3 takes them: not for a profile."""
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
        assert self.config(s3) == (None, None, None)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
        assert self.config(s3) == ("id", "secret", "token")
        assert self.config(s3, profile="p") == (None, None, None)
        assert self.config(s3, access_key="a", secret_key="s") == ("a", "s", None)

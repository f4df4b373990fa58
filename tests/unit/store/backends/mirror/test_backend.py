"""A mirror: which site is asked, what happens while one is away, and how copies are repaired."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.backends.chunks import write_chunk
from store.backends.memory import MemoryBackend
from store.backends.mirror.backend import Mirror
from store.backends.mirror.sites import PATIENCE_S, PROBE_S
from store.backends.wrappers.retry import Retry
from store.datastore.chunk_cache import ChunkCache, ChunkReader
from store.datastore.chunk_store import ChunkStore
from store.errors import (
    BackendError,
    ChunkMissing,
    FormatError,
    IntegrityError,
    NotFound,
)
from store.format.blob import encode_blob
from store.format.crypt import CryptConfig, chunk_digest
from store.names import Digest
from tests.fakes.faults import Died, FaultyBackend
from tests.fakes.sites import Clock, RemoteSite

KEY = CryptConfig(bytes(range(32)))
PLAIN = b"the same words again, " * 40
RANDOM = bytes(range(256)) * 2


def make_chunk(plain: bytes = PLAIN, key: CryptConfig | None = None) -> tuple[Digest, bytes]:
    return chunk_digest(plain, key), encode_blob(plain, key, iv=b"i" * 16 if key else None)


DIGEST, RAW = make_chunk()
NAME = ChunkStore.name(DIGEST)
BAD = RAW[:-1] + bytes([RAW[-1] ^ 1])


class Pair:
    """Madrid, the primary, and Amsterdam."""

    def __init__(self, *, nearest: bool = False) -> None:
        self.clock = Clock()
        self.madrid = RemoteSite("madrid", self.clock)
        self.amsterdam = RemoteSite("amsterdam", self.clock)
        self.mirror = Mirror(
            self.madrid, [self.amsterdam], nearest=nearest, clock=self.clock, run=self.run
        )

    def run(self, probe: Callable[[], None]) -> None:
        """At once, instead of in the background."""
        probe()

    def put(self, madrid: bytes | None, amsterdam: bytes | None, name: str = NAME) -> None:
        for site, raw in ((self.madrid, madrid), (self.amsterdam, amsterdam)):
            if raw is not None:
                write_chunk(site.memory, name, (raw,))

    def names(self, site: RemoteSite) -> dict[str, bytes]:
        """All that is beside the chunk, by the end of its name."""
        folder = NAME.rpartition("/")[0]
        found = {entry.name.removeprefix(DIGEST.hex()): entry for entry in site.memory.scan(folder)}
        return {end: site.memory.read(f"{folder}/{found[end].name}") for end in found}


@pytest.fixture
def pair() -> Pair:
    return Pair()


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


# Which site is asked


def asked(pair: Pair, reads: int) -> str:
    """The sites that answered the next reads, as their first letters."""
    answers = ""
    for _ in range(reads):
        before = len(pair.madrid.reads)
        pair.mirror.read(NAME)
        answers += "m" if len(pair.madrid.reads) > before else "a"
    return answers


def test_chunks_come_from_the_nearest_site_once_all_are_measured() -> None:
    pair = Pair(nearest=True)
    pair.madrid.delay_s, pair.amsterdam.delay_s = 0.2, 0.01
    pair.put(RAW, RAW)
    assert asked(pair, 5) == "maaaa"


def test_the_far_site_is_measured_now_and_then_and_wins_when_it_has_become_near() -> None:
    pair = Pair(nearest=True)
    pair.madrid.delay_s, pair.amsterdam.delay_s = 0.01, 0.2
    pair.put(RAW, RAW)
    assert asked(pair, 4) == "mamm"
    pair.clock.now += PROBE_S
    assert asked(pair, 1) == "m"  # it was not asked for as long: it is measured, too
    assert asked(pair, 3) == "amm"
    pair.madrid.delay_s = 1.0  # slow from now on
    assert asked(pair, 3) == "maa"


def test_a_configured_order_is_kept_whatever_it_costs(pair: Pair) -> None:
    pair.madrid.delay_s = 9.0
    pair.put(RAW, RAW)
    assert asked(pair, 20) == "m" * 20


@pytest.mark.expect_warnings
def test_a_site_that_is_down_costs_one_call_in_a_while(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pair.put(RAW, RAW)
    pair.madrid.go_down()
    for _ in range(20):
        assert pair.mirror.read(NAME) == RAW
    assert len(pair.madrid.reads) == 1
    pair.clock.now += PROBE_S
    for _ in range(20):
        assert pair.mirror.read(NAME) == RAW
    assert len(pair.madrid.reads) == 2
    pair.madrid.come_back()
    pair.clock.now += PROBE_S
    assert asked(pair, 2) == "mm"
    assert len(messages(caplog)) == 1
    assert "madrid can't be reached" in messages(caplog)[0]
    assert messages(caplog, logging.INFO) == ["madrid can be reached again"]


def test_metadata_is_the_primarys_alone(pair: Pair) -> None:
    pair.mirror.write("owner", (b"root@pam\n",))
    assert pair.mirror.read("owner") == b"root@pam\n"
    assert pair.amsterdam.memory.stat("owner") is None
    pair.amsterdam.memory.write("stale", (b"",))
    assert pair.mirror.stat("stale") is None
    assert [entry.name for entry in pair.mirror.scan("") if not entry.is_directory] == [
        ".lock",
        "owner",
    ]
    assert pair.amsterdam.reads == []


def retried(site: RemoteSite) -> Retry:
    """As `open_backend` makes it: tried for five minutes, on the site's clock."""

    def wait(_: threading.Event, seconds: float) -> bool:
        site.clock.now += seconds
        return False

    return Retry(site, clock=site.clock, wait=wait)


@pytest.mark.expect_warnings
def test_a_near_site_that_dies_delays_one_read_by_seconds_and_no_other() -> None:
    pair, probes = Pair(), list[Callable[[], None]]()
    pair.put(RAW, RAW)
    mirror = Mirror(
        retried(pair.madrid), [pair.amsterdam], clock=pair.clock, run=probes.append, nearest=True
    )
    for _ in range(3):
        mirror.read(NAME)
    pair.amsterdam.delay_s = 0.02
    pair.madrid.go_down()
    took = []
    for _ in range(60):
        began = pair.clock.now
        assert mirror.read(NAME) == RAW
        took.append(pair.clock.now - began)
        pair.clock.now += 2
    assert sum(seconds > 1 for seconds in took) <= 1
    assert max(took) < PATIENCE_S + 1
    assert len(probes) >= 3  # nobody waited for them
    pair.madrid.come_back()
    probes.pop()()
    pair.amsterdam.go_down()
    assert mirror.read(NAME) == RAW


@pytest.mark.expect_warnings
def test_a_reader_asks_all_sites_again_until_one_is_back() -> None:
    pair, waited = Pair(), list[float]()
    pair.put(RAW, RAW)

    def wait(_: threading.Event, seconds: float) -> bool:
        waited.append(seconds)
        pair.clock.now += seconds
        if len(waited) == 5:
            pair.amsterdam.come_back()
        return False

    mirror = Mirror(
        pair.madrid, [pair.amsterdam], retry_for_s=300, clock=pair.clock, wait=wait, run=pair.run
    )
    for ask in (lambda: mirror.read(NAME), lambda: mirror.stat("")):
        pair.madrid.go_down()
        pair.amsterdam.go_down()
        waited.clear()
        assert ask()
        assert len(waited) == 5


@pytest.mark.expect_warnings
def test_no_repair_waits_for_a_site_that_is_down() -> None:
    pair = Pair()
    third = RemoteSite("third", pair.clock)
    pair.put(None, RAW)
    mirror = Mirror(
        pair.madrid, [pair.amsterdam, third], nearest=False, clock=pair.clock, run=pair.run
    )
    third.go_down()
    pair.amsterdam.go_down()
    with pytest.raises(BackendError):
        mirror.read(NAME)
    pair.amsterdam.come_back()
    calls = len(third.reads)
    assert mirror.read(NAME) == RAW
    assert pair.madrid.memory.read(NAME) == RAW
    assert len(third.reads) == calls


# While the primary is away


@pytest.mark.expect_warnings
def test_metadata_is_read_elsewhere_while_the_primary_is_down(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    for site in (pair.madrid, pair.amsterdam):
        site.memory.mkdir("host/web01")
        site.memory.write("host/web01/owner", (site.location.encode(),))
    pair.madrid.go_down()
    for _ in range(3):
        assert pair.mirror.read("host/web01/owner") == b"amsterdam"
        assert pair.mirror.stat("host") is not None
        assert len(pair.mirror.scan("host")) == 1
        assert [found.name for found in pair.mirror.walk("host")] == ["web01/owner"]
        with pair.mirror.lock("host/web01", (), exclusive=False):
            pass
    assert len(messages(caplog)) == 1
    pair.madrid.come_back()
    pair.clock.now += PROBE_S
    assert pair.mirror.read("host/web01/owner") == b"madrid"


@pytest.mark.expect_warnings
def test_a_listing_begins_elsewhere_when_the_primary_has_just_gone_down(pair: Pair) -> None:
    for site in (pair.madrid, pair.amsterdam):
        site.memory.mkdir("host/web01")
        site.memory.write("host/web01/owner", (b"",))
    pair.madrid.go_down()
    assert [found.name for found in pair.mirror.walk("host")] == ["web01/owner"]


@pytest.mark.expect_warnings
def test_writing_fails_clearly_while_the_primary_is_down(pair: Pair) -> None:
    pair.madrid.go_down()
    assert pair.mirror.stat("") is not None
    for take in (
        lambda: pair.mirror.lock_store(),
        lambda: pair.mirror.lock("", (), exclusive=True),
    ):
        with pytest.raises(BackendError, match="nothing can be written: madrid: connection"):
            take()
    with pytest.raises(BackendError, match="madrid"):
        pair.mirror.write("owner", (b"",))
    assert pair.amsterdam.memory.stat("owner") is None


@pytest.mark.expect_warnings
def test_who_writes_never_decides_by_another_sites_metadata(pair: Pair) -> None:
    pair.put(RAW, RAW)
    pair.amsterdam.memory.write("manifest", (b"old",))
    lock = pair.mirror.lock_store()
    pair.madrid.go_down()
    for ask in (
        lambda: pair.mirror.read("manifest"),
        lambda: pair.mirror.stat("manifest"),
        lambda: list(pair.mirror.walk(".chunks")),
    ):
        with pytest.raises(BackendError, match="madrid"):
            ask()
    assert pair.mirror.read(NAME) == RAW  # a chunk is what its name says wherever it is
    lock.release()
    lock.release()
    assert pair.mirror.read("manifest") == b"old"


def test_an_error_of_the_primary_that_lasts_is_no_reason_to_look_elsewhere(pair: Pair) -> None:
    pair.amsterdam.memory.write("owner", (b"other",))
    pair.madrid.trouble = BackendError("madrid: input/output error")
    with pytest.raises(BackendError, match="input/output"):
        pair.mirror.read("owner")


# Repair


@pytest.mark.expect_warnings
@pytest.mark.parametrize(
    ("there", "words"),
    [
        (BAD, "CRC mismatch"),
        (b"nonsense" * 9, "not a data blob"),
        (RAW[:10], "shorter"),
        (b"", "missing"),
        (None, "missing"),
    ],
)
def test_a_bad_copy_of_the_primary_is_set_aside_and_replaced(
    pair: Pair, caplog: pytest.LogCaptureFixture, there: bytes | None, words: str
) -> None:
    pair.put(there, RAW)
    for _ in range(2):
        assert pair.mirror.read(NAME) == RAW
    aside = {} if there is None else {".0.bad": there}
    assert pair.names(pair.madrid) == {"": RAW, **aside}
    assert pair.names(pair.amsterdam) == {"": RAW}
    [message] = messages(caplog)
    for word in (str(DIGEST), "madrid", words, "replaced by the copy of another site"):
        assert word in message
    assert (".0.bad" in message) == bool(aside)


def test_a_chunk_that_another_site_lacks_is_brought_there_quietly(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    mirror = Mirror(pair.madrid, [pair.amsterdam], clock=pair.clock)
    pair.put(RAW, None)
    mirror.read(NAME)
    assert mirror.read(NAME) == RAW
    assert pair.names(pair.amsterdam) == {"": RAW}
    [message] = messages(caplog, logging.INFO)
    assert "amsterdam: missing; replaced" in message


@pytest.mark.expect_warnings
def test_a_site_that_was_not_asked_is_repaired_as_well() -> None:
    sites = [RemoteSite(name) for name in ("one", "two", "three")]
    for site, raw in zip(sites, (None, RAW, BAD), strict=True):
        if raw is not None:
            write_chunk(site.memory, NAME, (raw,))
    assert Mirror(sites[0], sites[1:], nearest=False).read(NAME) == RAW
    assert [site.memory.read(NAME) for site in sites] == [RAW] * 3
    assert sites[2].memory.read(f"{NAME}.0.bad") == BAD


@pytest.mark.expect_warnings
def test_another_encoding_of_the_same_content_is_no_damage() -> None:
    sites = [RemoteSite(name) for name in ("one", "two", "three")]
    other = encode_blob(PLAIN, compress=False)
    for site, raw in zip(sites, (BAD, RAW, other), strict=True):
        write_chunk(site.memory, NAME, (raw,))
    assert Mirror(sites[0], sites[1:], nearest=False).read(NAME) == RAW
    assert sites[2].memory.read(NAME) == other


def test_what_no_site_has_is_not_found(pair: Pair) -> None:
    with pytest.raises(NotFound, match=str(DIGEST)):
        pair.mirror.read(NAME)
    pair.put(BAD, None)
    with pytest.raises(IntegrityError):
        pair.mirror.read(NAME)
    assert pair.names(pair.madrid) == {"": BAD}


@pytest.mark.expect_warnings
def test_a_chunk_is_not_called_missing_while_a_site_is_away(pair: Pair) -> None:
    pair.amsterdam.go_down()
    with pytest.raises(BackendError, match="amsterdam"):
        pair.mirror.read(NAME)


@pytest.mark.expect_warnings
def test_a_copy_that_can_not_be_read_is_left_alone(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """A fetch that fails says nothing about the copy (PBS 4.0.17 renamed good ones for it)."""
    pair.put(RAW, RAW)
    pair.madrid.trouble = BackendError("madrid: input/output error")
    for _ in range(3):
        assert pair.mirror.read(NAME) == RAW
    assert pair.names(pair.madrid) == {"": RAW}
    assert len(messages(caplog)) == 1


@pytest.mark.expect_warnings
def test_no_repair_on_a_read_only_site(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    pair.put(BAD, RAW)
    pair.madrid.is_read_only = True
    for _ in range(3):
        assert pair.mirror.read(NAME) == RAW
    assert pair.names(pair.madrid) == {"": BAD}
    assert len(messages(caplog)) == 1
    assert "not repaired: madrid: read-only" in messages(caplog)[0]


@pytest.mark.expect_warnings
def test_a_repair_that_fails_does_not_fail_the_read(pair: Pair) -> None:
    pair.put(BAD, RAW)
    calls = 0
    for fail_at in range(20):
        madrid = FaultyBackend(pair.madrid.memory, fail_at)
        mirror = Mirror(madrid, [pair.amsterdam], nearest=False)  # type: ignore[arg-type]
        assert mirror.read(NAME) == RAW
        calls = max(calls, madrid.calls)
    assert calls >= 5
    assert pair.madrid.memory.read(NAME) == RAW


@pytest.mark.expect_warnings
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_step_of_a_repair(after: bool) -> None:
    for fail_at in range(20):
        pair = Pair()
        pair.put(BAD, RAW)
        dying = FaultyBackend(pair.madrid.memory, fail_at, kill=True, after=after)
        with suppress(Died):
            Mirror(dying, [pair.amsterdam], nearest=False).read(NAME)  # type: ignore[arg-type]
        found = pair.names(pair.madrid)
        assert found.get("", RAW) in (RAW, BAD)
        assert pair.mirror.read(NAME) == RAW  # another process, later
        found = pair.names(pair.madrid)
        assert found.pop("") == RAW
        assert set(found.values()) == {BAD}


@pytest.mark.expect_warnings
def test_a_copy_that_somebody_else_repaired_comes_back(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process repairs just before we rename what we found bad."""
    pair.put(BAD, RAW)
    rename = pair.madrid.memory.rename

    def late(old: str, new: str) -> None:
        monkeypatch.setattr(pair.madrid.memory, "rename", rename)
        Mirror(pair.madrid, [pair.amsterdam], nearest=False).read(NAME)
        rename(old, new)

    monkeypatch.setattr(pair.madrid.memory, "rename", late)
    assert pair.mirror.read(NAME) == RAW
    assert pair.madrid.memory.read(NAME) == RAW


@pytest.mark.expect_warnings
def test_many_readers_repair_once(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    pair.put(BAD, RAW)
    got: list[bytes] = []
    begun = threading.Barrier(8)

    def read() -> None:
        begun.wait()
        got.append(pair.mirror.read(NAME))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [RAW] * 8
    assert pair.names(pair.madrid) == {"": RAW, ".0.bad": BAD}
    assert len(messages(caplog)) == 1


def test_nothing_is_written_where_there_is_no_datastore(pair: Pair) -> None:
    """The mount point of a disk that is not mounted."""
    empty = MemoryBackend("empty")
    pair.put(RAW, None)
    mirror = Mirror(pair.madrid, [empty])
    mirror.read(NAME)
    assert mirror.read(NAME) == RAW
    assert empty.scan("") == []


@pytest.mark.expect_warnings
def test_a_wrong_copy_does_not_fill_a_gap() -> None:
    """A plain chunk with another's content passes its CRC and is still no repair."""
    pair = Pair()
    pair.put(None, encode_blob(b"other words"))
    pair.mirror.read(NAME)
    assert pair.names(pair.madrid) == {}


def test_create_makes_every_site() -> None:
    sites = [MemoryBackend(name) for name in ("one", "two", "three")]
    sites[2].create()
    mirror = Mirror(sites[0], sites[1:])
    mirror.create()
    assert all(site.stat(".chunks") for site in sites)


def test_interrupt_reaches_every_site_and_ends_the_search(pair: Pair) -> None:
    pair.put(RAW, RAW)

    def interrupted(name: str) -> bytes:
        pair.mirror.interrupt()
        raise BackendError("interrupted", retryable=True)

    pair.madrid.read = interrupted  # type: ignore[method-assign]
    for name in (NAME, "owner"):
        with pytest.raises(BackendError, match="interrupted"):
            pair.mirror.read(name)
    assert (pair.madrid.interrupted, pair.amsterdam.interrupted) == (True, True)
    assert pair.amsterdam.reads == []


@pytest.mark.expect_warnings
def test_one_object_that_fails_again_and_again_is_not_the_whole_site(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that finds an object rotten says 500 for ever: other reads go on there."""
    other = ChunkStore.name(Digest(b"o" * 32))
    pair.put(RAW, RAW)
    pair.put(RAW, RAW, other)
    read = pair.madrid.read

    def fail_one(name: str) -> bytes:
        if name != NAME:
            return read(name)
        pair.clock.now += 1  # the time that another thread's read takes
        pair.mirror.read(other)
        raise BackendError("madrid: internal error", retryable=True)

    pair.madrid.read = fail_one  # type: ignore[method-assign]
    assert pair.mirror.read(NAME) == RAW
    assert pair.mirror.read(other) == RAW
    assert other not in pair.amsterdam.reads
    assert pair.names(pair.madrid) == {"": RAW}
    assert len(messages(caplog)) == 1
    assert "not readable" in messages(caplog)[0]


# What only the decoder sees


def reader(mirror: Mirror, key: CryptConfig | None) -> ChunkReader:
    return ChunkReader(ChunkStore(mirror), key, key is not None, ChunkCache(0), name="web/root")


def variants() -> Iterator[tuple[bytes, CryptConfig | None]]:
    for plain in (PLAIN, RANDOM):
        for key in (None, KEY):
            yield plain, key


VARIANTS = list(variants())


def flip(raw: bytes, data: st.DataObject) -> bytes:
    """The same with one byte changed, anywhere."""
    position = data.draw(st.integers(0, len(raw) - 1))
    changed = raw[position] ^ data.draw(st.integers(1, 255))
    return raw[:position] + bytes([changed]) + raw[position + 1 :]


@pytest.mark.expect_warnings
@given(st.sampled_from(VARIANTS), st.data())
def test_a_flipped_byte_anywhere_is_repaired_by_reading(
    variant: tuple[bytes, CryptConfig | None], data: st.DataObject
) -> None:
    plain, key = variant
    digest, raw = make_chunk(plain, key)
    bad = flip(raw, data)
    pair, name = Pair(), ChunkStore.name(digest)
    pair.put(bad, raw, name)
    reported: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: reported.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("store")
    logger.addHandler(handler)
    try:
        for _ in range(2):
            assert reader(pair.mirror, key).read(digest, len(plain), 0) == plain
    finally:
        logger.removeHandler(handler)
    assert pair.madrid.memory.read(name) == raw
    assert pair.madrid.memory.read(f"{name}.0.bad") == bad
    [message] = reported
    assert str(digest) in message
    assert "madrid" in message


@given(st.sampled_from(VARIANTS), st.data())
def test_without_a_mirror_the_error_names_archive_offset_and_digest(
    variant: tuple[bytes, CryptConfig | None], data: st.DataObject
) -> None:
    plain, key = variant
    digest, raw = make_chunk(plain, key)
    backend = MemoryBackend()
    backend.create()
    write_chunk(backend, ChunkStore.name(digest), (flip(raw, data),))
    alone = ChunkReader(ChunkStore(backend), key, key is not None, ChunkCache(0), name="web/root")
    with pytest.raises((IntegrityError, FormatError)) as error:
        alone.read(digest, len(plain), 4194304)
    assert str(error.value).startswith(f"web/root: at offset 4194304: chunk {digest}: ")
    backend.delete(ChunkStore.name(digest))
    with pytest.raises(ChunkMissing, match=f"^web/root: at offset 7: chunk {digest} is not in"):
        alone.read(digest, len(plain), 7)


@pytest.mark.expect_warnings
def test_the_first_error_is_raised_when_no_copy_is_good(pair: Pair) -> None:
    digest, raw = make_chunk(key=KEY)
    wrong_tag = raw[:30] + bytes([raw[30] ^ 1]) + raw[31:]
    pair.put(raw[:-1] + b"x", wrong_tag, ChunkStore.name(digest))
    with pytest.raises(IntegrityError, match=f"chunk {digest}: decryption failed"):
        reader(pair.mirror, KEY).read(digest, len(PLAIN), 0)


def test_the_wrong_key_repairs_nothing(pair: Pair) -> None:
    digest, raw = make_chunk(key=KEY)
    pair.put(raw, raw[:12] + b"other IV, no tag" + raw[28:], ChunkStore.name(digest))
    with pytest.raises(IntegrityError):
        reader(pair.mirror, CryptConfig(b"w" * 32)).read(digest, len(PLAIN), 0)
    name = ChunkStore.name(digest)
    assert [found.name for found in pair.madrid.memory.walk("")] == [name, ".lock"]
    assert pair.madrid.memory.read(name) == raw

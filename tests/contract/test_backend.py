"""What every backend promises, whatever is behind it."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from store.backends.base import Backend
from store.errors import AlreadyExists, BackendError, Locked, NotFound
from tests.contract.implementations import IMPLEMENTATIONS


@pytest.fixture(params=IMPLEMENTATIONS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    made: Backend = request.param(tmp_path, request)
    yield made
    made.close()


def test_writes_and_reads_whole_objects(backend: Backend) -> None:
    backend.write("one", (b"ab", bytearray(b"cd"), memoryview(b"ef"), b""))
    assert backend.read("one") == b"abcdef"
    assert backend.read_range("one", 2, 3) == b"cde"
    assert backend.read_range("one", 4, 10) == b"ef"
    assert bytes(backend.map("one")) == b"abcdef"


def test_an_empty_object(backend: Backend) -> None:
    backend.write("empty", ())
    assert backend.read("empty") == b""
    assert bytes(backend.map("empty")) == b""
    assert backend.touch("empty") == 0


def test_write_replaces_and_a_map_keeps_the_old(backend: Backend) -> None:
    old = os.urandom(3 << 20)
    backend.write("big", (old,))
    mapped = backend.map("big")
    backend.write("big", (b"new",), durable=True)
    assert backend.read("big") == b"new"
    assert bytes(mapped) == old
    backend.delete("big")
    assert bytes(mapped[:10]) == old[:10]


def test_exclusive_write_does_not_replace(backend: Backend) -> None:
    backend.write("owner", (b"first",), exclusive=True)
    with pytest.raises(AlreadyExists):
        backend.write("owner", (b"second",), exclusive=True)
    assert backend.read("owner") == b"first"
    assert [entry.name for entry in backend.scan("") if "tmp" in entry.name] == []


def test_missing_things_are_not_found(backend: Backend) -> None:
    for ask in (
        lambda: backend.read("no"),
        lambda: backend.read_range("no", 0, 1),
        lambda: backend.map("no"),
        lambda: backend.delete("no"),
        lambda: backend.rename("no", "other"),
    ):
        with pytest.raises(NotFound):
            ask()
    assert backend.stat("no") is None
    assert backend.touch("no") is None
    assert backend.scan("no") == []
    assert backend.rmdir("no")
    backend.remove_tree("no")


def test_a_missing_directory_is_not_found_where_there_are_directories(backend: Backend) -> None:
    if backend.is_object_store:
        backend.write("no/object", (b"1",))
        assert backend.read("no/object") == b"1"
        backend.lock("other", (), exclusive=True).release()
        return
    with pytest.raises(NotFound):
        backend.write("no/object", (b"",))
    with pytest.raises(NotFound):
        backend.lock("no", (), exclusive=True)


def test_errors_name_the_path(backend: Backend) -> None:
    with pytest.raises(NotFound, match="host/web01/owner"):
        backend.read("host/web01/owner")


def test_stat(backend: Backend) -> None:
    backend.mkdir("dir")
    backend.write("dir/file", (b"123",))
    file, directory = backend.stat("dir/file"), backend.stat("dir")
    assert file is not None
    assert directory is not None
    assert (file.size, file.is_directory, file.is_regular) == (3, False, True)
    assert (directory.is_directory, directory.is_regular) == (True, False)


def test_touch_moves_atime_alone(backend: Backend) -> None:
    backend.write("chunk", (b"123",))
    before = backend.stat("chunk")
    now = time.time_ns()
    assert backend.touch("chunk") == 3
    after = backend.stat("chunk")
    assert before is not None
    assert after is not None
    assert after.mtime_ns == before.mtime_ns
    # A file server's clock ticks every 10 ms or less.
    assert after.atime_ns >= now - 10_000_000 or backend.is_object_store


def test_rename_replaces(backend: Backend) -> None:
    backend.write("a", (b"1",))
    backend.write("b", (b"2",))
    backend.rename("a", "b")
    assert backend.read("b") == b"1"
    assert backend.stat("a") is None


def test_directories(backend: Backend) -> None:
    assert backend.mkdir("ns/a/vm/100", durable=True)
    assert backend.is_object_store or not backend.mkdir("ns/a/vm/100")
    backend.write("ns/a/vm/100/owner", (b"root@pam\n",))
    assert {(entry.name, entry.is_directory) for entry in backend.scan("ns/a/vm/100")} == {
        ("owner", False)
    }
    assert {(entry.name, entry.is_directory) for entry in backend.scan("ns/a")} == {("vm", True)}
    assert not backend.rmdir("ns/a/vm/100")
    backend.delete("ns/a/vm/100/owner")
    assert backend.rmdir("ns/a/vm/100")
    assert backend.stat("ns/a/vm/100") is None
    assert backend.is_object_store or backend.scan("ns/a/vm") == []


def test_a_namespace_is_there_without_anything_in_it(backend: Backend) -> None:
    assert backend.mkdir("ns/a")
    assert not backend.mkdir("ns/a")
    assert backend.mkdir("ns/a/ns/b")
    assert [(entry.name, entry.is_directory) for entry in backend.scan("ns")] == [("a", True)]
    assert [entry.name for entry in backend.scan("ns/a/ns")] == ["b"]
    there = backend.stat("ns/a/ns/b")
    assert there is not None
    assert there.is_directory
    assert not backend.rmdir("ns/a")
    assert backend.rmdir("ns/a/ns/b")
    assert backend.scan("ns/a/ns") == []
    assert list(backend.walk("ns")) == []


def test_remove_tree_takes_the_tree_and_nothing_beside(backend: Backend) -> None:
    for number in ("1", "10", "100"):
        backend.mkdir(f"vm/{number}/b")
        backend.write(f"vm/{number}/b/c", (b"",))
    backend.remove_tree("vm/10")
    assert [found.name for found in backend.walk("vm")] == ["1/b/c", "100/b/c"]
    assert backend.stat("vm/10") is None
    assert [entry.name for entry in backend.scan("vm/10/b")] == []


def test_temporary_file_appears_on_commit(backend: Backend) -> None:
    backend.mkdir("d")
    file = backend.create_temporary("d/x.didx", "d/x.tmp_didx")
    file.write(bytes(4))
    file.write(b"body")
    file.write_at(0, b"head")
    assert backend.stat("d/x.didx") is None
    assert (backend.stat("d/x.tmp_didx") is None) == backend.is_object_store
    file.commit()
    assert backend.read("d/x.didx") == b"headbody"
    assert [entry.name for entry in backend.scan("d")] == ["x.didx"]
    file.discard()
    assert backend.read("d/x.didx") == b"headbody"


def test_temporary_file_as_memory(backend: Backend) -> None:
    file = backend.create_temporary("x.fidx", "x.tmp_fidx", 5000)
    memory = file.map()
    assert len(memory) == 5000
    assert not any(memory)
    memory[4096:4100] = b"body"
    memory[:4] = b"head"
    memory.release()
    file.commit(durable=True)
    raw = backend.read("x.fidx")
    assert (len(raw), raw[:4], raw[4096:4100]) == (5000, b"head", b"body")


def test_temporary_file_discarded(backend: Backend) -> None:
    if not backend.is_object_store:  # nothing of a temporary file is ever there
        backend.write("x.tmp_fidx", (b"left by a killed process",))
    file = backend.create_temporary("x.fidx", "x.tmp_fidx", 100)
    file.discard()
    file.discard()
    assert backend.stat("x.fidx") is None
    assert backend.stat("x.tmp_fidx") is None


def test_locks_exclude(backend: Backend) -> None:
    backend.mkdir("host/web01")
    with backend.lock("host/web01", ("host-web01",), exclusive=True):
        for exclusive in (True, False):
            with pytest.raises(Locked, match="host/web01"):
                backend.lock("host/web01", ("host-web01",), exclusive=exclusive)
    with (
        backend.lock("host/web01", (), exclusive=False),
        backend.lock("host/web01", (), exclusive=False),
        pytest.raises(Locked),
    ):
        backend.lock("host/web01", (), exclusive=True)
    lock = backend.lock("host/web01", (), exclusive=True)
    lock.release()
    lock.release()


def test_a_lock_can_be_waited_for(backend: Backend) -> None:
    backend.write("manifest", (b"1",))
    held = backend.lock("manifest", (), exclusive=True)
    timer = threading.Timer(0.05, held.release)
    timer.start()
    with backend.lock("manifest", (), exclusive=True, timeout_s=10):
        pass
    timer.join()


def test_a_lock_follows_a_replaced_object(backend: Backend) -> None:
    """Who waits for a manifest that its holder replaces gets the lock of the new one."""
    backend.write("manifest", (b"1",))
    held = backend.lock("manifest", (), exclusive=True)
    got: list[Callable[[], None]] = []
    waiter = threading.Thread(
        target=lambda: got.append(
            backend.lock("manifest", (), exclusive=True, timeout_s=10).release
        )
    )
    waiter.start()
    backend.write("manifest", (b"2",))
    held.release()
    waiter.join()
    with pytest.raises(Locked):
        backend.lock("manifest", (), exclusive=True)
    got[0]()
    backend.lock("manifest", (), exclusive=True).release()


def test_store_lock(backend: Backend) -> None:
    first, second = backend.lock_store(), backend.lock_store()
    first.release()
    with pytest.raises(Locked):
        backend.lock_store(exclusive=True)
    second.release()
    with backend.lock_store(exclusive=True), pytest.raises(Locked):
        backend.lock_store()


def test_concurrent_writers_leave_one_whole_object(backend: Backend) -> None:
    contents = [bytes([number]) * 100_000 for number in range(4)]

    def write(content: bytes) -> None:
        for _ in range(20):
            backend.write("contended", (content[:1], content[1:]))

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if backend.stat("contended"):
            assert backend.read("contended") in contents
    for thread in threads:
        thread.join()
    assert backend.read("contended") in contents
    assert not [entry.name for entry in backend.scan("") if "tmp" in entry.name]


def test_status_and_sync(backend: Backend) -> None:
    backend.sync()
    status = backend.status()
    assert 0 <= status.available <= status.total
    assert 0 <= status.used <= status.total


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 3 << 20])
def test_reads_into_a_room_or_not(backend: Backend, size: int) -> None:
    data = os.urandom(size)
    backend.write("one", [data])
    room = memoryview(bytearray(b"x" * 1000 + b"behind"))[:1000]
    found = backend.read_into("one", room)
    assert found == data
    assert bytes(memoryview(room.obj)[1000:]) == b"behind"
    with pytest.raises(NotFound):
        backend.read_into("two", room)


def test_reading_a_directory_is_an_error_of_ours(backend: Backend) -> None:
    backend.mkdir("host")
    with pytest.raises((NotFound, BackendError)):
        backend.read("host")


def test_walk_is_in_order_and_starts_after_a_name(backend: Backend) -> None:
    backend.mkdir("host/a.b")
    backend.mkdir("host/a/c")
    for name in ("host/a/c/2", "host/a/1", "host/a.b/0", "host/z", "other"):
        backend.write(name, (name.encode(),))
    below = [(found.name, found.size) for found in backend.walk("host")]
    assert sorted(below) == [("a.b/0", 10), ("a/1", 8), ("a/c/2", 10), ("z", 6)]
    assert below[-1][0] == "z"
    names = [found.name for found in backend.walk("host")]
    for position, name in enumerate(names):
        assert [found.name for found in backend.walk("host", name)] == names[position + 1 :]
    assert list(backend.walk("no")) == []


def test_subdirectories_know_whether_they_hold_the_mark(backend: Backend) -> None:
    backend.mkdir("host/a/1")
    backend.mkdir("host/a/2")
    backend.write("host/a/1/index.json.blob", (b"1",))
    backend.write("host/a/2/other", (b"",))
    backend.write("host/a/owner", (b"",))
    found = {one.name: one.is_marked for one in backend.subdirectories("host/a", "index.json.blob")}
    assert found == {"1": True, "2": False}
    assert list(backend.subdirectories("no", "index.json.blob")) == []


def test_a_held_lock_is_not_lost(backend: Backend) -> None:
    backend.mkdir("host/web01")
    with backend.lock("host/web01", (), exclusive=True) as lock, backend.lock_store() as store:
        lock.check()
        store.check()
